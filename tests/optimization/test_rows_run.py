"""Runs of models of rows: with a cutoff of one's own among the model's own steps, and of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.nominal_times import nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.errors import InputError
from hasten.evaluation.recertification import certify
from hasten.evaluation.subject import Asked, open_subject
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_yaml
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold

lightgbm = pytest.importorskip("lightgbm")
pandas = pytest.importorskip("pandas")
CUTOFF = 1 / 6


def loans(count: int, seed: int) -> Any:
    """Return loans with their price, of which some aren't repaid."""
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "age": rng.normal(50, 20, count),
            "housing": pandas.Categorical(rng.choice(["own", "rent"], count)),
        }
    )
    bad = (frame.age > 45) ^ (frame.housing == "own") ^ (rng.random(count) < 0.1)
    frame["paid"] = np.where(bad, "bad", "good")
    frame["price"] = 2 * frame.age + bad
    return frame


@pytest.fixture(scope="module")
def model() -> Any:
    frame = loans(300, 0)
    chosen = lightgbm.LGBMClassifier(n_estimators=10, num_leaves=8, verbose=-1, n_jobs=1)
    return chosen.fit(frame[["age", "housing"]], frame.paid)


@pytest.fixture(scope="module")
def cutoff(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp("cutoff") / "cutoff.yaml"
    path.write_text(f"after:\n  - threshold: {{threshold: {CUTOFF}, position: 0}}\n")
    return from_yaml(path)


def latencies_of(asked: Mapping[str, Any]) -> Sequence[int]:
    """Compiled C is the faster engine, so that it ships."""
    return (10_000,) if asked["engine"]["type"] == "compiled" else (100_000,)


@pytest.fixture(scope="module")
def result(model: Any, cutoff: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    with quick_runs(races=False), nominal_times(latencies_of):
        return hasten.optimize(
            model,
            (loans(300, 1), "paid"),
            pipeline=cutoff,
            out=tmp_path_factory.mktemp("run") / "desk.hasten",
            engines=["onnxruntime", "compiled"],
        )


@pytest.mark.seconds
def test_decisions_at_the_cutoff_are_the_models_own(result: hasten.Result, model: Any) -> None:
    frame = loans(60, 2)
    own = model.predict_proba(frame[["age", "housing"]])[:, 0]
    assert ((own >= CUTOFF) != (own >= 0.5)).any()
    with hasten.load(result.bundle) as fast:
        told = [fast.decide(row) for row in frame[["age", "housing"]].to_dict("records")]
    assert [one["positive"] for one in told] == (own >= CUTOFF).tolist()
    assert [one["label"] for one in told] == np.where(own >= CUTOFF, "bad", "good").tolist()
    np.testing.assert_allclose([one["score"] for one in told], own, rtol=1e-6)


def test_a_run_counts_the_decisions_that_change_at_the_cutoff(result: hasten.Result) -> None:
    assert result.comparison is not None
    assert result.comparison.moved is not None
    moved = result.comparison.moved
    assert (moved.threshold, moved.changed) == (CUTOFF, 0)
    assert result.asked.metric == "top1"


def test_certify_reads_labels_by_the_models_names(result: hasten.Result) -> None:
    recheck = certify(result.bundle, (loans(80, 3), "paid"), metric="top1")
    assert recheck.judgement is not None
    assert recheck.judgement.n == 80


def test_another_cutoff_of_certify_leaves_the_models_own_row(result: hasten.Result) -> None:
    another = Pipeline((), (Threshold(0.3, position=0),))
    with hasten.load(result.bundle) as fast:
        own = fast.manifest.pipeline
    assert own is not None
    asked = open_subject(result.bundle, Asked(), another, ())
    named = Threshold(0.3, position=0, labels=("good", "bad"))
    assert asked.pipeline == Pipeline(own.steps, (named,))


def test_the_bundle_keeps_the_models_own_row(result: hasten.Result, model: Any) -> None:
    with hasten.load(result.bundle) as fast:
        pipeline = fast.manifest.pipeline
    assert pipeline is not None
    (row,) = pipeline.steps
    assert isinstance(row, Row)
    assert row.words == (("housing", ("own", "rent")),)


@pytest.fixture(scope="module")
def regression() -> Any:
    frame = loans(300, 4)
    chosen = lightgbm.LGBMRegressor(n_estimators=10, num_leaves=8, verbose=-1, n_jobs=1)
    return chosen.fit(frame[["age", "housing"]], frame.price)


def test_a_regression_without_a_tolerance_is_refused_by_what_to_give(
    regression: Any, tmp_path: Path
) -> None:
    sklearn = pytest.importorskip("sklearn.ensemble")
    rows = np.random.default_rng(0).random((90, 3))
    two = sklearn.RandomForestRegressor(2, max_depth=2).fit(rows, rows[:, :2])
    for model, data in ((regression, (loans(90, 5), "price")), (two, rows.astype(np.float32))):
        with pytest.raises(InputError) as error:
            hasten.optimize(model, data, out=tmp_path / "b.hasten")
        assert str(error.value) == (
            "the model gives quantities, and only you know how far they may be off: give a tolerance "
            'in their unit, as in metric="regression:0.01", or metric="regression:1%"'
        )


def test_a_regression_in_compiled_c_gives_the_librarys_own_numbers(
    regression: Any, tmp_path: Path
) -> None:
    with quick_runs(races=False):
        result = hasten.optimize(
            regression,
            (loans(300, 5), "price"),
            metric="regression:20",
            out=tmp_path / "price.hasten",
            engines=["compiled"],
        )
    assert result.status == "exact"
    rows = loans(20, 6)[["age", "housing"]]
    with hasten.load(result.bundle) as fast:
        told = [fast.decide(row) for row in rows.to_dict("records")]
    assert [one["value"] for one in told] == regression.predict(rows).tolist()
