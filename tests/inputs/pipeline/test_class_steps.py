"""From a classifier's scores to the classes that people read."""

import json

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.classes import TopK

SCORES = {"y": np.array([0.0, 3.0, 1.0], np.float32)}


def test_the_likeliest_classes_come_first_with_their_names_and_probabilities() -> None:
    found = TopK(2, ("cat", "dog", "hen"))(SCORES, Origin())
    exp = np.exp(SCORES["y"])
    assert [(one["class"], one["label"]) for one in found] == [(1, "dog"), (2, "hen")]
    assert [one["score"] for one in found] == pytest.approx(exp[[1, 2]] / exp.sum())
    assert json.loads(json.dumps(found)) == found


def test_probabilities_of_float64_keep_all_their_digits() -> None:
    scores = {"y": np.array([1 / 3, 2 / 3])}
    (found,) = TopK(softmax=False)(scores, Origin())
    assert found["score"] == 2 / 3


def test_many_classes_and_few_are_in_the_same_order() -> None:
    drawn = np.random.default_rng(0).integers(0, 8, 200) / np.float32(8)
    for classes in (2, 31, 32, 33, 200):
        scores = drawn[:classes]
        found = TopK(count=classes, softmax=False)({"y": scores}, Origin())
        assert [one["class"] for one in found] == np.argsort(-scores, kind="stable").tolist()


def test_scores_that_are_probabilities_stay_as_they_are_and_ties_keep_their_order() -> None:
    even = {"y": np.array([0.25, 0.5, 0.25], np.float32)}
    assert TopK(9, softmax=False)(even, Origin()) == [
        {"class": 1, "score": 0.5},
        {"class": 0, "score": 0.25},
        {"class": 2, "score": 0.25},
    ]


@pytest.mark.parametrize(
    ("step", "outputs", "words"),
    [
        (
            TopK(labels=("cat", "dog")),
            [TensorSpec("y", "float32", ("n", 3))],
            "top_k has 2 labels; the model's output 'y' has 3 classes",
        ),
        (
            TopK(),
            [TensorSpec("y", "float32", ("n", 3, 8, 8))],
            "top_k needs scores of shape [batch, classes]; the model gives "
            f"{TensorSpec('y', 'float32', ('n', 3, 8, 8))}",
        ),
        (
            TopK(output="z"),
            [TensorSpec("y", "float32", ("n", 3))],
            "top_k reads the output 'z'; the model has y",
        ),
        (
            TopK(),
            [TensorSpec("y", "float32", ("n", 3)), TensorSpec("z", "float32", ("n", 3))],
            "top_k must state in `output` which output it reads; the outputs are y, z",
        ),
    ],
)
def test_a_step_that_does_not_fit_the_model_says_what_it_needs(
    step: TopK, outputs: list[TensorSpec], words: str
) -> None:
    with pytest.raises(InputError) as error:
        step.check(outputs)
    assert str(error.value) == words
