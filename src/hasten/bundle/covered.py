"""Batch sizes that a bundle's certificate covers, and the cutting of larger requests into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.bundle.batch_mates import share_batch_axis
from hasten.bundle.manifest import Manifest
from hasten.core.tensors import Array, Tensors, TensorSpec

_MOST = 1 << 16
_OLD = "lone samples only: it was certified before batches were tested"


def certified_sizes(manifest: Manifest) -> tuple[int, ...]:
    """Return the batch sizes that a bundle's certificate names, ascending; 1 is always one of them."""
    named = (manifest.certificate or {}).get("batch_sizes")
    sizes = named if isinstance(named, list) else []
    return tuple(sorted({1, *(n for n in sizes if type(n) is int and 1 <= n <= _MOST)}))


def batches_in_words(manifest: Manifest) -> str:
    """Return what a certificate says about batches, in one line."""
    said = (manifest.certificate or {}).get("batches")
    return said if isinstance(said, str) else _OLD


def has_batch_axis(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], request: Sequence[TensorSpec]
) -> bool:
    """Whether requests have an open batch axis, in which the certified request has one sample."""
    lone = all(spec.shape[:1] == (1,) for spec in request)
    return lone and share_batch_axis(inputs, outputs)


def not_covered(rows: int, sizes: Sequence[int]) -> str:
    """Say that a batch isn't of a certified size."""
    return f"{rows} rows at once: not certified at this batch size, but at {listed(sizes)}"


def listed(sizes: Sequence[int]) -> str:
    """Return batch sizes as people read them: "1, 2 and 4"."""
    *others, last = map(str, sizes)
    return f"{', '.join(others)} and {last}" if others else last


def split(rows: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the batches that rows are cut into, the largest first."""
    parts = []
    for size in sorted(sizes, reverse=True):
        count, rows = divmod(rows, size)
        parts += [size] * count
    return parts


def cut(tensors: Tensors, rows: int, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Cut a request of several rows into requests of the sizes, the largest first."""
    parts, begin = [], 0
    for size in split(rows, sizes):
        parts.append({name: array[begin : begin + size] for name, array in tensors.items()})
        begin += size
    return parts


def joined(answers: Sequence[Tensors]) -> dict[str, Array]:
    """Join answers to the parts of a request."""
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}
