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


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ([(2, 5)], "a sample of 2 times the size after one of 0"),
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
    check_growth([])
