from typing import Any

import numpy as np
import pytest

from hasten.core.lookups import Lookup, RowNumbers, check_lookups
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError

IDS = TensorSpec("ids", "int64", ("batch", 3))
EVERY = RowNumbers([Lookup("ids", (1, 1), (10,))])
SOME = RowNumbers([Lookup("ids", (1, 3), (10, 0, 2))])
ADDED = RowNumbers([Lookup("ids", (1, 3), (10, 0, 2), (-10, 0, -18))])


def request(numbers: Any, dtype: str = "int64") -> dict[str, Array]:
    return {"ids": np.array(numbers, dtype)}


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32"])
def test_rows_count_from_the_begin_and_from_the_end(dtype: str) -> None:
    EVERY(request([[0, 9, -1], [-10, 5, 5]], dtype))
    for number in (10, 11, 100, -11, -100):
        with pytest.raises(InputError):
            EVERY(request([[0, 0, 0], [0, number, 0]], dtype))
    EVERY(request(np.zeros((0, 3)), dtype))


def test_the_message_names_the_input_the_number_and_the_rows() -> None:
    for check, numbers, number, rows in (
        (EVERY, [[1, 2, 3], [4, 30522, 70000]], 30522, 10),
        (SOME, [[1, 2, 1], [9, 30522, 2]], 2, 2),
        (SOME, [[1, 2, 1], [-11, 30522, 1]], -11, 10),
    ):
        with pytest.raises(InputError) as error:
            check(request(numbers))
        assert str(error.value) == (
            f"input 'ids' has the number {number}, and the table that it looks up has {rows} rows: give numbers from "
            f"0 to {rows - 1}, as the model's own tokenizer or categories do"
        )


def test_what_is_added_before_moves_the_numbers() -> None:
    for check, numbers, place, wrong, last in (
        (RowNumbers([Lookup("ids", (1, 1), (11,), (-9,))]), (-9, 0, 10), 1, (-10, 11), 10),
        (RowNumbers([Lookup("ids", (1, 1), (2,), (0,))]), (0, 1), 1, (-1, 2, 1000), 1),
        (ADDED, (-18, -3, 0, 1), 2, (-19, 2, 1000), 1),
    ):
        made = np.zeros((2, 3), np.int64)
        for number in numbers:
            made[1, place] = number
            check({"ids": made})
        for number in wrong:
            made[1, place] = number
            with pytest.raises(InputError) as error:
                check({"ids": made})
            assert str(error.value) == (
                f"input 'ids' has the number {number}, and the table that it looks up has no such row, after what the "
                f"model adds: give numbers from 0 to {last}, as the model's own tokenizer or categories do"
            )
            check(check.within({"ids": made}))
    with pytest.raises(InputError, match="looks up has 10 rows: give numbers from 0 to 9, as"):
        ADDED(request([[10, 70, 0]]))


def test_the_largest_numbers_of_a_type_are_refused() -> None:
    for dtype in ("int64", "uint64", "uint8", "int32"):
        for number in {np.iinfo(dtype).max, np.iinfo(dtype).min} - {0}:
            with pytest.raises(InputError):
                EVERY(request([[0, 0, number]], dtype))


def test_of_a_float_its_whole_part_counts() -> None:
    EVERY(request([[9.9, -10.9, 0.5]], "float32"))
    for number in (10.0, -11.0, np.nan, np.inf, -np.inf):
        with pytest.raises(InputError):
            EVERY(request([[0, 0, number]], "float32"))
        SOME(request([[0, number, 0]], "float32"))


def test_made_up_numbers_are_brought_within_the_tables() -> None:
    made = {**request([[-5, 70, 5.5], [11, 1, -1]], "float32"), "x": np.ones(2)}
    np.testing.assert_array_equal(EVERY.within(made)["ids"], [[0, 9, 5.5], [9, 1, 0]])
    found = SOME.within(made)
    np.testing.assert_array_equal(found["ids"], [[0, 70, 1], [9, 1, 0]])
    assert found["ids"].dtype == np.float32
    assert found["x"] is made["x"]
    SOME(found)


def test_a_made_up_number_without_axes_stays_an_array() -> None:
    scalar = RowNumbers([Lookup("ids", (), (10,))])
    found = scalar.within(request(70))["ids"]
    assert type(found) is np.ndarray
    assert (found.shape, found.item()) == ((), 9)
    scalar({"ids": found})


@pytest.mark.parametrize("count", [1, 100, 5000])
@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [("int64", 10), ("int64", -11), ("uint64", 2**64 - 1), ("float32", np.nan), ("uint8", 255)],
)
def test_one_wrong_number_of_few_or_many_is_found(count: int, dtype: str, wrong: Any) -> None:
    right = np.arange(count) % 10
    EVERY({"ids": right.reshape(1, -1).astype(dtype)})
    with np.errstate(invalid="ignore"):
        given = right.reshape(1, -1).astype(dtype)
    given[0, count // 2] = np.array(wrong, dtype)
    with pytest.raises(InputError):
        EVERY({"ids": given})


def test_only_inputs_that_are_looked_up_are_checked() -> None:
    assert RowNumbers.of([], [IDS]) is None
    assert RowNumbers.of([Lookup("other", (1, 1), (10,))], [IDS]) is None
    assert RowNumbers.of([Lookup("ids", (1, 1), (0,))], [IDS]) is None
    assert RowNumbers.of([Lookup("ids", (1, 1), (10,))], [IDS]) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        Lookup("other", (1, 1), (10,)),
        Lookup("ids", (1,), (10,)),
        Lookup("ids", (2, 1), (10, 10)),
        Lookup("ids", (1, 3), (10,)),
        Lookup("ids", (1, 2), (10, 10)),
        Lookup("ids", (1, 1), (-1,)),
        Lookup("ids", (1, 1), (10**30,)),
        Lookup("ids", (1, 1), (10,), (1,)),
        Lookup("ids", (1, 1), (10,), (-(10**30),)),
        Lookup("ids", (1, 1), (10,), (-10, -10)),
        Lookup("ids", (0, 1), ()),
    ],
)
def test_tables_that_an_input_cannot_have_are_refused(wrong: Lookup) -> None:
    check_lookups([Lookup("ids", (1, 3), (10, 0, 2))], [IDS])
    with pytest.raises(InputError) as error:
        check_lookups([wrong], [IDS])
    assert str(error.value) == (
        f"it states rows of tables of the input {wrong.input!r}, which don't fit it"
    )
