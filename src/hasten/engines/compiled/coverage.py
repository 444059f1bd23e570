"""Tensors of a plan that are read, or answered with, without proof that all of them was written.

What isn't written has whatever was in that memory before, such as other clients' numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.maps import merged
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import Access, product

_MOST_CELLS = 1 << 25
"""Largest number of cells that are looked at for all tensors of a plan: tenths of a second."""


def unproven(plan: Plan) -> dict[int, list[str]]:
    """Return names of such tensors by the number of the first step that writes a part of them.

    Args:
        plan: Plan that was checked.
    """
    first: dict[str, int] = {}
    parts: dict[str, list[_Part]] = {}
    found: dict[int, list[str]] = {}
    left = _MOST_CELLS

    def settle(name: str) -> None:
        nonlocal left
        written = parts.pop(name, None)
        if written is None:
            return
        size = plan.tensor(name).size
        if any(part.count == size and part.apart for part in written):
            return
        cells = _Cells.of(size, written)
        if sum(part.count for part in written) >= size and cells.cost <= left:
            left -= cells.cost
            if cells.filled():
                return
        found.setdefault(first[name], []).append(name)

    for number, operation in enumerate(plan.operations):
        for name in operation.reads:
            settle(name)
        partly = dict[str, list[_Part]]()
        for access, shape in operation.parts:
            partly.setdefault(access.tensor, []).append(_Part.of(access, shape))
        for name in operation.writes:
            known = name in first and name not in parts
            first.setdefault(name, number)
            if name not in partly:
                parts.pop(name, None)
            elif not known:
                parts.setdefault(name, []).extend(partly[name])
    for name in plan.outputs:
        settle(name)
    return found


@dataclass(frozen=True)
class _Part:
    """Elements of a tensor that loops write.

    Attributes:
        offset: The first of them.
        axes: Stride, above 0, and size of each loop, the least stride first.
    """

    offset: int
    axes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, access: Access, shape: tuple[int, ...]) -> _Part:
        """Return the elements of an access that lies within its tensor."""
        shape, (access,) = merged(shape, [access])
        axes = [(abs(a), n) for a, n in zip(access.strides, shape, strict=True) if a and n > 1]
        back = (a * (n - 1) for a, n in zip(access.strides, shape, strict=True) if a < 0)
        return cls(access.offset + sum(back), tuple(sorted(axes)))

    @property
    def count(self) -> int:
        """Iterations of the loops."""
        return product(size for _, size in self.axes)

    @property
    def apart(self) -> bool:
        """Whether each iteration writes an element of its own, as is seen at a glance."""
        reach = 0
        for stride, size in self.axes:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
        return True

    @property
    def run(self) -> int:
        """Neighbours that it writes at least, wherever it writes one."""
        return self.axes[0][1] if self.axes and self.axes[0][0] == 1 else 1


@dataclass(frozen=True)
class _Cells:
    """Equal cells of a tensor, each of which a part writes whole or not at all.

    Attributes:
        count: Number of cells.
        parts: Parts, in cells.
    """

    count: int
    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, size: int, parts: list[_Part]) -> _Cells:
        """Return the largest cells of a tensor of some size for which that holds."""
        cell = size
        for part in parts:
            further = (stride for stride, _ in part.axes if stride > 1 or part.run == 1)
            cell = math.gcd(cell, part.offset, part.run, *further)
        made = []
        for part in parts:
            axes = [(max(1, a // cell), n // cell if a == 1 else n) for a, n in part.axes]
            made.append(_Part(part.offset // cell, tuple(axes)))
        return cls(size // cell, tuple(made))

    @property
    def cost(self) -> int:
        """Cells that `filled` looks at."""
        return self.count + sum(part.count for part in self.parts)

    def filled(self) -> bool:
        """Whether all cells are written."""
        written: Array = np.zeros(self.count, np.bool_)
        for part in self.parts:
            strides, shape = zip(*part.axes, strict=True) if part.axes else ((0,), (1,))
            as_strided(written[part.offset :], shape, strides)[...] = True
        return bool(written.all())
