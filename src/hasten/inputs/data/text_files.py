"""Data set of texts: a folder of text files, a file with a text in each line, a table, or Python's own texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.csv_lines import csv_lines
from hasten.core.presence import is_file, is_folder
from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.data.class_folders import groups_of, has_files, listed, named_by, numbering
from hasten.inputs.data.csv_files import check_names
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.function import from_python
from hasten.inputs.data.groups import checked_groups
from hasten.inputs.data.missing import filled
from hasten.inputs.data.table import as_classes, label_numbers
from hasten.inputs.data.tagged_words import Tags, is_words, joined, token_labels, words_column
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.tables import columns_of, is_absent, is_table, records
from hasten.inputs.pipeline.text import Tokenize
from hasten.inputs.pipeline.threshold import Threshold

TEXT, PAIR = "text", "text_pair"
"""Columns of a file that hold a text, and the second text of a pair."""
_LABEL, _GROUP = ("label", "labels"), ("group", "groups")
_FOLDER = frozenset((".txt",))
_TABLES = (".csv", ".jsonl")
_FILES = (".txt", *_TABLES)


@dataclass(frozen=True)
class Texts:
    """Texts with their labels and groups, as they were read.

    Attributes:
        said: Name of the data in messages.
        texts: Each sample: a text, a file of text, or two texts.
        labels: Label of each sample; None if there are none.
        groups: Group of each sample; None if there are none.
        numbering: Sentence on how the folders' order numbers the classes; empty elsewhere.
        tags: Tags of each sample's words, from which its tokens get labels; None if there are none.
        numbered: Names of the folders whose order numbers the classes; empty elsewhere.
    """

    said: str
    texts: Sequence[Any]
    labels: Sequence[Any] | None = None
    groups: Sequence[Any] | None = None
    numbering: str = ""
    tags: Sequence[Tags] | None = None
    numbered: tuple[str, ...] = ()


class TextData(Dataset):
    """Texts as samples, which are tokens by the names of the model's inputs.

    Attributes:
        numbering: Sentence on how the folders' order numbers the classes; empty elsewhere.
        numbered: Names of the folders whose order numbers the classes; empty elsewhere.
    """

    def __init__(
        self, tokens: Dataset, numbering: str = "", numbered: tuple[str, ...] = ()
    ) -> None:
        self.tokens, self.numbering, self.numbered = tokens, numbering, numbered
        self.names, self.labels, self.groups = tokens.names, tokens.labels, tokens.groups
        self.ragged = tokens.ragged

    def __len__(self) -> int:
        return len(self.tokens)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return self.tokens.inputs(indices)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self.tokens.shapes(index)

    def content_hash(self, index: int) -> bytes:
        """Return the hash of the tokens, so that texts and their tokens are the same samples."""
        return self.tokens.content_hash(index)

    def has_former_hashes(self) -> bool:
        return self.tokens.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.tokens.former_hash(index)


def reads_texts(pipeline: Pipeline | None) -> Tokenize | None:
    """Return the step that tokenizes, where a pipeline's steps before the model are that one; else None."""
    steps = () if pipeline is None else pipeline.steps
    return steps[0] if len(steps) == 1 and isinstance(steps[0], Tokenize) else None


def names_texts(source: Any) -> bool:
    """Whether a path is that of texts: a folder of text files, .txt, .jsonl or .csv, maybe with a label's column."""
    if not isinstance(source, (str, Path)):
        return False
    path = Path(source)
    if is_folder(path):
        return has_files(path, _FOLDER)
    return (path.suffix in _FILES and is_file(path)) or _file_and_label(source)[1] is not None


def holds_texts(source: Any) -> bool:
    """Whether data is texts: `names_texts`, or Python's own texts in a form that `texts_of` takes."""
    if isinstance(source, (str, Path)):
        return names_texts(source)
    if is_table(source):
        columns = columns_of(source)
        return TEXT in columns or words_column(list(columns)) is not None
    if isinstance(source, tuple):
        return len(source) in (2, 3) and _listed(source[0]) and _is_text(next(iter(source[0])))
    if not _listed(source):
        return False
    first = next(iter(source))
    return _is_text(first[0] if isinstance(first, tuple) and first else first)


