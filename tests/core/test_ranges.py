"""Ranges of the numbers in samples."""

import numpy as np
import pytest

from hasten.core.ranges import MOST_COLUMNS, ValueRange, check_ranges, ranges_of
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError

X = TensorSpec("x", "float32", ("n", 2))


def test_rows_have_a_range_for_each_column_over_all_parts() -> None:
    parts = [{"x": np.array([[1.0, 10], [3, np.nan]])}, {"x": np.array([[2, -5.0], [0, np.inf]])}]
    assert ranges_of(parts) == (ValueRange("x", (0.0, -5.0), (3.0, 10.0)),)


def test_pictures_and_wide_rows_have_one_range_for_all() -> None:
    pictures = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    wide = np.ones((2, MOST_COLUMNS + 1), np.float32)
    found = ranges_of([{"x": pictures, "wide": wide}])
    assert found == (ValueRange("x", (0.0,), (119.0,)), ValueRange("wide", (1.0,), (1.0,)))


def test_rows_of_several_lengths_have_one_range() -> None:
    parts = [{"x": np.array([[1, 2, 3]])}, {"x": np.array([[7, 0]])}]
    assert ranges_of(parts) == (ValueRange("x", (0.0,), (7.0,)),)


def test_what_has_no_finite_number_or_is_no_number_has_no_range() -> None:
    nothing = np.full((3, 2), np.nan)
    nothing[:, 0] = 1
    parts = [{"x": nothing, "t": np.array([["a"]], object), "b": np.ones((2, 2), bool)}]
    assert ranges_of(parts) == ()
    assert ranges_of([]) == ()


def test_a_number_outside_its_own_column_leaves_the_range_and_a_missing_one_does_not() -> None:
    known = ValueRange("x", (0.0, 100.0), (1.0, 200.0))
    assert not known.leaves(np.array([[0.5, 150.0], [1.0, np.nan]]))
    assert known.leaves(np.array([[0.5, 150.0], [150.0, 150.0]]))
    assert known.leaves(np.ones((1, 3)))
    assert not known.leaves(np.zeros((0, 2)))
    assert ValueRange("x", (0.0,), (1.0,)).leaves(np.array([[0.5, -1.0]]))
    assert not known.leaves(np.array([0.5, 150.0]))  # a request of an input without a batch


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ((0.0,), (1.0, 2.0), "1 ranges of the input 'x'"),
        ((), (), "0 ranges of the input 'x'"),
        ((float("nan"),), (1.0,), "a range of the input 'x' without an end"),
        ((2.0,), (1.0,), "a range of the input 'x' that is empty"),
    ],
)
def test_a_range_that_cannot_be_is_refused(
    low: tuple[float, ...], high: tuple[float, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check_ranges([ValueRange("x", low, high)], [X])
    with pytest.raises(InputError, match="range of the input 'y', which isn't there"):
        check_ranges([ValueRange("y", (0.0,), (1.0,))], [X])
