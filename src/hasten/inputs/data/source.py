"""Opening of data that a user names, as a `Dataset`."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hasten.core.presence import is_file, is_folder, is_there
from hasten.core.records import type_name
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.class_folders import has_files
from hasten.inputs.data.csv_files import is_table
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.function import call_function, called, from_python
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.missing import NO_NUMBER
from hasten.inputs.data.npz import open_npz
from hasten.inputs.data.sounds import SoundFolder, reads_sounds
from hasten.inputs.data.table import have_numbers, label_numbers, reads_rows, rows_of
from hasten.inputs.data.text_files import holds_texts, names_texts, reads_texts, texts_of, tokenized
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.threshold import Threshold


def open_data(
    source: Any,
    model_inputs: Sequence[TensorSpec],
    pipeline: Pipeline | None = None,
    workdir: Path | None = None,
    *,
    reread: bool = False,
) -> Dataset:
    """Open data in any form that hasten reads.

    Args:
        source: Path of an .npz archive, of a folder of images or of one of sounds, "module:function",
            "file.py:function", or any value that such a function may return: see `from_python`. For a
            model of rows also a table: a CSV file, "rows.csv:label" with the label's column, or
            any other form that `rows_of` takes. For a pipeline that tokenizes also texts, in any form
            that `texts_of` takes.
        model_inputs: Specs of the model's inputs; empty where the model doesn't name them, so that
            the data's own names are used.
        pipeline: Preprocessing from an image file or a sound file to the model's input; needed for a
            folder of either.
        workdir: Folder to unpack data to, empty or not yet there; by default a temporary folder,
            deleted with the data set.
        reread: Read samples again each time; see `from_python`.

    Raises:
        InputError: there is no such data, or it doesn't fit together.
    """
    names = [spec.name for spec in model_inputs]
    if isinstance(source, Dataset):
        return source
    row = reads_rows(pipeline)
    if pipeline is not None and row is not None:
        if isinstance(source, str) and ":" in source and not is_table(source):
            source = called(source)
        table = rows_of(source, pipeline, names)
        if table is not None:
            return table
    elif (tokenize := reads_texts(pipeline)) is not None:
        assert pipeline is not None
        source = resolved(source, pipeline)
        if holds_texts(source):
            found = texts_of(source, pipeline)
            return _in_folder(
                workdir, lambda folder: tokenized(found, tokenize, names, folder, reread=reread)
            )
        if isinstance(source, (str, Path)) and is_folder(source):
            raise InputError(
                f"{source} has no texts: give a folder of .txt files, or the path of a .txt, .csv or .jsonl file"
            )
    elif isinstance(source, (str, Path)) and is_table(source):
        raise InputError(
            f"{source} is a table, but nothing states which columns the model takes, and in "
            "which order: give a pipeline that begins with the step row, or a model that states "
            "its columns"
        )
    if isinstance(source, (str, Path)):
        path = Path(source)
        prepared = pipeline is not None and bool(pipeline.steps)
        if not (is_folder(path) and (prepared or has_media(path))) and names_texts(source):
            raise InputError(
                f"{source} holds texts, but nothing states how they become tokens: give a pipeline with the "
                "step tokenize, or a model's folder with a tokenizer.json that fits in a bundle"
            )
        if is_folder(path):
            return _media(path, names, pipeline)
        if is_file(path):
            if path.suffix == ".npz":
                missing = row is not None and row.missing == "nan"
                return _numbered(open_npz(path, names, workdir, missing=missing), pipeline, source)
            raise InputError(
                f"hasten can't read {path} as data: give an .npz archive, a folder of images or of "
                "sounds, or module:function"
            )
        if isinstance(source, Path) or ":" not in source:
            raise InputError(f"no such file: {path}")

    def read(folder: Path) -> Dataset:
        if isinstance(source, str):
            return call_function(source, names, folder, reread=reread)
        return from_python(source, names, folder, reread=reread)

    return _numbered(_in_folder(workdir, read), pipeline, source)


def _numbered(dataset: Dataset, pipeline: Pipeline | None, source: Any) -> Dataset:
    """Return a data set whose labels are numbers of classes where they were the names that the pipeline gives these.

    Labels of which none is such a name stay as they are. For a model of rows, numbers are names where classes are called
    by numbers, as they are in a table.

    Raises:
        InputError: some labels are names of classes, and others aren't.
    """
    labels = dataset.labels
    step = pipeline.after[0] if pipeline is not None and pipeline.after else None
    if pipeline is None or not isinstance(step, (TopK, Threshold)) or labels is None:
        return dataset
    single = labels.shape in ((len(labels),), (len(labels), 1))
    own = "labels" in vars(dataset)  # not a property of a data set of somebody else
    named = labels.dtype.kind == "U" and not {*step.class_names}.isdisjoint(
        labels.reshape(-1).tolist()
    )
    by_number = labels.dtype.kind in "biuf" and reads_rows(pipeline) is not None
    by_number = by_number and have_numbers(step.class_names)
    if single and own and (named or by_number):
        said = str(source) if isinstance(source, (str, Path)) else "the data"
        # A class may be called -1, so a missing label must not become it.
        given = [None if one == NO_NUMBER else one for one in labels.reshape(-1).tolist()]
        dataset.labels = label_numbers(given, pipeline, said)
    return dataset


def resolved(source: Any, pipeline: Pipeline | None) -> Any:
    """Return what a function returns that a user named as texts; anything else as it is.

    Args:
        source: Data in any form that `open_data` takes.
        pipeline: Pipeline around the model; only where it tokenizes a function is called.

    Raises:
        InputError: there is no such function.
    """
    if reads_texts(pipeline) is None or not isinstance(source, str) or ":" not in source:
        return source
    if names_texts(source) or is_there(source):
        return source
    given = called(source)
    if not isinstance(given, Iterator):
        return given
    first = list(itertools.islice(given, 1))
    return [*first, *given] if holds_texts(first) else source  # data may be opened more than once


def _in_folder(workdir: Path | None, read: Callable[[Path], Dataset]) -> Dataset:
    """Open data that is unpacked to a folder: the caller's, or one of its own that is deleted with the data.

    Raises:
        InputError: the folder isn't empty, or the data can't be read.
    """
    owned = Path(tempfile.mkdtemp(prefix="hasten-data-")) if workdir is None else None
    folder = workdir or owned
    assert folder is not None
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} isn't empty: give a new folder to unpack data to")
    try:
        dataset = read(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a partly written data set is of no use
        raise
    if owned is not None:
        weakref.finalize(dataset, shutil.rmtree, owned, ignore_errors=True)
    return dataset


def _media(folder: Path, names: Sequence[str], pipeline: Pipeline | None) -> ClassFiles:
    """Open a folder of images or of sounds for a model with a single input."""
    only_sounds = not has_files(folder, ImageFolder.suffixes) and has_media(folder)
    kind = SoundFolder if only_sounds or reads_sounds(pipeline) else ImageFolder
    what = f"{folder} is a folder of {kind.noun}"
    if not names:
        raise InputError(
            f"{what}, but the model doesn't name its input: give an .npz archive or module:function"
        )
    if len(names) != 1:
        raise InputError(
            f"{what}, but the model takes the inputs {', '.join(names)}: give an .npz archive or "
            "module:function"
        )
    if pipeline is None or not pipeline.steps:
        raise InputError(
            f"{what}, but nothing states how to prepare them: give "
            + (
                "a pipeline file"
                if kind is SoundFolder
                else "a size, mean and std, or a pipeline file"
            )
        )
    if only_sounds and not reads_sounds(pipeline):
        raise InputError(
            f"{what}, but the pipeline begins with {type_name(pipeline.steps[0])}: let it begin with "
            "decode_audio, or give an .npz archive or module:function"
        )
    return kind(folder, pipeline, names[0])


def has_media(folder: Path) -> bool:
    """Whether a folder, or a folder in it, has images or sounds."""
    return has_files(folder, ImageFolder.suffixes | SoundFolder.suffixes)