def texts_of(source: Any, pipeline: Pipeline) -> Texts:
    """Read texts.

    Args:
        source: One of these:
            - a folder with one folder of .txt files per class, or .txt files without a class; a file is
              one text;
            - the path of a .txt file with a text in each line;
            - the path of a .csv file with the column "text", or of a .jsonl file with an object that has
              this key in each line. There may be a second text of each ("text_pair"), "label" and
              "group"; "texts.csv:stars" names the column of labels; instead of a text, a .jsonl file
              may have a list of words ("tokens" or "words") and a list with a tag for each;
            - a list of texts, of `(text, label)`, of `(text, label, group)`, or of mappings with such keys;
              also a data frame of pandas or a table of Arrow with such columns; a text may be a
              list of two, which are a pair;
            - `(texts, labels)` or `(texts, labels, groups)`, where the first is a list of texts.
        pipeline: Pipeline that begins with the step `tokenize`; its steps after the model may name
            classes.

    Raises:
        InputError: a file can't be read, or a text or a label is missing or of another kind.
    """
    if isinstance(source, (str, Path)):
        if is_folder(source):
            return _folder(Path(source), pipeline)
        path, label = _file_and_label(source)
        if path.suffix == ".txt":
            lines = [line for line in _lines(path) if line.strip()]
            return Texts(str(path), lines)
        rows = _csv(path) if path.suffix == ".csv" else _json_lines(path)
        return _columns(str(path), rows, label, pipeline)
    said = "the data"
    if is_table(source):
        return _columns(said, records(source), None, pipeline)
    if isinstance(source, tuple):
        for noun, several in zip(("labels", "groups"), source[1:], strict=False):
            if isinstance(several, str):
                raise InputError(
                    f"{said}: the {noun} are the text {several!r:.80}: give a list of one for each text"
                )
        texts = _in_order(source[0])
        labels, groups = (
            None if one is None else _in_order(one) for one in (*source[1:], None)[:2]
        )
        for noun, several in (("labels", labels), ("groups", groups)):
            if several is not None and len(several) != len(texts):
                raise InputError(
                    f"{said}: there are {amount(len(texts), 'text')}, but {amount(len(several), noun[:-1])}: "
                    f"give {noun} in the order of the texts, one for each"
                )
        named = _numbers(labels, pipeline, said) if labels is not None else None
        return Texts(said, texts, named, _groups(groups, said))
    samples = _in_order(source)
    if isinstance(samples[0], Mapping):
        kinds = getattr(source, "features", None)
        return _columns(said, _in_order_of(named_by(pipeline), samples, kinds), None, pipeline)
    classes = named_by(pipeline)
    if all(isinstance(one, list) and len(one) == 2 and one[1] in classes for one in samples):
        raise InputError(
            f"{said}: each sample is a list of two texts, which are a pair, but each second text is the "
            "name of a class: give a label as (text, label), in a tuple"
        )
    parts = [one if isinstance(one, tuple) else (one,) for one in samples]
    width = len(parts[0])
    odd = next((i for i, one in enumerate(parts) if len(one) != width), None)
    if odd is not None or width > 3:
        raise InputError(
            f"{said}: sample {odd or 0} has {len(parts[odd or 0])} parts; give a text, (text, label) or "
            "(text, label, group), and the same for each sample"
        )
    labels = [one[1] for one in parts] if width > 1 else None
    return Texts(
        said,
        [one[0] for one in parts],
        _numbers(labels, pipeline, said) if labels is not None else None,
        _groups([one[2] for one in parts] if width > 2 else None, said),
    )


def _in_order_of(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], features: Any
) -> Sequence[Mapping[str, Any]]:
    """Return rows of a Hugging Face data set with the numbers of classes that a pipeline gives them.

    Args:
        names: Names that the pipeline gives the classes, in order.
        rows: Rows by the names of their columns.
        features: Kinds of the columns by name, of which some name classes, in an order of their own; only where both
            name the same ones, in capital or small letters, numbers change. None where the data has no such kinds.
    """
    called = [name.casefold() for name in names]
    for column, kind in features.items() if isinstance(features, Mapping) else ():
        own = [
            str(n).casefold() for n in getattr(getattr(kind, "feature", kind), "names", None) or ()
        ]
        if own == called or sorted(own) != sorted(called) or len({*own}) < len(own):
            continue
        places = {number: called.index(name) for number, name in enumerate(own)}
        rows = [{**row, column: _placed(row[column], places)} for row in rows]
    return rows


def _placed(label: Any, places: Mapping[int, int]) -> Any:
    """Return a number of a class, or a list of some, by a table of places; what isn't in it stays as it is."""
    plain = label.tolist() if hasattr(label, "tolist") else label  # as a set "with_format" has it
    return (
        [places.get(one, one) for one in plain]
        if isinstance(plain, list)
        else places.get(plain, plain)
    )


