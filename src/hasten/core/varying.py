"""Outputs whose size depends on a sample's values, summarized in arrays of one size for each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import Uneven

_AXES = 32
"""Most axes that numpy's arrays have had; of further ones the digest tells nothing."""
_PARTS = 257
"""Parts that an output's numbers are dealt to in turn; prime, so that numbers that stand in a column are in many."""
_SUMS = 4
"""Sums of a part's numbers, each with weights of its own."""
_BLOCK = 256 * _PARTS
"""Numbers that are summed up at once."""
_UNLIKE_ANY_SIZE = -1


class Summarized(dict[str, Array]):
    """Outputs by name, each of shape `(n, ...)`, and summaries of those whose size depends on a sample's values.

    Only outputs of one size are in the mapping, so that a metric reads no other.

    Args:
        outputs: Outputs of one size.
        summed: Summaries of the others by name, each of shape `(n, ...)`; see `summaries`.

    Attributes:
        summed: Summaries of the others by name.
    """

    def __init__(self, outputs: Tensors, summed: Tensors) -> None:
        super().__init__(outputs)
        self.summed = summed


def with_summaries(outputs: Tensors) -> dict[str, Array]:
    """Return outputs together with the summaries that they have."""
    return {**outputs, **(outputs.summed if isinstance(outputs, Summarized) else {})}


def first_of(outputs: Tensors) -> Tensors:
    """Return the answer to the first sample, with its summaries."""
    if not isinstance(outputs, Summarized):
        return {name: array[:1] for name, array in outputs.items()}
    firsts = ({n: a[:1] for n, a in one.items()} for one in (outputs, outputs.summed))
    return Summarized(*firsts)


def of_one_size(outputs: Tensors, varying: Sequence[str]) -> dict[str, Array]:
    """Return the outputs that models are compared by: those whose size doesn't depend on a sample's values."""
    return {name: array for name, array in outputs.items() if name not in varying}


def of_sample(outputs: Tensors, place: int, varying: Sequence[str]) -> dict[str, Array]:
    """Return the outputs for one sample without a batch axis; outputs of varying size have none.

    Args:
        outputs: Outputs by name.
        place: Place of the sample in the batch, 0 where an output varies.
        varying: Names of outputs whose size depends on a sample's values.
    """
    return {n: array if n in varying else array[place] for n, array in outputs.items()}


def summaries(name: str, array: Array) -> dict[str, Array]:
    """Summarize an output's answer to one sample in arrays of one size, whatever size it has.

    Args:
        name: Name of the output.
        array: Answer to the sample.

    Returns:
        Summaries by name. The first holds int64 `(1, 34)`: the shape, and a digest of integers, and of the places of
        NaN and infinite numbers. The second holds float64 `(1, 1029)`, zeros for integers: the largest absolute
        number, which the others are compared relative to, and of each of 257 parts four sums of the finite numbers
        times weights of their places. The first weight is 1 or -1, so one number that moves shows as it would in an
        output of one size, and roundings add up with the root of a part's count of numbers only.
    """
    sizes = [array.ndim, *array.shape[:_AXES]]
    shape = np.array([*sizes, *[_UNLIKE_ANY_SIZE] * (_AXES + 1 - len(sizes))], np.int64)
    told, flat = hashlib.blake2b(digest_size=8), np.ascontiguousarray(array).reshape(-1)
    largest, sums = 0.0, np.zeros((_PARTS, _SUMS))
    if array.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    # The same weights for each answer, so that equal answers have equal sums.
    rng = np.random.default_rng(_SUMS)
    for first in range(0, flat.size, _BLOCK):
        block = flat[first : first + _BLOCK]
        if array.dtype.kind in "biu":
            told.update(block.astype(np.int64).tobytes())
            continue
        block = block.astype(np.float64)
        if not np.isfinite(block).all():
            places = np.flatnonzero(~np.isfinite(block))
            told.update((first + places).tobytes())
            told.update(np.nan_to_num(block[places], nan=2, posinf=1, neginf=-1).astype(np.int8))
            block[places] = 0
        largest = max(largest, float(np.abs(block).max()))
        weights = rng.uniform(-1, 1, (len(block), _SUMS))
        weights[:, 0] = np.copysign(1, weights[:, 0])
        weights *= block[:, np.newaxis]
        weights.resize((-(-len(block) // _PARTS) * _PARTS, _SUMS), refcheck=False)
        sums += weights.reshape(-1, _PARTS, _SUMS).sum(axis=0)
    return {
        f"{name}: its shape": np.append(shape, np.frombuffer(told.digest(), np.int64))[np.newaxis],
        f"{name}: sums over it": np.append(largest, sums)[np.newaxis],
    }


def uneven(name: str, one: Sequence[int], other: Sequence[int]) -> Uneven:
    """Return the error of an output that has one shape for a sample and another for another sample."""
    return Uneven(
        f"output {name!r} has the shape {list(one)} for one sample and {list(other)} for another",
        name,
    )


def in_words(names: Sequence[str]) -> str:
    """Return outputs for a sentence: "the output 'boxes', whose size depends on the sample's values"."""
    several = "s" if len(names) > 1 else ""
    listed = ", ".join(map(repr, names))
    return f"the output{several} {listed}, whose size depends on the sample's values"


def no_batches(names: Sequence[str]) -> str:
    """Say why samples aren't put into one batch."""
    return f"nothing says which sample of a batch each row belongs to in {in_words(names)}"


def not_covered(names: Sequence[str]) -> str:
    """Say what a certificate leaves out; "" where that is nothing."""
    return f"this doesn't cover {in_words(names)}" if names else ""


def note_of(names: Sequence[str]) -> str:
    """Return a note for the result of a run."""
    theirs = "their" if len(names) > 1 else "its"
    return (
        f"no certificate covers {in_words(names)}: exact candidates repeat {theirs} shape, {theirs} whole numbers, and sums "
        f"over {theirs} other numbers on every sample compared, but nothing says how far inexact ones, such as int8, change "
        f"{theirs} numbers"
    )
