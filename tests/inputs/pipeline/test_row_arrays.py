"""Arrays of rows are refused where the step `row` refuses one of their rows, and infinite numbers are let through."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.row_arrays import RowArrays
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.standardize import Standardize

NAMES = ("age", "income", "years")
STEPS = [
    Row(NAMES, missing, dtype=dtype, required=required, infinite=infinite)  # type: ignore[arg-type]
    for missing, required in (("refuse", ()), ("nan", ()), ("nan", ("income",)))
    for dtype in ("float32", "float64")
    for infinite in ("refuse", "allow")
]
ODD = st.sampled_from([0.0, -1.5, 3e38, -3e38, math.nan, math.inf, -math.inf])
MANY = np.zeros((2000, 3))


def first_refused(step: Row, rows: Array) -> tuple[int, str] | None:
    """Return the first row that the step refuses, and the column that it names."""
    for place, row in enumerate(rows):
        try:
            step(row)
        except InputError as error:
            return place, str(error).split("'")[1]
    return None


@given(st.lists(st.tuples(ODD, ODD, ODD), min_size=1, max_size=5), st.booleans())
@example([(3e38, 3e38, 3e38)], False)
@example([(0.0, math.nan, math.inf)], True)
def test_an_array_is_refused_where_a_row_of_it_is(rows: list[Any], many: bool) -> None:
    for step in STEPS:
        given_rows = np.array(rows, step.dtype)
        want = first_refused(step, given_rows)
        if many:
            sound = MANY.astype(step.dtype)
            assert first_refused(step, sound[:1]) is None
            given_rows = np.concatenate([sound, given_rows])
            want = None if want is None else (len(sound) + want[0], want[1])
        found = RowArrays(step).refused(given_rows)
        assert (None if found is None else (found[0], found[1].split("'")[1])) == want


def said(check: RowArrays, rows: Array) -> str:
    """Return the line that refuses rows; empty for rows that are let through."""
    try:
        check.check("x", rows)
    except InputError as error:
        return str(error)
    return ""


def test_the_line_names_the_row_and_the_column() -> None:
    check = RowArrays(Row(NAMES))
    nan, large = np.array([[1, math.nan, 2]]), np.array([[1, 2, 3], [4, 5, -math.inf]])
    assert said(check, nan) == "input 'x': the column 'income' has no value"
    assert said(check, large) == (
        "input 'x': row 1: the column 'years' isn't a number that float32 holds"
    )
    assert said(check, large[:1]) == ""
    for row in ([3e38, 3e38, 3e38], [-3e38, 3e38, 1]):
        assert said(check, np.array([row], np.float32)) == ""
    assert said(check, np.array([[math.inf, -math.inf, 1]], np.float32)) == (
        "input 'x': the column 'age' isn't a number that float32 holds"
    )


def test_only_a_pipeline_of_rows_that_refuse_something_is_checked() -> None:
    specs = [TensorSpec("x", "float32", ("batch", 3))]
    assert RowArrays.of(Pipeline((Row(NAMES),)), specs) is not None
    for steps in ((), (Row(NAMES, "nan", infinite="allow"),), (Row(NAMES), Standardize())):
        assert RowArrays.of(Pipeline(steps), specs) is None
    assert RowArrays.of(None, specs) is None
    assert RowArrays.of(Pipeline((Row(NAMES[:2]),)), specs) is None
    worded = Row(NAMES, "nan", (("years", ("few", "many")),), infinite="allow")
    check = RowArrays.of(Pipeline((worded,)), specs)
    assert check is not None
    assert said(check, np.array([[math.inf, math.nan, 1]], np.float32)) == ""
    assert said(check, np.array([[1, 1, math.inf]], np.float32)) != ""


def test_infinite_numbers_are_let_through_if_the_model_takes_them() -> None:
    step = Row(NAMES, "nan", dtype="float64", infinite="allow")
    for row in ([math.inf, -math.inf, None], np.array([np.inf, -np.inf, np.nan])):
        np.testing.assert_array_equal(step(row), [np.inf, -np.inf, np.nan])
    for value, dtype in ((10**400, "float64"), (1e39, "float32"), (-(10**400), "float32")):
        narrow = Row(NAMES, "nan", dtype=dtype, infinite="allow")  # type: ignore[arg-type]
        with pytest.raises(InputError) as error:
            narrow([1, value, 2])
        assert str(error.value) == f"the column 'income' needs a number that {dtype} holds"
    with pytest.raises(InputError, match=r"^the column 'income' has no value: give one$"):
        Row(NAMES, infinite="allow")([math.inf, None, 1])
    with pytest.raises(InputError, match=r"^row.infinite='yes': give 'refuse' or 'allow'$"):
        Row(NAMES, infinite="yes")  # type: ignore[arg-type]


def test_a_hash_is_a_finite_number() -> None:
    step = Row(NAMES, "nan", dtype="float64", infinite="allow", hashed=("income",))
    for number, why in (
        (math.nan, "has no value"),
        (math.inf, "isn't a number that float64 holds"),
    ):
        rows = np.array([[math.nan, -5.0, math.inf], [1.0, number, 1.0]])
        assert RowArrays(step).refused(rows[:1]) is None
        assert RowArrays(step).refused(rows) == (1, f"the column 'income' {why}")


def test_a_step_that_was_kept_before_the_setting_refuses_infinite_numbers() -> None:
    record = json.loads(json.dumps(to_record(Row(NAMES, infinite="allow"))))
    assert from_record(Step, record) == Row(NAMES, infinite="allow")
    del record["infinite"]
    assert from_record(Step, record) == Row(NAMES)