def tokenized(
    found: Texts, step: Tokenize, names: Sequence[str], folder: Path, *, reread: bool = False
) -> TextData:
    """Turn texts into samples.

    Args:
        found: The texts.
        step: Step that tokenizes.
        names: Names of the model's inputs; empty to keep everything that the step gives.
        folder: Folder to write samples to; empty or not yet there.
        reread: Whether to tokenize a text each time that it is read.

    Raises:
        InputError: a text can't be tokenized, or the model takes an input that the step doesn't give.
    """
    unknown = [name for name in names if name not in step.gives_inputs]
    if unknown:
        raise InputError(
            f"the model takes the inputs {', '.join(names)}, but the step tokenize gives "
            f"{', '.join(step.gives_inputs)}: give their names as its settings ids, mask and "
            "types, or tokenize in your own code and give arrays"
        )
    if not len(found.texts):
        raise InputError(f"{found.said} has no texts")
    if found.tags is not None:
        found = replace(found, labels=token_labels(found.texts, found.tags, step, found.said))
    samples = _Samples(found, step, names)
    given = samples if reread else iter(samples)
    tokens = from_python(given, list(names), folder, found.said, reread=reread)
    return TextData(tokens, found.numbering, found.numbered)


class _Samples(Sequence[Any]):
    """Samples of texts, each tokenized when it is asked for."""

    def __init__(self, found: Texts, step: Tokenize, names: Sequence[str]) -> None:
        self._found, self._step, self._names = found, step, names

    def __len__(self) -> int:
        return len(self._found.texts)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: Any) -> Any:
        found, text = self._found, self._found.texts[place]
        where = str(text) if isinstance(text, Path) else f"{found.said}: text {place + 1}"
        try:
            tokens = self._step(text)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if not len(tokens[self._step.ids]):
            raise InputError(f"{where} has no tokens: leave it out")
        inputs = {name: tokens[name] for name in self._names or tokens}
        if found.groups is not None:
            label = None if found.labels is None else found.labels[place]
            return inputs, label, found.groups[place]
        return inputs if found.labels is None else (inputs, found.labels[place])


def _listed(value: Any) -> bool:
    """Whether a value is a list, or anything else with samples by position, that isn't empty."""
    if is_table(value):
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "OU" and value.ndim == 1 and len(value) > 0
    known = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return known and not isinstance(value, (str, bytes, Mapping)) and len(value) > 0


def _in_order(value: Any) -> list[Any]:
    """Return values by position, which the index of a `Series` of pandas isn't."""
    return list(itertools.islice(value, len(value)))


def _is_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        column = words_column(list(value))
        return isinstance(value.get(TEXT), str) or (column is not None and is_words(value[column]))
    if isinstance(value, list) and len(value) == 2:
        return all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _file_and_label(source: str | Path) -> tuple[Path, str | None]:
    """Return a file, and the column of labels that a user named after it; None where there is none."""
    path = Path(source)
    head, _, label = str(path).rpartition(":")
    if head.endswith(_TABLES) and label and is_file(head) and not is_file(path):
        return Path(head), label
    return path, None


def _folder(folder: Path, pipeline: Pipeline) -> Texts:
    names = named_by(pipeline)
    files, labels, classes = listed(folder, names, _FOLDER, "texts")
    own = None if labels is None else [np.int64(label) for label in labels]
    groups = groups_of(folder, files)
    said = numbering(classes, names)
    return Texts(
        str(folder),
        files,
        own,
        None if groups is None else list(groups),
        said,
        numbered=classes or () if said else (),
    )


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; only line feeds end one, since a text may have other separators."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            return [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text in UTF-8: {error}") from error


def _csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file whose first line names the columns; an empty cell is None."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv_lines(path, file, longer="give texts of this length as .jsonl")
            _, names = next(lines, (0, []))
            check_names(path, names)
            rows = []
            for number, line in lines:
                if not line:
                    continue
                if len(line) != len(names):
                    raise InputError(
                        f"{path}: line {number} has {len(line)} values, but the first line names "
                        f"{len(names)} columns"
                    )
                rows.append({name: cell or None for name, cell in zip(names, line, strict=True)})
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as CSV in UTF-8: {error}") from error
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a line that is only a text is one with the key "text"."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} can't be read as JSON: {error}") from error
        if isinstance(found, str):
            found = {TEXT: found}
        if not isinstance(found, dict):
            raise InputError(
                f'{path}: line {number} must be an object with the key "{TEXT}": got {line:.80}'
            )
        rows.append(found)
    return rows


