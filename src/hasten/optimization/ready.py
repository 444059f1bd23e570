"""Define the model and the data of a run, after they were read, split and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from hasten.certificate.promise import Promise
from hasten.core.growth import Growth
from hasten.core.lookups import Lookup, RowNumbers
from hasten.core.model import Model
from hasten.core.ranges import ValueRange, ranges_of
from hasten.core.shapes import Extent
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.inputs.models.embedding import lookups_of
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.set_metrics.base import SetMetric
from hasten.measure.live_bytes import growth_of, known_sizes
from hasten.measure.workbench import Workbench
from hasten.optimization.folding import Given
from hasten.optimization.unrolling import Unrolled
from hasten.passes.onnx_files import read_onnx
from hasten.passes.small_model import SmallModel

if TYPE_CHECKING:
    import onnx

_CHANGES = 2
"""Answers that may change for each that may be lost, as far as the search without labels goes."""
_MOST_RANGED_BYTES, _PART_BYTES, _MOST_AT_ONCE = 256 << 20, 16 << 20, 64
"""Sizes of the samples whose ranges are looked for, of those that are read at once, and their largest number."""


@dataclass(frozen=True)
class Ready:
    """A model and its data, read, split and checked against each other.

    Attributes:
        model: The original model, with the shapes that the data settles.
        parts: Parts of the data, laid out in the run's folder.
        training: Data to train on and to calibrate from; None where none was given.
        pipeline: Steps from an image file to the model's input; None where there are none.
        promise: Promise that the certificate makes.
        target: Device to run on.
        small_models: Smaller models to try in the original's place.
        trained: Name of a smaller model -> how it was made, in words.
        given_sha256: SHA-256 of the model that was given, before anything was folded into it.
        unrolled: States and single steps, where samples are whole sequences; None elsewhere.
        figures: Metrics over the sealed set that are stated before and after.
        tested: Promise with the confidence at which the sealed data will be tested, as far as the
            ledger tells beforehand; None where that is the promise's own.
        asking: Whether labels are asked for, of sealed samples on which answers differ.
        made_up: Whether no data was given, so that inputs were made up and nothing inexact may ship.
        extents: Dimensions in which samples differ; empty where all have one shape.
        given: The model as it was given, where `model` is a form of it that normalizes pixels itself;
            None where nothing was folded into it.
        kept: Samples to keep as requests, where they aren't those of the search split.
        files: Image files outside the sealed data, for a run with `end_to_end`; empty elsewhere.
        numbered: Names of the class folders whose order numbers the classes; empty elsewhere.
    """

    model: Model
    parts: Parts
    training: Dataset | None
    pipeline: Pipeline | None
    promise: Promise
    target: Target
    small_models: tuple[SmallModel, ...]
    trained: Mapping[str, str]
    given_sha256: str
    unrolled: Unrolled | None = None
    figures: tuple[SetMetric, ...] = ()
    tested: Promise | None = None
    asking: bool = False
    made_up: bool = False
    extents: tuple[Extent, ...] = ()
    given: Given | None = None
    kept: Dataset | None = None
    files: tuple[Path, ...] = ()
    numbered: tuple[str, ...] = ()

    @property
    def single(self) -> Spool:
        """Return samples of single requests: of the search split, or the calibration's steps."""
        return self.parts.search if self.unrolled is None else self.unrolled.calibration

    def as_given(self, given: Given) -> Self:
        """Return the model as it was given, in place of the form that normalizes pixels itself."""
        return replace(
            self,
            model=given.model,
            pipeline=given.pipeline,
            extents=given.extents,
            given=None,
            kept=given.takes(self.single),
        )

    @cached_property
    def ranges(self) -> tuple[ValueRange, ...]:
        """Ranges of the numbers in single requests: of the samples that calibrate and those of the search.

        Of much data only the first samples are read, up to 256 MiB.
        """
        return ranges_of(self._single_parts())

    def _single_parts(self) -> Iterator[Tensors]:
        """Yield samples of single requests that calibrate or that the search sees, some at a time."""
        if self.kept is not None:
            return _parts(self.kept)
        if self.unrolled is not None:
            return _parts(self.unrolled.calibration)
        return _parts(self.parts.calibration, self.parts.search)

    @cached_property
    def lookups(self) -> tuple[Lookup, ...]:
        """Tables that the original looks its inputs' numbers up in."""
        return lookups_of(self._graph, self.model.inputs)

    @cached_property
    def growth(self) -> tuple[Growth, ...]:
        """Memory of the original's tensors by the size of a sample, or by rows where no other dimension is open."""
        if self.model.format != "onnx" or not known_sizes(
            self.model.inputs, self.model.request, self.extents
        ):
            return ()
        return growth_of(self._graph, self.model.inputs, self.model.request, self.extents)

    @cached_property
    def _graph(self) -> onnx.ModelProto:
        """Graph of the original without its weights."""
        return read_onnx(self.model, weights=False)

    def check_numbers(self) -> None:
        """Check that the samples' numbers are rows of the original's tables, as the bundle will of each request.

        Of much data only the first samples are read, as for `ranges`.

        Raises:
            InputError: one isn't; the message names the input, the number and the rows.
        """
        numbers = RowNumbers.of(self.lookups, self.model.inputs)
        if numbers is None:
            return
        for part in self._single_parts():
            try:
                numbers(part)
            except InputError as error:
                raise InputError(f"the data doesn't suit the model: {error}") from error

    @property
    def steps_each(self) -> float:
        """Return the mean number of steps of a sequence; 1 where a sample is one request."""
        return 1.0 if self.unrolled is None else self.unrolled.steps_each

    @cached_property
    def search_promise(self) -> Promise:
        """Promise that the search goes by.

        Where labels will be asked for, the search has none, and it ranks candidates by the answers
        that change. Of those about as many become right as wrong, so twice the limit may change.
        """
        promise = self.tested or self.promise
        missing = missing_labels(promise.metric, self.parts.search.labels)
        if not self.asking or missing is None or not missing.all():
            return promise
        return replace(promise, max_drop=min(_CHANGES * promise.max_drop, 0.5))

    @cached_property
    def search_units(self) -> Array:
        """Number of each search sample's draw, as the metric draws them, `(n,)`."""
        return self.parts.search_draws(self.promise.metric)

    @cached_property
    def sealed_units(self) -> Array:
        """Number of each sealed sample's draw, as the metric draws them, `(n,)`."""
        return self.parts.sealed_draws(self.promise.metric)

    @property
    def sealed_draws(self) -> int:
        """Return the number of independent draws to certify by."""
        return len(np.unique(self.sealed_units))

    def bench(self, folder: Path, limit_s: float) -> Workbench:
        """Return the workbench for the device, with a time limit for each step, in seconds."""
        return Workbench(
            folder,
            self.target,
            limit_s=limit_s,
            memory_bytes=self.target.memory_bytes // 2,
            model=self.model,
            sequences=None if self.unrolled is None else self.unrolled.sequences,
            calibration=self.parts.calibration
            if self.unrolled is None
            else self.unrolled.calibration,
            calibration_hash=self.parts.calibration_hash,
        )


def _parts(*data: Dataset) -> Iterator[Tensors]:
    """Yield samples of data sets, some at a time, up to a bound of bytes."""
    left = _MOST_RANGED_BYTES
    for one in data:
        count, start = 1, 0
        while start < len(one):
            part = one.inputs(range(start, min(start + count, len(one))))
            yield part
            size = sum(array.nbytes for array in part.values())
            left -= size
            if left < 0:
                return
            start += count
            if not one.ragged:  # samples that differ in shape can't be in one array
                count = max(1, min(_MOST_AT_ONCE, _PART_BYTES * count // max(1, size)))
