"""Summaries of answers that have a size of their own each."""

from __future__ import annotations

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


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "complex64"])
@given(st.data())
def test_an_answer_is_its_own_whatever_its_size(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4)))
    assert apart(array, array.copy()) == 0
    shape, sums = summaries("boxes", array).values()
    assert shape.shape == (1, 34)
    assert sums.shape == (1, 5)


@given(st.integers(0, 400), st.floats(-1e-6, 1e-6))
def test_rounding_of_every_number_stays_within_the_tolerance(count: int, error: float) -> None:
    boxes = np.random.default_rng(count).uniform(0, 640, (count, 4)).astype(np.float32)
    assert apart((boxes * (1 + error)).astype(np.float32), boxes) < EXACT_TOLERANCE


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


def test_an_answer_without_its_summary_is_another_one() -> None:
    own = Summarized({"score": np.zeros((1, 1))}, summaries("boxes", BOXES))
    assert differences({"score": np.zeros((1, 1))}, own)[0] == np.inf
