"""The largest and the smallest of neighbouring numbers, as numpy finds them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from tests.support.plans import answers, planned

from hasten.engines.compiled.operators.reductions import Reduce
from hasten.engines.compiled.tensors import Access

COUNTS = (1, 15, 16, 17, 31, 32, 47, 48, 80, 100)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32"])
def test_extremes_of_any_number_of_neighbours_equal_numpys(dtype: str) -> None:
    random = np.random.default_rng(3)
    given: dict[str, Any] = {}
    made, operations, wanted = {}, [], {}
    kinds: tuple[Literal["maximum", "minimum"], ...] = ("maximum", "minimum")
    for count in COUNTS:
        array = (random.standard_normal((9, count)) * 100).astype(dtype)
        if dtype.startswith("float"):
            for row in range(4):  # one at each end, one within, one behind the whole lines
                array[row, (0, -1, count // 2, count // 16 * 16 - 1)[row]] = np.nan
            array[4, count // 3], array[5, -1] = np.inf, -np.inf
        given[f"x{count}"] = array
        for kind in kinds:
            name = f"{kind}{count}"
            read = Access(f"x{count}", (count, 1), 0)
            operations.append(Reduce(kind, read, name, (9,), (count,)))
            made[name] = (dtype, 9)
            wanted[name] = array.max(axis=1) if kind == "maximum" else array.min(axis=1)
    flat = {name: array.ravel() for name, array in given.items()}
    found = answers(*planned(operations, {}, flat, made), flat)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
