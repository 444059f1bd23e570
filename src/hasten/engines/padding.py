"""Padding of requests up to a few shapes, and the cutting back of their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError


@dataclass(frozen=True)
class Axis:
    """One axis of one input or output."""

    name: str
    axis: int


@dataclass(frozen=True)
class Dimension:
    """An open dimension.

    Attributes:
        inputs: Axes of inputs that have its size.
        outputs: Axes of outputs that have its size, which are cut to that of the request.
    """

    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Bucket:
    """Sizes of the open dimensions, in their order, that a model is compiled for."""

    sizes: tuple[int, ...]

    def covers(self, sizes: Sequence[int]) -> bool:
        """Whether a request of these sizes can be padded up to the bucket."""
        return all(own >= size for own, size in zip(self.sizes, sizes, strict=True))

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


@dataclass(frozen=True)
class Settled:
    """Axis of an input that has one size in all buckets, though it is open in the model."""

    name: str
    axis: int
    size: int


@dataclass(frozen=True)
class Pad:
    """Value that an input is padded with."""

    name: str
    value: float


class Padder:
    """Pads requests up to the shapes of buckets, and cuts answers back.

    Args:
        dimensions: Open dimensions that buckets settle.
        buckets: Shapes to pad up to.
        pads: Values to pad with, where they aren't 0.
        padding: Whether requests are padded; else a bucket answers only requests of its own shape.
        least: Sizes of the open dimensions below which nothing is padded; none where all is.
        settled: Other open axes, beside that of rows, which have one size in all buckets.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        buckets: Sequence[Bucket],
        pads: Sequence[Pad] = (),
        *,
        padding: bool = True,
        least: Sequence[int] = (),
        settled: Sequence[Settled] = (),
    ) -> None:
        self._dimensions, self._buckets, self._padding = dimensions, buckets, padding
        self._least, self._settled = least or (0,) * len(dimensions), settled
        self._pads = {pad.name: pad.value for pad in pads}

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        """Return the sizes of the open dimensions; None where no bucket has the request's other sizes.

        That is where inputs differ that had one size in the data, or an axis that never varied there.

        Args:
            shapes: Shapes of a request's inputs, by name.

        Raises:
            CandidateError: an input is missing, or lacks an axis.
        """
        found = []
        for dimension in self._dimensions:
            for one in dimension.inputs:
                if len(shapes.get(one.name, ())) <= one.axis:
                    raise CandidateError(f"the request has no axis {one.axis} of {one.name!r}")
            sizes = {shapes[one.name][one.axis] for one in dimension.inputs}
            if len(sizes) > 1:
                return None
            found.append(sizes.pop())
        for own in self._settled:
            shape = shapes.get(own.name, ())
            if len(shape) <= own.axis or shape[own.axis] != own.size:
                return None
        return tuple(found)

    def bucket(self, sizes: tuple[int, ...] | None) -> int:
        """Return the number of the least bucket for some sizes; -1 where there is none."""
        if sizes is None:
            return -1
        padding = self._padding and Bucket(sizes).covers(self._least)
        covering = [
            (math.prod(bucket.sizes), number)
            for number, bucket in enumerate(self._buckets)
            if bucket.sizes == sizes or (padding and bucket.covers(sizes))
        ]
        return min(covering, default=(0, -1))[1]

    def filled(self, inputs: Tensors, number: int) -> dict[str, Array]:
        """Return a request padded up to a bucket."""
        wanted: dict[str, list[int]] = {name: list(array.shape) for name, array in inputs.items()}
        for dimension, size in zip(self._dimensions, self._buckets[number].sizes, strict=True):
            for one in dimension.inputs:
                wanted[one.name][one.axis] = size
        filled = {}
        for name, array in inputs.items():
            filled[name] = array
            if tuple(wanted[name]) != array.shape:
                whole = np.full(wanted[name], self._pads.get(name, 0), array.dtype)
                whole[tuple(map(slice, array.shape))] = array
                filled[name] = whole
        return filled

    def check(self, answers: Tensors, number: int) -> None:
        """Check that the answers to a padded request have a bucket's sizes, to be cut back from.

        Raises:
            CandidateError: an output has another size.
        """
        for dimension, own in zip(self._dimensions, self._buckets[number].sizes, strict=True):
            for one in dimension.outputs:
                shape = answers[one.name].shape
                if len(shape) <= one.axis or shape[one.axis] != own:
                    raise CandidateError(
                        f"the output {one.name!r} has the shape {list(shape)}, without {own} on axis "
                        f"{one.axis}"
                    )

    def cut(self, answers: Tensors, sizes: tuple[int, ...]) -> dict[str, Array]:
        """Return answers that `check` passed, with the open dimensions of a request's own sizes."""
        found = dict(answers)
        for dimension, size in zip(self._dimensions, sizes, strict=True):
            for one in dimension.outputs:
                kept = [slice(None)] * one.axis + [slice(size)]
                found[one.name] = np.ascontiguousarray(found[one.name][tuple(kept)])
        return found


def kind_of(padder: Padder | None, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
    """Return what requests that may share a batch have in common: their bucket, else their shapes.

    Args:
        padder: Padding of requests up to buckets; None for no padding.
        shapes: Shapes of a request's inputs, by name.

    Raises:
        CandidateError: an input is missing, or lacks an axis.
    """
    number = -1 if padder is None else padder.bucket(padder.sizes(shapes))
    return number if number >= 0 else tuple(sorted(shapes.items()))


def row_by_row(
    run: Callable[[dict[str, Array]], Tensors],
    requests: Sequence[Tensors],
    padder: Padder | None,
) -> list[dict[str, Array]]:
    """Answer requests of one row and of one kind in one batch, padded up to their bucket if their shapes differ.

    Args:
        run: Function that answers a batch.
        requests: The requests.
        padder: Padding of requests up to buckets; None for no padding.

    Returns:
        The answer to each, cut back to its own sizes.

    Raises:
        CandidateError: the batch fails, or an answer hasn't a row for each request.
    """
    batch, number = in_one(requests, padder)
    answers = run(batch)
    for name, array in answers.items():
        if array.shape[:1] != (len(requests),):
            raise CandidateError(
                f"the output {name!r} of a batch of {len(requests)} has the shape {list(array.shape)}"
            )
    rows = [{n: a[row : row + 1] for n, a in answers.items()} for row in range(len(requests))]
    if padder is None or number < 0:
        return rows
    padder.check(answers, number)
    sizes = [padder.sizes(_shapes(one)) for one in requests]
    return [padder.cut(row, own) for row, own in zip(rows, sizes, strict=True) if own is not None]


def in_one(requests: Sequence[Tensors], padder: Padder | None) -> tuple[dict[str, Array], int]:
    """Return requests of one row and of one kind as one batch, and the number of the bucket that they are padded to.

    The number is -1 where their shapes are the same, so that nothing is padded.
    """
    shapes = [_shapes(one) for one in requests]
    number = -1
    if padder is not None and any(one != shapes[0] for one in shapes):
        number = padder.bucket(padder.sizes(shapes[0]))
        requests = [padder.filled(one, number) for one in requests]
    batch = {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}
    return batch, number


def _shapes(request: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in request.items()}
