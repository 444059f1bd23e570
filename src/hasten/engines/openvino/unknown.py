"""NaN in inputs of OpenVINO, whose kernels make ordinary numbers of it, such as 0 in a Relu."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import BeyondRange

_TAKES_NAN = b'type="IsNaN"'


def takes_nan(path: Path) -> bool:
    """Whether a graph, given as IR, looks for NaN itself, as to replace missing values."""
    return _TAKES_NAN in path.read_bytes()


def check_nan(name: str, flat: Array) -> None:
    """Check that floats of an input, `(n,)`, have no NaN, since the answer might not show it.

    Raises:
        BeyondRange: one is NaN.
    """
    if flat.size and np.isnan(np.maximum.reduce(flat)):
        raise BeyondRange(
            f"OpenVINO makes ordinary numbers of NaN, and the input {name!r} has one: replace it before the call, or "
            "use another engine"
        )
