"""NaN in a request: an engine that would make ordinary numbers of it refuses the request."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import BeyondRange

ROUNDED = "hasten.rounded"
"""Key in an ONNX file's metadata, which passes write where they round numbers that the original has in floats."""
_INFINITY_16, _NEGATIVE_INFINITY_16 = 0x7C00, 0xFC00
"""Bits of float16's infinities."""


def check_nan(runtime: str, name: str, floats: Array) -> None:
    """Check that floats of an input have no NaN, since the answer might not show it.

    Args:
        runtime: Begin of the message, which names the runtime: "OpenVINO".
        name: Name of the input.
        floats: Its numbers, in any shape.

    Raises:
        BeyondRange: one is NaN.
    """
    if floats.size and _has_nan(floats.reshape(-1)):
        raise BeyondRange(
            f"{runtime} makes ordinary numbers of NaN, and the input {name!r} has one: replace it before the call, or "
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
