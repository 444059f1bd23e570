"""Tensors of the requests: samples of data or of a bundle, or random numbers, in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hasten.bundle import kept_requests, read, unpacked
from hasten.bundle.packing.names import is_packed
from hasten.core.presence import is_folder
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.evaluation.loadtest.metadata import Described
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.npz import open_npz
from hasten.inputs.data.requests import random_requests, samples_of
from hasten.serving.protocol.requests import RAW

DISTINCT = 64
"""Largest number of different requests, sent in turn; repetition flatters the server's caches."""
MOST_BYTES = 256 << 20
"""Largest number of bytes of all requests together."""
MOST_ROWS = 65_536


def payloads(
    inputs: Sequence[Described],
    *,
    data: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
    seed: int = 0,
) -> list[Tensors]:
    """Return the inputs of some requests, by name, each array in C order and of the input's type.

    Args:
        inputs: Inputs of the model.
        data: An .npz archive of arrays of shape `(n, ...)`, one per input; or the folder of a
            bundle, for the requests that it keeps; None for random numbers.
        shapes: Shapes of random inputs, by name; an open size that isn't given is 1.
        batch: Rows in each request.
        seed: Seed of the random numbers.

    Raises:
        InputError: the data, a shape or the batch doesn't fit the model.
    """
    shapes = shapes or {}
    if not inputs:
        raise InputError("the model says that it takes no inputs: there is nothing to send")
    check_batch(batch)
    if any((one.name, one.datatype) == (RAW, "BYTES") for one in inputs):
        raise InputError(
            "the model takes raw samples, such as pictures or texts: give a folder of their files in data="
        )
    if data is None:
        return _random(inputs, shapes, batch, seed)
    if shapes:
        raise InputError("shapes are for random requests: leave out the shapes or the data")
    names = [one.name for one in inputs]
    dataset = (
        _of_bundle(data, names) if is_folder(data) or is_packed(data) else open_npz(data, names)
    )
    return _from_data(inputs, dataset, batch)


def check_batch(batch: int) -> None:
    """Check the number of rows in a request.

    Raises:
        InputError: it is out of range.
    """
    if not 1 <= batch <= MOST_ROWS:
        raise InputError(f"a batch has from 1 to {MOST_ROWS} rows: got {batch}")


def _of_bundle(folder: Path, names: Sequence[str]) -> Dataset:
    """Return the requests that a bundle keeps, as samples.

    Raises:
        InputError: there is no bundle, it keeps no requests, or they are another model's.
    """
    place = unpacked(folder)
    kept = kept_requests(place, read(place))
    if not kept:
        raise InputError(
            f"{folder} keeps no requests of its data: give an .npz archive of requests"
        )
    if set(kept[0]) != set(names):
        raise InputError(
            f"the model takes the inputs {', '.join(names)}; the requests in {folder} have "
            f"{', '.join(kept[0])}"
        )
    return samples_of(kept)


def _random(
    inputs: Sequence[Described], shapes: Mapping[str, Sequence[int]], batch: int, seed: int
) -> list[Tensors]:
    unknown = sorted(shapes.keys() - {one.name for one in inputs})
    if unknown:
        raise InputError(
            f"the model has no input {unknown[0]!r}, for which you gave a shape; its inputs are "
            f"{', '.join(map(str, inputs))}"
        )
    # A first axis of 1 is taken for the axis of the samples.
    specs = [
        TensorSpec(one.name, one.dtype, (1, *_settled(one, shapes.get(one.name), batch)))
        for one in inputs
    ]
    made = random_requests(specs, seed)
    drawn = made.inputs(range(len(made)))
    return [{name: rows[i] for name, rows in drawn.items()} for i in range(len(made))]


def _settled(one: Described, given: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    """Return an input's shape with every size settled."""
    if given is None:
        first, rest = one.shape[:1], one.shape[1:]
        shape = tuple(batch if size < 0 else size for size in first) + tuple(
            1 if size < 0 else size for size in rest
        )
    else:
        shape = tuple(given)
        _check_fit(one, shape)
    if batch != 1 and shape[:1] != (batch,):
        raise InputError(
            f"input {one}: a batch of {batch} was asked for, but its first size is "
            f"{shape[0] if shape else 'missing'}; leave the batch out"
        )
    return shape


def _check_fit(one: Described, shape: Sequence[int]) -> None:
    fits = len(shape) == len(one.shape) and all(
        given >= 0 and size in (-1, given) for size, given in zip(one.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"the model takes {one}; got the shape {list(shape)}")


def _from_data(inputs: Sequence[Described], dataset: Dataset, batch: int) -> list[Tensors]:
    sample = dataset.inputs([0])
    row_bytes = sum(
        math.prod(sample[one.name].shape) * np.dtype(one.dtype).itemsize for one in inputs
    )
    if batch * row_bytes > MOST_BYTES:
        raise InputError(
            f"a request of {batch} rows takes {batch * row_bytes / 2**20:,.4g} MiB, and the limit "
            f"is {MOST_BYTES >> 20} MiB: lower the batch"
        )
    distinct = min(DISTINCT, -(-len(dataset) // batch), MOST_BYTES // max(1, batch * row_bytes))
    made: list[Tensors] = []
    for first in range(0, distinct * batch, batch):
        wanted = [row % len(dataset) for row in range(first, first + batch)]
        if dataset.ragged:  # a request's rows are of one shape
            wanted = [first // batch % len(dataset)] * batch
        rows = dataset.inputs(wanted)
        made.append({one.name: _fitted(one, rows[one.name]) for one in inputs})
    return made


def _fitted(one: Described, rows: Array) -> Array:
    """Return rows as the input takes them, with or without an axis for the batch."""
    whole = rows
    if rows.ndim == len(one.shape) + 1:
        if len(rows) != 1:
            raise InputError(
                f"input {one}: a sample of the data has as many axes as the model's input, so no "
                f"axis is left for a batch of {len(rows)}; leave the batch out"
            )
        whole = rows[0]
    _check_fit(one, whole.shape)
    want = np.dtype(one.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.asarray(whole, dtype=want, order="C")  # also an array for a single number
    floating = want.kind == "f"
    if not (
        np.can_cast(whole.dtype, want, "same_kind") if floating else np.array_equal(cast, whole)
    ):
        raise InputError(
            f"input {one}: the data is of {whole.dtype}, which doesn't fit; save it as {want}"
        )
    return cast