def _columns(
    said: str, rows: Sequence[Mapping[str, Any]], label: str | None, pipeline: Pipeline
) -> Texts:
    """Return the texts, labels and groups of rows, by the names of their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = ", ".join(map(repr, names[:12]))
    words = None if TEXT in names else words_column(names)
    if rows and TEXT not in names and words is None:
        raise InputError(
            f"{said} has no column {TEXT!r} with the texts: it has {shown}; rename the one that holds them"
        )
    group = next((name for name in _GROUP if name in names), None)
    chosen = label or _label_among(said, [name for name in names if name != words], group)
    if chosen is not None and chosen not in names:
        raise InputError(f"{said} has no column {chosen!r} for the labels: it has {shown}")
    groups = (
        None if group is None else checked_groups([row.get(group) for row in rows], said, group)
    )
    if words is not None:
        whole, tags = joined(rows, words, chosen, named_by(pipeline), said)
        return Texts(said, whole, None, groups, tags=tags)
    texts: list[Any] = []
    for number, row in enumerate(rows, 1):
        pair = [row.get(TEXT), *([] if row.get(PAIR) is None else [row[PAIR]])]
        if not all(isinstance(one, str) for one in pair):
            raise InputError(f"{said}: row {number} has no text: leave it out")
        texts.append(pair if len(pair) > 1 else pair[0])
    labels = None
    if chosen is not None:
        labels = _numbers([row.get(chosen) for row in rows], pipeline, said)
    return Texts(said, texts, labels, groups)


def _groups(groups: Sequence[Any] | None, said: str) -> Sequence[Any] | None:
    """Return groups, checked to be a text or a number for each sample."""
    return None if groups is None else checked_groups(groups, said)


def _label_among(said: str, names: Sequence[str], group: str | None) -> str | None:
    """Return the column of labels: "label" or "labels", or the only one with no other meaning."""
    for name in _LABEL:
        if name in names:
            return name
    others = [name for name in names if name not in (TEXT, PAIR, group)]
    if len(others) > 1:
        raise InputError(
            f"{said} has the columns {', '.join(map(repr, others[:12]))} in addition to the text: name the "
            f'label, as in texts.csv:{others[0]}, or call its column "label"'
        )
    return others[0] if others else None


def _numbers(labels: Any, pipeline: Pipeline, said: str) -> Sequence[Any] | None:
    """Return labels as numbers: those of classes by the names that the pipeline gives them.

    Where a label is missing stands `NO_NUMBER` for a class, and NaN for another number. None where all are.
    """
    values = [None if is_absent(one) else one for one in labels]
    if all(one is None for one in values):
        return None
    for number, one in enumerate(values, 1):
        if isinstance(one, Mapping):
            raise InputError(
                f"{said}: row {number}: the label is an object: give a number, the name of a class, or a "
                "list of numbers"
            )
    if any(isinstance(one, (list, np.ndarray)) for one in values):
        return [None if one is None else _several(one, said, n) for n, one in enumerate(values, 1)]
    if named_by(pipeline):
        return list(label_numbers(values, pipeline, said))
    try:
        read = [_number(one) if isinstance(one, str) else one for one in values]
    except ValueError:
        wrong = next(one for one in values if isinstance(one, str))
        raise InputError(
            f"{said}: the labels are words, such as {wrong!r:.60}, and nothing says which class each is: "
            "give the classes' numbers, or a pipeline whose step after the model has labels"
        ) from None
    huge = next(
        (n for n, one in enumerate(read, 1) if isinstance(one, int) and not _fits(one)), None
    )
    if huge is not None:
        raise InputError(
            f"{said}: row {huge}: the label {read[huge - 1]} has more than 64 bits: give smaller numbers"
        )
    found = filled(np.array(read, object))
    picks = found.dtype.kind == "f" and _picks_class(pipeline)
    return list(as_classes(found) if picks else found)


def _picks_class(pipeline: Pipeline) -> bool:
    """Whether the step after the model chooses among classes, so that labels are their numbers."""
    step = pipeline.after[0] if pipeline.after else None
    return isinstance(step, TopK) or (isinstance(step, Threshold) and step.position is not None)


def _several(label: Any, said: str, row: int) -> Any:
    """Return a label that is a list, checked to be the rows of an array."""
    try:
        np.asarray(label)
    except ValueError:
        raise InputError(
            f"{said}: row {row}: the label has lists of different lengths: give them one length"
        ) from None
    return label


def _fits(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _number(text: str) -> int | float:
    """Return a number that stands in a table.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        return float(text)
