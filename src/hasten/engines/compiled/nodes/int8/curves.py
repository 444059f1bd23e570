"""Functions of sums that nothing has rounded yet: a byte of the sum, then a table.

A leaky ReLU of products needs neither: its slope is part of the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.nodes.int8.pending import PendingNode, Sums
from hasten.engines.compiled.nodes.int8.sums import Products
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.operators.int8.numbers16 import Rounding16
from hasten.engines.compiled.tensors import product
from hasten.engines.compiled.values import Bytes, Pending, Value, byte_codes

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Node

ONE_BY_ONE = frozenset(
    [
        "Abs",
        "Add",
        "Celu",
        "Ceil",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ]
)
"""Operators of which each result depends on one element of each input."""
_LARGEST, _SMALLEST = 2.0**16, 2.0**-20
"""Ends of the magnitudes at which a function is looked at, in units of the result's range."""
_PLACES = 1024
"""Magnitudes that are looked at."""
_CLOSER = 65
"""Numbers between two of them that are looked at next."""


@dataclass(frozen=True)
class Curve(PendingNode):
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


@dataclass(frozen=True)
class Sloped(Curve, Sums):
    """Sums of products, of which those below 0 are multiplied by a slope.

    Attributes:
        slope: float32, each at most 1: one, or one for each channel, and then there is no `function`.
    """

    slope: Array | None = None

    @property
    def last(self) -> bool:
        """Whether the result has the channels last."""
        assert isinstance(self.root, Products)
        return self.root.last

    @property
    def known(self) -> bool:
        """Whether bytes of the sums exist already, so that a table of those is enough."""
        return self.function is not None and id(self.root) in self.node.graph.rounded

    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale."""
        if self.known:
            return Curve.rounded(self, zero, scale)
        return Sums.rounded(self, zero, scale)

    def stored(self, scale: float | Array, rounding: Rounding | Rounding16) -> tuple[str, bool]:
        """Append the operation that rounds them; return the tensor, and whether channels are last."""
        assert isinstance(self.root, Products)
        return self.root.stored(scale, rounding, self.slope)


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
        codes = byte_codes(function(places.astype(np.float32)), zero, scale)
        changed = np.flatnonzero(codes != codes[0])
        if not len(changed):
            return 0.0
        at = int(changed[0])
        places = np.linspace(places[at - 1], places[at], _CLOSER)
    return float(places[0])


def taken(node: Node) -> bool:
    """Take an operator over values that are functions of the same sums, or those sums themselves."""
    return _sloped(node) or _curved(node)


def _sloped(node: Node) -> bool:
    """Take a leaky ReLU of sums of products."""
    value = node.peek(0)
    sums = value.pending
    if not isinstance(sums, Products) or sums.uncut is not None:
        return False
    slope = _slope(node, sums)
    if slope is None:
        return False

    def function(numbers: Array) -> Array:
        return np.where(numbers < 0, numbers * slope, numbers).astype(np.float32)

    sloped = Sloped(
        value.shape, node, root=sums, function=function if slope.size == 1 else None, slope=slope
    )
    node.give(Value("", "float32", value.shape, value.batch, pending=sloped))
    return True


def _slope(node: Node, sums: Products) -> Array | None:
    """Return the slope of a leaky ReLU of sums, or one for each channel; None where a sum can't have it."""
    assert sums.conv is not None
    if node.proto.op_type == "LeakyRelu":
        found = np.array([node.attributes.get("alpha", 0.01)], np.float32)
    elif node.proto.op_type == "PRelu" and node.peek(1).constant is not None:
        found = np.asarray(node.peek(1).constant)
    else:
        return None
    rank = len(sums.shape)
    if found.dtype != np.float32 or not found.size or found.ndim > rank:
        return None
    if not np.isfinite(found).all() or found.max() > 1:
        return None
    if found.size == 1:
        return found.reshape(-1)
    along = (1,) * (rank - found.ndim) + found.shape
    axis = int(np.argmax(along))
    by_channel = axis == 1 if sums.last else product(sums.shape[axis + 1 :]) == 1
    whole = along[axis] == found.size == sums.shape[axis] == sums.conv.channels[1]
    return found.reshape(-1) if by_channel and whole else None


def _curved(node: Node) -> bool:
    """Take any function of one number."""
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
    curve = Curve(value.shape, node, root=root, function=function)
    node.give(Value("", "float32", value.shape, value.batch, pending=curve))
    return True


def _part(value: Value) -> tuple[Pending, Callable[[Array], Array]] | None:
    """Return the sums behind a value, and the function of them that it is; None for other values."""
    pending = value.pending
    if pending is None or value.dtype != "float32":
        return None
    if isinstance(pending, Curve):
        if pending.function is None:
            return None
        assert pending.root is not None
        return pending.root, pending.values
    low, high = np.float32(pending.low), np.float32(pending.high)
    return pending.uncut or pending, lambda numbers: np.clip(numbers, low, high)
