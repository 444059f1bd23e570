"""NaN in inputs of OpenVINO, whose kernels make ordinary numbers of it, such as 0 in a Relu."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import BeyondRange

_TAKES_NAN = b'type="IsNaN"'
_INFINITY_16, _NEGATIVE_INFINITY_16 = 0x7C00, 0xFC00
"""Bits of float16's infinities."""


def takes_nan(path: Path) -> bool:
    """Whether a graph, given as IR, looks for NaN itself, as to replace missing values."""
    return _TAKES_NAN in path.read_bytes()


def check_nan(name: str, flat: Array) -> None:
    """Check that floats of an input, `(n,)`, have no NaN, since the answer might not show it.

    Raises:
        BeyondRange: one is NaN.
    """
    if flat.size and _has_nan(flat):
        raise BeyondRange(
            f"OpenVINO makes ordinary numbers of NaN, and the input {name!r} has one: replace it before the call, or "
            "use another engine"
        )


def _has_nan(flat: Array) -> bool:
    if flat.dtype != np.float16:
        return bool(np.isnan(np.maximum.reduce(flat)))
    # Their bits are compared ten times as fast: NaN's are above infinity's, and negative NaN's above -infinity's.
    return bool(
        flat.view(np.int16).max() > _INFINITY_16
        or flat.view(np.uint16).max() > _NEGATIVE_INFINITY_16
    )
