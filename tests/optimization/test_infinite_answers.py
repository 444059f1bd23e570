"""Runs on a model that masks some of its scores with -inf."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics import parse_metric
from hasten.measure.accuracy import check_infinite
from hasten.testing import models

X = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Write a classifier that never chooses those of 4 classes whose own input is negative."""
    text = """
        masked (float[batch, 16] x) => (float[batch, 4] logits) {
            scores = Gemm(x, weight, bias)
            starts = Constant <value_ints = [0]> ()
            ends = Constant <value_ints = [4]> ()
            axes = Constant <value_ints = [1]> ()
            first = Slice(x, starts, ends, axes)
            zero = Constant <value_float = 0.0> ()
            negative = Less(first, zero)
            one = Constant <value_float = 1.0> ()
            infinite = Div(one, zero)
            never = Neg(infinite)
            logits = Where(negative, never, scores)
        }"""
    return models.write(tmp_path / "masked.onnx", text, {"weight": (16, 4), "bias": (4,)})


def run(model: Path, metric: str) -> Any:
    with quick_runs(races=False):
        return hasten.optimize(
            model,
            {"x": X},
            out=model.with_name("b.hasten"),
            metric=metric,
            engines=["onnxruntime"],
            passes=[],
        )


def test_a_masked_classifier_is_judged_by_its_classes_and_certified_again(masked: Path) -> None:
    assert run(masked, "agreement").status in ("exact", "certified")
    bundle = masked.with_name("b.hasten")
    assert read(bundle).status
    with hasten.load(bundle) as model:
        answer = model(X[:1])["logits"]
    assert np.isneginf(answer).tolist() == (X[:1, :4] < 0).tolist()
    assert hasten.certify(bundle, {"x": X}).judgement.lost == 0


def test_a_metric_that_cant_read_infinities_is_refused_with_those_that_can(masked: Path) -> None:
    with pytest.raises(InputError) as error:
        run(masked, "embedding")
    said = str(error.value)
    assert said.startswith("the original model's output 'logits' has Inf for sample ")
    assert said.endswith(
        ", which this metric can't read: choose a metric of classes, regression, a metric that reads "
        "another output, or your own function, as in my.py:score"
    )


def of(*numbers: float) -> dict[str, Array]:
    return {"y": np.array([numbers], np.float32)}


@pytest.mark.parametrize("number", [np.inf, 5.0, 0.0])
def test_a_candidate_that_is_infinite_elsewhere_fails(number: float) -> None:
    check_infinite(of(1, -np.inf), of(2, -np.inf))
    check_infinite(of(1, 2), of(1, number))
    with pytest.raises(CandidateError, match=r"^output 'y' has Inf where the original has another"):
        check_infinite(of(1, -np.inf), of(1, number))


def test_regression_takes_infinities_for_themselves_alone() -> None:
    metric = parse_metric("regression:0.5")
    own = {"y": np.array([[1, -np.inf], [1, -np.inf], [1, np.inf]], np.float32)}
    one = {"y": np.array([[1, -np.inf], [1, 7], [1, -np.inf]], np.float32)}
    assert metric.score(one, own, None).tolist() == [1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "takes"),
    [("top1", True), ("embedding", False), ("embedding@other", True), ("embedding@logits", False)],
)
def test_a_metric_of_another_output_doesnt_mind(text: str, takes: bool) -> None:
    assert parse_metric(text).takes_infinite("logits") == takes
