"""Constants of an IR, and the integers that weights were stored as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import NotCovered

_DEEPEST = 12
"""Largest number of operations between a constant and what reads it."""
_NARROW = ("i4", "u4", "u1", "nf4", "f8e4m3", "f8e5m2", "bf16")


@dataclass(frozen=True)
class Known:
    """Numbers that don't depend on the inputs.

    Attributes:
        array: The numbers.
        levels: int8 of the same shape, integers that they are multiples of; None for plain numbers.
        steps: float32 of the same shape, what one unit of each integer stands for.
    """

    array: Array
    levels: Array | None = None
    steps: Array | None = None

    def shaped(self, shape: tuple[int, ...]) -> Known:
        """Return the same numbers under another shape."""
        return self._each(lambda array: array.reshape(shape))

    def turned(self, order: tuple[int, ...]) -> Known:
        """Return them with their axes in another order."""
        return self._each(lambda array: np.ascontiguousarray(array.transpose(order)))

    def _each(self, change: Any) -> Known:
        if self.levels is None or self.steps is None:
            return Known(change(self.array))
        return Known(change(self.array), change(self.levels), change(self.steps))


@dataclass(frozen=True)
class Ranges:
    """Rounding of a FakeQuantize.

    Attributes:
        step: float32, real number that one step stands for, one or one for each channel.
        zero: Byte of 0, as many; of uint16 where levels have 16 bits.
        high: float32, largest number that comes out, as many.
    """

    step: Array
    zero: Array
    high: Array

    def flat(self, array: Array) -> Array:
        """Return one of them as ONNX wants it: without an axis where there is one for all."""
        return array.reshape(()) if array.size == 1 else array.reshape(-1)

    def equals(self, other: Ranges) -> bool:
        """Return whether another one is the same but for the last bits."""
        same = np.array_equal(self.zero, other.zero)
        return same and np.allclose(self.step, other.step, rtol=1e-6, atol=0)


def refuse(operation: Any, why: str) -> NotCovered:
    """Return the error that leaves a model to other engines."""
    kind, name = operation.get_type_name(), operation.get_friendly_name()
    return NotCovered(f"the compiled engine doesn't take {kind} (operation {name!r}): {why}")


def known(value: Any, depth: int = 0) -> Known | None:
    """Return the numbers of an output of an operation; None where they depend on inputs.

    Args:
        value: The output.
        depth: Operations between it and what asks.

    Raises:
        NotCovered: a constant's type isn't covered.
    """
    operation = value.get_node()
    kind = operation.get_type_name()
    if kind == "Constant":
        if operation.get_element_type().get_type_name() in _NARROW:
            raise refuse(operation, f"constants of {operation.get_element_type().get_type_name()}")
        return Known(np.array(operation.get_data()))
    if kind not in _FOLDED or depth == _DEEPEST:
        return None
    given = []
    for one in operation.input_values():
        found = known(one, depth + 1)
        if found is None:
            return None
        given.append(found)
    made: Known | None = _FOLDED[kind](operation, *given)
    return made


def _convert(operation: Any, given: Known) -> Known | None:
    wanted = operation.get_output_element_type(0).to_dtype()
    array = given.array.astype(wanted)
    whole = given.array
    if whole.dtype.kind in "iu" and whole.dtype.itemsize == 1 and array.dtype == np.float32:
        return replace(_integers(whole.astype(np.int64), np.float32(1)), array=array)
    return Known(array)


def _integers(whole: Array, step: Array | np.float32) -> Known:
    """Return multiples of steps; their integers too, where those are bytes with a sign."""
    steps = np.broadcast_to(step.astype(np.float32), whole.shape)
    array = np.asarray(whole.astype(np.float32) * steps)
    if whole.size and whole.min() >= -128 and whole.max() <= 127:
        return Known(array, whole.astype(np.int8), steps)
    return Known(array)


def _subtract(operation: Any, given: Known, other: Known) -> Known | None:
    if given.array.dtype != other.array.dtype:
        return None
    array = given.array - other.array
    if array.dtype == np.float32 and array.shape == given.array.shape:
        whole = np.rint(array)
        if (whole == array).all() and np.abs(whole).max(initial=0) < 1 << 20:
            return _integers(whole.astype(np.int64), np.float32(1))
    return Known(array)


def _multiply(operation: Any, given: Known, other: Known) -> Known | None:
    for one, factor in ((given, other), (other, given)):
        if one.levels is None or one.steps is None or factor.array.dtype != np.float32:
            continue
        steps = one.steps * factor.array
        if steps.shape == one.levels.shape and (steps > 0).all():
            return Known(one.levels.astype(np.float32) * steps, one.levels, steps)
    if given.array.dtype != other.array.dtype:
        return None
    return Known(given.array * other.array)


def _reshape(operation: Any, given: Known, shape: Known) -> Known | None:
    return given.shaped(tuple(operation.output(0).get_partial_shape().to_shape()))


def _transpose(operation: Any, given: Known, order: Known) -> Known | None:
    axes = tuple(int(one) for one in order.array.reshape(-1))
    return given.turned(axes or tuple(range(given.array.ndim))[::-1])


def _fake_quantize(operation: Any, given: Known, *ends: Known) -> Known | None:
    """Round weights as the operation does."""
    low, high, out_low, out_high = (one.array.astype(np.float64) for one in ends)
    steps = operation.get_attributes()["levels"] - 1
    if steps < 1 or not (high > low).all() or not (out_high > out_low).all():
        return None
    numbers = given.array.astype(np.float64)
    place = np.rint(np.clip((numbers - low) / (high - low), 0, 1) * steps)
    step = (out_high - out_low) / steps
    zero = np.rint(-out_low / step)
    if (np.abs(-out_low / step - zero) > _WHOLE).any():
        return Known((place * step + out_low).astype(np.float32))
    return _integers((place - zero).astype(np.int64), np.asarray(step, np.float32))


_WHOLE = 0.02
"""Most that a zero may lie beside a level and be called one, in steps."""
_FOLDED: dict[str, Any] = {
    "Convert": _convert,
    "FakeQuantize": _fake_quantize,
    "Multiply": _multiply,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Subtract": _subtract,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""Operations over constants that are calculated here."""


