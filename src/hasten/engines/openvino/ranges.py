"""Guard of a session: a request with numbers that a plugin of OpenVINO would calculate wrong with is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.missing_numbers import check_nan
from hasten.errors import BeyondRange


class Bound(NamedTuple):
    """Largest amount of an input's whole numbers with which the answers are right.

    Attributes:
        most: The amount; -1 if the answers are wrong with any.
        why: Words for the operation that sets it, such as "FloorMod (node 'm')"; empty where 32 bits do.
    """

    most: int
    why: str = ""


_LONGEST = Bound(2**31)
_FLOAT32 = float(np.finfo(np.float32).max)
_FLOAT32_BITS = int(np.float64(_FLOAT32).view(np.uint64))
"""Bits of the largest float32 as a float64; those of larger numbers, of NaN and of negative ones are larger."""


class Ranges:
    """Ranges of the numbers in a session's input buffers.

    Args:
        bounds: Function that returns the bounds of whole-number inputs by name, from the number of elements of a
            request's largest input; None if they aren't known.
        with_nan: Names of inputs that may have NaN, since the graph looks for it itself.
    """

    def __init__(
        self, bounds: Callable[[int], Mapping[str, Bound]] | None, with_nan: frozenset[str]
    ) -> None:
        self._bounds = bounds
        self._with_nan = with_nan
        self._buffers: dict[str, Array] = {}
        self._watched: list[tuple[str, Array, int]] = []
        """Inputs to check, by name: numbers without a sign, so that those below 0 are large ones, and the largest
        that needs no second look."""
        self._floats: list[tuple[str, Array]] = []
        """Inputs that are looked through for NaN, by name, `(n,)`."""

    def watch(self, name: str, buffer: Array) -> None:
        """Take the buffer of an input, from now on in place of an earlier one."""
        self._buffers[name] = buffer
        self._watched, self._floats = [], []
        for one, array in self._buffers.items():
            if array.dtype.kind == "f" and one not in self._with_nan:
                self._floats.append((one, array.reshape(-1)))
            if array.dtype == np.float64:
                self._watched.append((one, array.view(np.uint64), _FLOAT32_BITS))
            elif array.dtype.kind in "iu":
                most = min(self._bound(one).most, 2**31 - 1)
                if np.iinfo(array.dtype).max > most:
                    self._watched.append((one, array.view(f"u{array.itemsize}"), most))

    def check(self) -> None:
        """Check the numbers that are in the buffers.

        Raises:
            BeyondRange: one is such that the answer may be wrong.
        """
        for name, array, most in self._watched:
            if array.max(initial=0) > most:
                self._check_numbers(name, self._buffers[name])
        for name, flat in self._floats:
            check_nan("OpenVINO", name, flat)

    def _bound(self, name: str) -> Bound:
        if self._bounds is None:
            return _LONGEST
        elements = max(array.size for array in self._buffers.values())
        return self._bounds(elements).get(name, _LONGEST)

    def _check_numbers(self, name: str, array: Array) -> None:
        if array.dtype == np.float64:
            large = array[np.abs(array) > _FLOAT32]  # NaN stays NaN, and infinity becomes finite
            if large.size:
                raise BeyondRange(
                    f"OpenVINO computes float64 in float32, and the input {name!r} has {large[0]}: give numbers from "
                    f"{-_FLOAT32:g} to {_FLOAT32:g}, or use another engine"
                )
            return
        bound = self._bound(name)
        least, most = max(-bound.most, -(2**31)), min(bound.most, 2**31 - 1)
        for number in (int(array.min()), int(array.max())):
            if not least <= number <= most:
                how = f"{bound.why} in float32" if bound.why else "whole numbers with 32 bits"
                remedy = f"give numbers from {least} to {most}, or " if most >= 0 else ""
                raise BeyondRange(
                    f"OpenVINO computes {how}, and the input {name!r} has {number}: {remedy}use another engine"
                )
