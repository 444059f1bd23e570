"""A function that labels: what it gives is held to its word, and what it does wrong is one line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.optimization.labelling.answers import Form
from hasten.optimization.labelling.oracle import labels_of
from hasten.optimization.labelling.samples import Sample

NAMED = Form(3, ("a", "b", "c"))
SAMPLES = [Sample(f"s{i}", i, {"x": np.full(2, i)}) for i in range(3)]


def asked(function: Callable[[Sequence[Sample]], Any], form: Form = NAMED) -> Any:
    return labels_of(function, "my.py:oracle", SAMPLES, form, 300.0)


def test_labels_are_classes_by_number_or_name_or_none() -> None:
    found = asked(lambda samples: ["c", None, np.int64(1)])
    assert [None if one is None else one.item() for one in found] == [2, None, 1]
    by_row = asked(lambda samples: np.array([s.row for s in samples]))
    assert [one.item() for one in by_row] == [0, 1, 2]
    assert asked(lambda _: ["?", -1, float("nan")]) == [None, None, None]


def test_a_label_may_be_an_array_of_numbers() -> None:
    boxes = [np.zeros((2, 5))] * 3
    assert [one.shape for one in asked(lambda _: boxes, Form())] == [(2, 5)] * 3


def fails(samples: Sequence[Sample]) -> Any:
    raise RuntimeError("no such table\nand more")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fails, "my.py:oracle failed: RuntimeError: no such table (test_oracle.py:"),
        (lambda _: [1, 2], "my.py:oracle returned 2 labels for 3 samples"),
        (
            lambda _: None,
            "my.py:oracle returned None; return a list with a label for each sample",
        ),
        (
            lambda _: "abc",
            "my.py:oracle returned a str; return a list with a label for each sample",
        ),
        (lambda _: [0, 3, 1], "my.py:oracle: sample s1: 3 isn't a class: give 0 to 2"),
        (lambda _: [0, "d", 1], "my.py:oracle: sample s1: 'd' isn't a class: a, b, c"),
        (lambda _: [0, 0.5, 1], "my.py:oracle: sample s1: 0.5 isn't a class: give 0 to 2"),
        (
            lambda _: [0, object(), 1],
            "my.py:oracle: sample s1: a label consists of numbers: got object",
        ),
        (lambda _: [0, [1, float("inf")], 1], "my.py:oracle: sample s1: a label isn't finite"),
    ],
)
def test_what_a_function_does_wrong_is_said_in_one_line(function: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        asked(function)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_function_that_hangs_is_left_behind() -> None:
    stop = threading.Event()
    try:
        with pytest.raises(InputError) as error:
            labels_of(lambda _: stop.wait(60), "my.py:oracle", SAMPLES, Form(), 0.05)
    finally:
        stop.set()
    assert str(error.value) == (
        "my.py:oracle gave no labels for 3 samples in 0.05 s; repair it, or raise trial_limit_s="
    )
