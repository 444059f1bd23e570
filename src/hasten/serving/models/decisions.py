"""Write decisions as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hasten.errors import InputError


def as_json(decision: Any) -> bytes:
    """Return a decision as JSON; arrays become nested lists.

    Raises:
        InputError: the decision has NaN or infinite values, or is no JSON value.
    """
    import orjson

    try:
        data = orjson.dumps(_plain(decision), option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InputError(f"the decision can't be written as JSON: {error}") from error
    return data


def _plain(value: Any) -> Any:
    """Replace arrays that JSON can't represent, and refuse numbers that it can't."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        if value.dtype == np.float16:
            value = value.astype(np.float32)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError("the decision has NaN or infinite values, which JSON can't represent")
        return np.ascontiguousarray(value)
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise InputError("the decision has NaN or infinite values, which JSON can't represent")
    return value
