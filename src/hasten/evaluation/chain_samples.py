"""Samples that a chain is tested on: what it is given, and which of them its bundles were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.bundle import Manifest
from hasten.core.presence import is_folder
from hasten.errors import InputError
from hasten.evaluation.seen import Seen, seen_by
from hasten.inputs.chains import Chain
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.files import FileFolder
from hasten.inputs.data.images import SUFFIXES, ImageFolder
from hasten.inputs.data.sounds import reads_sounds
from hasten.inputs.data.source import open_data
from hasten.inputs.data.table import given_rows, reads_rows
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode


@dataclass(frozen=True)
class ChainSamples:
    """Samples of a chain.

    Attributes:
        values: Values that the chain is given: paths of files, or rows of a table.
        dataset: The samples as the first model that sees them takes them.
        seen: Samples that the chain's bundles were made with, as hashes of that data set.
    """

    values: Sequence[Any]
    dataset: Dataset
    seen: Seen


def chain_samples(chain: Chain, manifests: Mapping[str, Manifest], data: Any) -> ChainSamples:
    """Open the data of a chain.

    Args:
        chain: The chain.
        manifests: Manifests of its bundles, by their nodes' names.
        data: Folder of files as the first model takes them, maybe with a `groups.csv`; for a model of rows
            also a table: a CSV file, a data frame of pandas, a table of Arrow, or a list of rows.

    Raises:
        InputError: the data can't be used, or has no groups where a bundle was made with some.
        IntegrityError: a bundle doesn't say what it was made with.
    """
    folders = {model.name: Path(model.bundle) for model in chain.models}
    known = {name: seen_by(folders[name], manifests[name]) for name in folders}
    roots = [model.name for model in chain.roots]
    values, dataset = _opened(data, manifests[roots[0]])
    for name, seen in known.items():
        seen.check_groups(folders[name], dataset)
    together = Seen.together(known.values())
    if isinstance(dataset, ImageFolder):  # whose hashes are of the files, whatever prepares them
        return ChainSamples(values, dataset, together)
    also = set[str]()
    for name in roots[1:]:
        _, own = _opened(data, manifests[name])
        used = known[name].hashes | known[name].seen
        also |= {
            dataset.content_hash(index).hex()
            for index in range(len(own))
            if own.content_hash(index).hex() in used
        }
    return ChainSamples(values, dataset, replace(together, seen=together.seen | also))


def _opened(data: Any, manifest: Manifest) -> tuple[Sequence[Any], Dataset]:
    """Return what a chain is given, and the same samples as a model takes them."""
    pipeline, inputs = manifest.pipeline, manifest.winner.artifact.inputs
    assert pipeline is not None
    if not pipeline.steps:
        raise InputError(
            "the chain's first model has no steps before it that read a file or a row, so nothing says "
            "what the chain is given: optimize it with a pipeline that begins with such a step"
        )
    if isinstance(data, (str, Path)) and is_folder(data):
        # A run knows pictures by their files, whatever step reads them, and all else by what is prepared.
        pictures = any(file.suffix.lower() in SUFFIXES for file in Path(data).rglob("[!.]*"))
        pictures = pictures and not reads_sounds(pipeline)
        if not (pictures or isinstance(pipeline.steps[0], Decode)):
            files = FileFolder(Path(data), pipeline, inputs)
            return files.files, files
        images = open_data(data, inputs, pipeline)
        assert isinstance(images, ImageFolder)
        return images.files, images
    row = reads_rows(pipeline)
    values = None if row is None else given_rows(data, row)
    if values is None:
        raise InputError(f"a chain is certified on {_needed(pipeline)}: got {data!r:.100}")
    return values, open_data(data, inputs, pipeline)


def _needed(pipeline: Pipeline) -> str:
    """Return what a chain is certified on, by the pipeline of its first model."""
    if isinstance(pipeline.steps[0], Decode):
        return "a folder of pictures"
    if reads_rows(pipeline) is not None:
        return "a table, such as a CSV file, or a folder of rows in JSON"
    return "a folder of files, one for each sample"
