"""How many rows may run together by their size, from the memory that a bundle states."""

from __future__ import annotations

import math

import pytest

from hasten.core.growth import Growth, RowsTogether, check_growth
from hasten.errors import InputError

MIB = 1 << 20


def growth(one_bytes: int, power: float, doublings: int = 8) -> tuple[Growth, ...]:
    """Return memory that grows with a power of the size."""
    return tuple(
        Growth(2.0**n, round(one_bytes * 2.0 ** (n * power))) for n in range(doublings + 1)
    )


def test_work_with_the_square_of_the_size_takes_no_more_than_the_largest_batch() -> None:
    """Of 100 MiB a sample, nothing more than the largest batch is left."""
    together = RowsTogether(growth(100 * MIB, 2), 16)
    assert 16 <= together.rows(1) < 17
    assert together.rows(2) == pytest.approx(4, rel=0.02)
    assert together.most_times(50) == pytest.approx(4, rel=0.01)


def test_small_samples_may_be_as_large_as_the_bytes_beyond_the_batch_allow() -> None:
    together = RowsTogether(growth(MIB >> 10, 2), 4)
    most = together.most_times(1000)
    assert most**2 / 1024 == pytest.approx(16, rel=0.01)
    assert together.rows(most / 2) == pytest.approx(4, rel=0.01)


def test_work_with_the_size_may_be_larger_than_the_square_root_of_the_batch() -> None:
    together = RowsTogether(growth(100 * MIB, 1), 64)
    assert together.most_times(1000) == pytest.approx(0.5 * 64 + 0.16, rel=0.01)
    assert together.most_times(8) == 8


def test_work_with_the_cube_of_the_size_counts_as_such() -> None:
    """The square root of the batch, 4, would be allowed if the memory were that of a square."""
    together = RowsTogether(growth(100 * MIB, 3), 16)
    assert together.most_times(50) == pytest.approx(16 ** (1 / 3), rel=0.01)


def test_a_model_without_batches_leaves_room_for_what_an_engine_takes_once() -> None:
    alone, pairs = (RowsTogether(growth(1, 1, 31), batch) for batch in (1, 2))
    assert alone.most_times(1 << 30) == pytest.approx(8 * MIB, rel=0.01)
    assert pairs.most_times(1 << 30) == pytest.approx(16 * MIB, rel=0.01)


def test_the_data_itself_is_always_allowed() -> None:
    together = RowsTogether((Growth(1, 1 << 60),), 1)
    assert together.rows(1) >= 1
    assert together.most_times(1000) == pytest.approx(1)


def test_between_two_sizes_memory_is_no_less_than_a_sum_of_powers_and_beyond_them_a_cube() -> None:
    def real(times: float) -> int:
        return round(1e6 * (100 * times + times**2))

    stated = tuple(Growth(2.0**n, real(2.0**n)) for n in range(11))
    together = RowsTogether(stated, 1 << 40)
    for times in (1.3, 3.0, 70.0, 600.0):
        rows = together.rows(times) / (1 << 40)
        bytes_ = real(times) / real(1)
        assert 0.49 / bytes_ <= rows <= max(0.5 / bytes_, 1 / times**2) * 1.001
    assert together.rows(4096) == pytest.approx(together.rows(2048) / 8, rel=0.01)


def test_short_rows_count_by_their_own_memory_where_the_bundle_states_it() -> None:
    longer = (Growth(1, 100 * MIB), Growth(2, 400 * MIB))
    stated = (Growth(0.0625, MIB // 4), Growth(0.25, MIB), *longer)
    together = RowsTogether(stated, 1)
    assert 1 <= together.rows(1) < 2
    assert together.rows(0.26) == together.rows(1)  # memory may grow at any size between the two
    assert together.rows(0.25) == pytest.approx(8 + 50)
    assert together.rows(0.07) == together.rows(0.25)
    for times in (0.0625, 0.01, 0):
        assert together.rows(times) == pytest.approx(4 * (8 + 50))
    assert together.rows(2) == RowsTogether(longer, 1).rows(2)
    assert RowsTogether(longer, 1).rows(0.25) == RowsTogether(longer, 1).rows(1)


def test_the_largest_batch_of_the_data_may_consist_of_short_rows_whatever_they_take() -> None:
    together = RowsTogether((Growth(0.25, 90 * MIB), Growth(1, 100 * MIB)), 16)
    assert 16 <= together.rows(0.25) < 17


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ([(2, 5)], "a sample of 2 times the size after one of 0"),
        ([(0.5, 5), (2, 5)], "a sample of 2 times the size after one of 0.5"),
        ([(0.25, 5), (0.5, 5)], "smaller samples only than the largest of the data"),
        ([(0, 5), (1, 5)], "a sample of 0 times the size after one of 0"),
        ([(-1, 5), (1, 5)], "a sample of -1 times the size after one of 0"),
        ([(0.5, 6), (1, 5)], "5 bytes for a sample of 1 times the size"),
        ([(1, 0)], "0 bytes for a sample of 1 times the size"),
        ([(1, 5), (1, 5)], "a sample of 1 times the size after one of 1"),
        ([(1, 5), (math.nan, 5)], "a sample of nan times the size after one of 1"),
        ([(1, 5), (math.inf, 5)], "a sample of inf times the size after one of 1"),
        ([(1, 5), (2, 4)], "4 bytes for a sample of 2 times the size"),
        ([(1, 5), (2, 1 << 63)], f"{1 << 63:,} bytes for a sample of 2 times the size"),
        ([(n + 1, 5) for n in range(65)], "memory for 65 sizes, more than 64"),
    ],
)
def test_growth_that_cannot_be_is_refused(stated: list[tuple[float, int]], why: str) -> None:
    with pytest.raises(InputError) as error:
        check_growth([Growth(*one) for one in stated])
    assert why in str(error.value)
    check_growth([Growth(1, 5), Growth(2, 5), Growth(3.5, 9)])
    check_growth([Growth(0.001, 5), Growth(0.25, 5), Growth(1, 6), Growth(2, 7)])
    check_growth([])
