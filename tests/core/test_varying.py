"""Summaries of answers that have a size of their own each."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hasten.core.tensors import Array
from hasten.core.varying import Summarized, summaries
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, differences

BOXES = np.arange(12, dtype=np.float32).reshape(3, 4) / 12
MIDDLE = np.eye(3, 4, dtype=bool)


def apart(one: Array, other: Array) -> float:
    """How far two answers to a sample are apart, by their summaries."""
    score = {"score": np.zeros((1, 1))}
    pair = (Summarized(score, summaries("boxes", array)) for array in (one, other))
    return float(differences(*pair)[0])


def joined(*arrays: Array) -> Summarized:
    """Answers to samples, one each."""
    each = [summaries("boxes", array) for array in arrays]
    summed = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    return Summarized({"score": np.zeros((len(arrays), 1))}, summed)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "complex64"])
@given(st.data())
def test_an_answer_is_its_own_whatever_its_size(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4)))
    assert apart(array, array.copy()) == 0
    shape, sums = summaries("boxes", array).values()
    assert shape.shape == (1, 34)
    assert sums.shape == (1, 1029)


@given(st.integers(0, 400), st.floats(-1e-6, 1e-6))
def test_rounding_of_every_number_stays_within_the_tolerance(count: int, error: float) -> None:
    boxes = np.random.default_rng(count).uniform(0, 640, (count, 4)).astype(np.float32)
    assert apart((boxes * (1 + error)).astype(np.float32), boxes) < EXACT_TOLERANCE


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_rounding_of_each_number_alone_stays_within_the_tolerance(count: int) -> None:
    rng = np.random.default_rng(count)
    numbers = rng.uniform(-640, 640, count)
    assert apart(numbers + 640e-6 * rng.standard_normal(count), numbers) < EXACT_TOLERANCE


@pytest.mark.parametrize("count", [1, 1000, 20_000, 400_000])
@pytest.mark.parametrize("at", [0, -1])
def test_one_moved_number_shows_among_however_many(count: int, at: int) -> None:
    numbers = np.random.default_rng(count).uniform(-1, 1, count)
    other = numbers.copy()
    other[at] += 0.002
    assert apart(other, numbers) > EXACT_TOLERANCE


@pytest.mark.parametrize("count", [1000, 100_000])
def test_a_moved_number_shows_in_a_short_answer_beside_a_long_one(count: int) -> None:
    """A long answer leaves the tolerance of the others at 0.1% of the largest number."""
    long, short = (
        np.random.default_rng(count).uniform(0, 640, (count, 4)),
        np.array([[9.0, 1, 2, 3]]),
    )
    one, other = (joined(long, short + by) for by in (0, [[0, 0, 0, 1]]))
    assert differences(other, one).tolist() == pytest.approx([0, 1 / 640], rel=0.01)


@pytest.mark.parametrize(("count", "width"), [(2, 256), (300, 2), (1001, 80)])
def test_numbers_that_move_together_do_not_cancel(count: int, width: int) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (count, width))
    assert apart(rows + np.eye(1, width) * 0.002, rows) > EXACT_TOLERANCE


@pytest.mark.parametrize(
    "other",
    [
        BOXES[:2],
        np.concatenate([BOXES, BOXES[:1]]),
        BOXES.reshape(4, 3),
        BOXES[None],
        BOXES[[1, 0, 2]],
        BOXES + np.eye(3, 4, dtype=np.float32) / 100,
        np.where(MIDDLE, np.inf, BOXES),
        np.where(MIDDLE, np.nan, BOXES),
        np.zeros((0, 4), np.float32),
    ],
    ids=["fewer", "more", "turned", "deeper", "swapped", "moved", "infinite", "nan", "none"],
)
def test_another_answer_shows(other: Array) -> None:
    assert apart(other, BOXES) > EXACT_TOLERANCE


@given(arrays("int64", (3, 3)), st.integers(0, 8), st.integers(1, 3))
def test_each_whole_number_counts(places: Array, at: int, more: int) -> None:
    other = places.copy()
    other.flat[at] ^= more
    assert apart(other, places) > EXACT_TOLERANCE


def test_an_infinite_number_is_told_from_its_negative() -> None:
    one, other = np.array([np.inf, 1]), np.array([-np.inf, 1])
    assert apart(one, one.copy()) == 0
    assert apart(one, other) > EXACT_TOLERANCE


def test_an_infinite_number_s_place_counts_beyond_the_first_block() -> None:
    one, other = np.zeros((2, 200_000))
    one[150_000] = other[150_001] = np.inf
    assert apart(one, one.copy()) == 0
    assert apart(one, other) > EXACT_TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_summary_takes_little_memory_however_large_the_answer(dtype: str) -> None:
    masks = np.ones((5, 480, 640), dtype)
    summaries("masks", masks[:1])  # with what is loaded once
    tracemalloc.start()
    try:
        summaries("masks", masks)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 << 20


def test_an_answer_without_its_summary_is_another_one() -> None:
    own = Summarized({"score": np.zeros((1, 1))}, summaries("boxes", BOXES))
    assert differences({"score": np.zeros((1, 1))}, own)[0] == np.inf
