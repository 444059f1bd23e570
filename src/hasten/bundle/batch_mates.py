"""Check that what shares a batch doesn't change an answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hasten.core.lookups import RowNumbers
from hasten.core.tensors import BY_VALUE, Array, Tensors, TensorSpec, unlike_rows
from hasten.errors import CandidateError

MOST_BYTES = 64 << 20
"""Largest size of one batch's inputs, and of a request that is made up: a manifest states its sizes."""
LOUD = 8.0
"""Factor by which batch mates are scaled up, to expose a quantization scale that a batch shares."""


def share_batch_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether all inputs share one open first axis, and all outputs have axes of which values size none."""
    axes = {spec.shape[:1] for spec in inputs}
    open_ = len(axes) == 1 and all(axis and isinstance(axis[0], str) for axis in axes)
    return open_ and all(spec.shape and spec.shape[0] != BY_VALUE for spec in outputs)


def made_up(
    specs: Sequence[TensorSpec],
    rows: int | None,
    rng: np.random.Generator,
    loud: float = 1.0,
    numbers: RowNumbers | None = None,
) -> dict[str, Array]:
    """Make a random request of `rows` rows; None for as many rows as the specs state.

    Args:
        specs: Inputs of one request, without open dimensions.
        rows: Size of the first axis.
        rng: Source of the random numbers.
        loud: Factor of floats.
        numbers: Check that the request must pass; None for none.

    Raises:
        CandidateError: it would be larger than `MOST_BYTES`.
    """
    shapes = [s.sizes if rows is None else (rows, *s.sizes[1:]) for s in specs]
    types = [np.dtype(spec.dtype) for spec in specs]
    size = sum(t.itemsize * math.prod(shape) for t, shape in zip(types, shapes, strict=True))
    if size > MOST_BYTES:
        asked = ", ".join(map(str, specs))
        raise CandidateError(
            f"a request of {asked:.200} takes {size:,} bytes; made-up requests take at most "
            f"{MOST_BYTES:,}"
        )
    made = {}
    for spec, dtype, sizes in zip(specs, types, shapes, strict=True):
        if dtype.kind == "f":
            array = loud * rng.standard_normal(sizes, np.float32)
            made[spec.name] = array.astype(dtype, copy=False)
        else:
            made[spec.name] = rng.integers(0, 2, sizes, np.int8).astype(dtype)
    return made if numbers is None else numbers.within(made)


def mates(
    requests: Sequence[Tensors], specs: Sequence[TensorSpec], numbers: RowNumbers | None = None
) -> Iterator[Tensors]:
    """Yield batch mates for the first of some requests, without end, scaled up by `LOUD`.

    Args:
        requests: Requests of one row each, of which those of the first one's shapes can be mates; if there
            are none, the mates are random.
        specs: Inputs of one request, without open dimensions.
        numbers: Check that the mates must pass; None for none.
    """
    rng = np.random.default_rng(1)
    while not requests:
        yield made_up(specs, 1, rng, LOUD, numbers)
    first, *others = requests
    alike = [one for one in others if all(one[name].shape == first[name].shape for name in first)]
    for request in itertools.cycle((*alike, first)):
        with np.errstate(over="ignore"):
            loud = {
                n: a * a.dtype.type(LOUD) if a.dtype.kind == "f" else a for n, a in request.items()
            }
        yield loud if numbers is None else numbers.within(loud)


def stacked(requests: Sequence[Tensors]) -> dict[str, Array]:
    """Return requests as one, with their rows one after another."""
    return {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}


def unlike_alone(answers: Tensors, alone: Tensors, rows: int, again: Callable[[], Tensors]) -> str:
    """Say why the first row's answer in a batch isn't its answer alone; "" where it is.

    Args:
        answers: Answers of the batch.
        alone: Answer of the first row alone.
        rows: Number of rows of the batch.
        again: Function that asks for the first row alone once more, which is done if the answers differ.
    """
    for name, array in answers.items():
        if array.shape[:1] != (rows,):
            return f"the output {name!r} of a batch of {rows} has the shape {list(array.shape)}"
    if unlike_rows({name: array[:1] for name, array in answers.items()}, alone).any():
        if unlike_rows(again(), alone).any():
            return (
                "the model answers the same request differently each time, as one does that draws random numbers "
                "or counts its calls"
            )
        return f"in a batch of {rows} the answers depend on the batch mates"
    return ""
