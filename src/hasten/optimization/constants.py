"""Inputs that are the same in all samples, which an engine may take for constants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from hasten.core.model import Model
from hasten.core.sequences import LENGTHS, Sequences
from hasten.core.tensors import Array, TensorSpec
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.spool import CHUNK_BYTES

_WHOLE = re.compile("bool|u?int(8|16|32|64)")
_MOST_NUMBERS = 64
"""Largest number of numbers of such an input: a setting such as a sampling rate has few."""
_AT_ONCE = 64
"""Largest number of samples that are read at once."""


def constant_inputs(
    model: Model, parts: Parts, sequences: Sequences | None
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the inputs of whole numbers that are the same in all samples, with these in C order.

    Inputs with an open dimension or with more than one axis, and states, aren't among them.

    Args:
        model: Model, with the shapes that the data settles.
        parts: All of the data.
        sequences: States to carry, where samples are whole sequences.
    """
    states = sequences.inputs if sequences is not None else ()
    left = {
        spec.name: spec
        for spec, own in zip(model.request, model.inputs, strict=True)
        if own.static and spec.name not in states and _is_setting(spec)
    }
    known: dict[str, Array] = {}
    for samples in (parts.search, parts.calibration, parts.sealed):
        step = start = 0
        while left and start < len(samples):
            read = samples.inputs(range(start, min(start + max(1, step), len(samples))))
            for name, spec in list(left.items()):
                rows = _rows(read, spec, sequences)
                first = known.setdefault(name, rows[0])
                if (rows != first).any():
                    del left[name]
            start += max(1, step)
            step = _step(samples, read)
    return tuple((name, tuple(int(one) for one in known[name])) for name in left)


def _is_setting(spec: TensorSpec) -> bool:
    few = len(spec.shape) <= 1 and 0 < math.prod(spec.sizes) <= _MOST_NUMBERS
    return few and _WHOLE.fullmatch(spec.dtype) is not None


def _rows(read: Mapping[str, Array], spec: TensorSpec, sequences: Sequences | None) -> Array:
    """Return an input's numbers in some samples, in each step that counts, as one row each."""
    array = read[spec.name]
    if sequences is not None and sequences.lengths:
        array = np.concatenate(
            [each[:count] for each, count in zip(array, read[LENGTHS], strict=True)]
        )
    return array.reshape(-1, math.prod(spec.sizes))


def _step(samples: Dataset, read: Mapping[str, Array]) -> int:
    """Return how many samples to read at once, by those that were read."""
    if samples.ragged:
        return 1
    count = len(next(iter(read.values())))
    each_bytes = sum(array.nbytes for array in read.values()) // count
    return max(1, min(_AT_ONCE, CHUNK_BYTES // max(1, each_bytes)))
