"""Functions of sums that nothing has rounded yet: a byte of the sum, then a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Value
from hasten.engines.compiled.nodes.int8.values import Bytes, Pending, codes_of

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Node

_LARGEST, _SMALLEST = 2.0**16, 2.0**-20
"""Ends of the magnitudes at which a function is looked at, in units of the result's range."""
_PLACES = 1024
"""Magnitudes that are looked at."""
_CLOSER = 65
"""Numbers between two of them that are looked at next."""


@dataclass(frozen=True)
class Curve(Pending):
    """Function of each sum, such as hard-swish behind a convolution.

    Sums are rounded to bytes of the range beyond which the result's byte no longer changes, or are read
    from the bytes to which something rounded them already; a table makes the result of those.

    Attributes:
        root: The sums.
        function: Function of an array of numbers.
    """

    root: Pending | None = None
    function: Callable[[Array], Array] | None = None

    def values(self, numbers: Array) -> Array:
        """Return the function's values within the bounds."""
        assert self.function is not None
        return np.clip(self.function(numbers), np.float32(self.low), np.float32(self.high))

    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale, each of which depends on one of a sum."""
        assert self.root is not None
        known = self.node.graph.rounded.get(id(self.root))
        if known is not None:
            given = known[1]
        else:
            step, middle = grid(self.values, scale, zero)
            given = self.root.rounded(middle, step)
        made = Bytes(given.root, given.last, self.values(given.table))
        return made.rounded(self.node.graph, self.shape, zero, scale)


def grid(function: Callable[[Array], Array], scale: float, zero: int) -> tuple[float, int]:
    """Return the step and the byte of 0 for what a function is taken of.

    Args:
        function: The function.
        scale: Step of its results.
        zero: Their byte of 0.
    """
    half = np.geomspace(_SMALLEST, _LARGEST, _PLACES) * 255 * scale
    places = np.concatenate([-half[::-1], [0.0], half])
    low = _end(function, places, scale, zero)
    high = -_end(lambda numbers: function(-numbers), places, scale, zero)
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return scale, 128
    # With numbers on both sides, rounding the byte of 0 up leaves the top one step less.
    step = float(np.float32((high - low) / (254 if low < 0 < high else 255)))
    return step, min(255, int(np.ceil(-low / step - 1e-3)))


def _end(function: Callable[[Array], Array], places: Array, scale: float, zero: int) -> float:
    """Return the largest number up to which a function's byte is that of the first place."""
    for _ in range(3):
        codes = codes_of(function(places.astype(np.float32)), zero, scale)
        changed = np.flatnonzero(codes != codes[0])
        if not len(changed):
            return 0.0
        at = int(changed[0])
        places = np.linspace(places[at - 1], places[at], _CLOSER)
    return float(places[0])


def taken(node: Node) -> bool:
    """Take an operator over values that are functions of the same sums, or those sums themselves."""
    named = {name: node.graph.values[name] for name in node.proto.input if name}
    moving = {name: value for name, value in named.items() if value.constant is None}
    parts = {name: _part(value) for name, value in moving.items()}
    roots = {id(part[0]) for part in parts.values() if part is not None}
    shapes = {value.shape for value in moving.values()}
    if None in parts.values() or len(roots) != 1 or len(shapes) != 1:
        return False
    if any(
        value.constant is not None
        and (value.constant.size != 1 or value.constant.ndim > len(next(iter(shapes))))
        for value in named.values()
    ):
        return False
    functions = {name: part[1] for name, part in parts.items() if part is not None}
    constants = {
        name: value.constant.reshape(())
        for name, value in named.items()
        if value.constant is not None
    }

    def function(numbers: Array) -> Array:
        given = {name: one(numbers) for name, one in functions.items()}
        with np.errstate(all="ignore"):
            found = node.evaluated(constants | given)
        return np.zeros(0, np.float32) if found is None else np.asarray(found[0], np.float32)

    trial = np.linspace(-_LARGEST, _LARGEST, 101, dtype=np.float32)
    made = function(trial)
    if made.shape != trial.shape or not np.isfinite(made).all():
        return False
    value = next(iter(moving.values()))
    root = next(part[0] for part in parts.values() if part is not None)
    curve = Curve(node, value.shape, root=root, function=function)
    node.give(Value("", "float32", value.shape, value.batch, pending=curve))
    return True


def _part(value: Value) -> tuple[Pending, Callable[[Array], Array]] | None:
    """Return the sums behind a value, and the function of them that it is; None for other values."""
    pending = value.pending
    if pending is None or value.dtype != "float32":
        return None
    if isinstance(pending, Curve):
        assert pending.root is not None
        return pending.root, pending.values
    low, high = np.float32(pending.low), np.float32(pending.high)
    return pending.uncut or pending, lambda numbers: np.clip(numbers, low, high)