def ranges(operation: Any) -> tuple[Ranges, Ranges]:
    """Return how a FakeQuantize of activations rounds, and what its levels stand for.

    A level is `step * (byte - zero)`, where the byte of 0 is the nearest whole number: another grid of the
    same step where the operation's own has no level at 0.

    Raises:
        NotCovered: its ends aren't constant, or there is no such grid.
    """
    levels = int(operation.get_attributes()["levels"])
    if not (2 <= levels <= 1 << 8 or levels == 1 << 16):
        raise refuse(operation, f"it has {levels} levels")
    ends = [known(operation.input_value(place)) for place in range(1, 5)]
    if any(one is None for one in ends):
        raise refuse(operation, "its range isn't constant")
    arrays = [one.array.astype(np.float64) for one in ends if one is not None]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    rank = len(operation.input_value(0).get_partial_shape())
    along = [axis + rank - len(shape) for axis, size in enumerate(shape) if size > 1]
    if along not in ([], [1]):
        raise refuse(operation, f"its range has shape {list(shape)}")
    low, high, out_low, out_high = (np.broadcast_to(one, shape).reshape(-1) for one in arrays)
    return _grid(operation, low, high, levels), _grid(operation, out_low, out_high, levels)


def _grid(operation: Any, low: Array, high: Array, levels: int) -> Ranges:
    if not (np.isfinite([low, high]).all() and (high > low).all()):
        raise refuse(operation, "its range is empty or isn't a number")
    step = ((high - low) / (levels - 1)).astype(np.float32)
    zero = np.rint(-low / ((high - low) / (levels - 1)))
    dtype = np.uint8 if levels <= 1 << 8 else np.uint16
    if not (step > 0).all() or zero.min() < 0 or zero.max() > np.iinfo(dtype).max:
        raise refuse(operation, f"its range has no 0, from {low.max():g} to {high.min():g}")
    return Ranges(step, zero.astype(dtype), ((levels - 1 - zero) * step).astype(np.float32))
