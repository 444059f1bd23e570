"""Whole runs on models with several outputs and inputs of every kind, and what is refused there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.testing import models

COUNT = 300
ENGINES = ["onnxruntime"]
WITH_DEFAULT = """
    with_default (float[batch, 4] x, float[1] scale) => (float[batch, 4] y)
        <float[1] scale = {2.0}> {
        y = Mul(x, scale)
    }"""
WITH_STATE = """
    with_state (float[batch, 4] x, float[batch, 4] h) => (float[batch, 4] y, float[batch, 4] h_out) {
        h_out = Add(x, h)
        y = Tanh(h_out)
    }"""


def data(count: int = COUNT, seed: int = 0) -> dict[str, Array]:
    """Data of `models.mixed_inputs`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((count, 8)).astype(np.float32),
        "ids": rng.integers(0, 10, (count, 3)),
        "mask": rng.random((count, 3)) < 0.5,
        "kind": rng.integers(0, 10, count).astype(np.int32),
        "scale": rng.uniform(1, 2, count).astype(np.float32),
        "rate": rng.integers(0, 2, count),
    }


def refused(model: Path, data: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error, quick_runs(races=False):
        hasten.optimize(model, data, out=model.parent / "no.hasten", engines=ENGINES, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.mixed_inputs(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def bundle(mixed: Path) -> Path:
    """The bundle of a run from the command line."""
    folder = mixed.parent
    np.savez(folder / "eval.npz", **data())  # type: ignore[arg-type]
    out = folder / "mixed.hasten"
    command = ["optimize", str(mixed), "--data", str(folder / "eval.npz"), "--out", str(out)]
    command += [
        "--metric",
        "agreement@scores",
        "--metric",
        "regression:1@best",
        "--max-drop",
        "5%",
        "--engine",
        *ENGINES,
    ]
    with quick_runs(races=False):
        ran = CliRunner().invoke(main, command, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return out


def test_a_run_keeps_all_metrics_that_were_named(bundle: Path) -> None:
    parts = read(bundle).metric["metrics"]
    assert [(part["type"], part["output"]) for part in parts] == [
        ("agreement", "scores"),
        ("regression", "best"),
    ]


def test_the_bundle_is_certified_again_by_its_own_metrics(bundle: Path) -> None:
    with quick_runs(races=False):
        recheck = hasten.certify(bundle, data(400, seed=3), max_drop=0.05)
    assert (recheck.judgement.verdict.value, recheck.judgement.metric) == ("certified", "all_of")
    with pytest.raises(InputError) as error:
        hasten.certify(bundle, data(9, seed=3), max_drop=0.05, metric=["agreement@none", "top1"])
    assert str(error.value).startswith(
        "agreement reads the output 'none', but the model's outputs are scores: "
    )


@pytest.mark.seconds
def test_labels_of_several_outputs_come_by_name(mixed: Path) -> None:
    given = data()
    given["labels@scores"] = np.arange(COUNT) % 4
    given["labels@best"] = np.arange(COUNT) % 4
    out = mixed.parent / "labelled.hasten"
    with quick_runs(races=False):
        hasten.optimize(
            mixed,
            given,
            metric=["top1@scores", "regression:0.5@best"],
            max_drop=0.4,
            out=out,
            engines=ENGINES,
        )
    assert [part["type"] for part in read(out).metric["metrics"]] == ["top1", "regression"]
    with quick_runs(races=False):
        recheck = hasten.certify(
            out,
            data(60, seed=4) | {"labels@scores": np.arange(60) % 4},
            metric="top1@scores",
            max_drop=0.4,
            report=["calibration_error@scores"],
        )
    assert recheck.judgement.metric == "all_of"
    given["labels@sure"] = np.zeros(COUNT)
    message = refused(mixed, given, metric=["top1@scores", "regression:0.5@best"])
    assert message == (
        "the data has labels@sure, and no metric reads an output of that name; the metrics read "
        "top1@scores, regression@best"
    )


def test_labels_of_several_outputs_want_a_metric_each(mixed: Path) -> None:
    given = {**data(), "labels@scores": np.arange(COUNT) % 4}
    assert refused(mixed, given) == (
        "no metric was named, and the data has labels of several outputs, labels@scores: name the "
        'metric of each, as metric="top1@scores"; docs/reference/metrics.md lists all metrics'
    )
    assert refused(mixed, given, metric="auroc@scores") == (
        "auroc reads labels in one array, but the data has labels@scores: give labels"
    )


def test_a_metric_for_an_output_that_is_not_there_is_refused(mixed: Path) -> None:
    assert refused(mixed, data(), metric="agreement@logits") == (
        "agreement reads the output 'logits', but the model's outputs are scores: float32[batch, "
        "4], best: "
        "int64[batch], sure: bool[batch]"
    )


def test_labels_of_another_kind_are_refused(mixed: Path) -> None:
    given = {**data(), "labels": np.full(COUNT, 0.5)}
    assert refused(mixed, given, metric="top1@scores") == (
        "top1: label 0.5 is none of the 4 classes 0 to 3"
    )
    given["labels"] = np.zeros((COUNT, 2, 2))
    assert refused(mixed, given, metric="top1@scores") == (
        "top1 reads labels (n,) or one-hot (n, 4); got float64 (n, 2, 2)"
    )


def test_a_score_out_of_its_range_is_told_with_what_came(mixed: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def score(outputs, labels):\n    return outputs['best'] * 2\n")
    message = refused(mixed, data(), metric=f"{file}:score")
    assert message.startswith(f"{file}:score returned ")
    assert "a score lies in [0, 1]; it was given the outputs scores float32 [60, 4] (" in message
    assert message.endswith(", and no labels")
    assert "\n" not in message


def test_a_scalar_input_without_data_is_named(mixed: Path, bundle: Path) -> None:
    given = {name: array for name, array in data().items() if name != "rate"}
    assert refused(mixed, given) == (
        "the model takes the inputs x, ids, mask, kind, scale, rate; the data has x, ids, mask, kind, "
        'scale; rate takes a single number: add one for each sample to the data, as np.full(n, 1, "int64")'
    )
    with pytest.raises(InputError) as error:
        hasten.certify(bundle, given, max_drop=0.05)
    assert str(error.value).endswith('each sample to the data, as np.full(n, 1, "int64")')


def test_an_input_with_a_default_may_be_left_out_or_given(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model.onnx", WITH_DEFAULT, {})
    x = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
    scale = np.repeat(np.array([[3.0]], np.float32), COUNT, axis=0).reshape(COUNT, 1)
    for given, factor in (({"x": x}, 2), ({"x": x, "scale": scale}, 3)):
        out = tmp_path / f"{factor}.hasten"
        with quick_runs(races=False):
            hasten.optimize(
                model, given, metric="regression:1%", out=out, max_drop=0.3, engines=ENGINES
            )
        with hasten.load(out) as opened:
            request = {"x": x[:1], **({"scale": scale[0]} if factor == 3 else {})}
            np.testing.assert_allclose(opened.run(request)["y"], factor * x[:1], rtol=1e-5)
    message = refused(model, {"x": x, "size": scale}, metric="regression:1%")
    assert message == "the model takes the inputs x; the data has x, size"


def test_an_input_that_looks_like_a_state_is_pointed_out(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model.onnx", WITH_STATE, {})
    x = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
    with quick_runs(races=False):
        result = hasten.optimize(
            model,
            {"x": x, "h": x},
            metric="regression:1%@all",
            out=tmp_path / "s.hasten",
            engines=ENGINES,
        )
    assert (
        "h (with h_out) looks like a state that the model carries from step to step; this run "
        "used the values in the data, and took each sample by itself: if samples are whole "
        "sequences, name the states, h=h_out"
    ) in result.notes


def test_an_encoders_queries_are_certified_as_groups(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    rng = np.random.default_rng(0)
    count, each = 240, 5
    given: dict[str, Array] = {
        "x": rng.standard_normal((count * each, 16)).astype(np.float32),
        "labels": rng.integers(0, 2, count * each),
        "groups": np.repeat(np.arange(count), each),
    }
    given["labels"][::each] = -1
    out = tmp_path / "encoder.hasten"
    with quick_runs(races=False):
        result = hasten.optimize(
            model, given, metric="group_ndcg:3", max_drop=0.2, out=out, engines=ENGINES
        )
    assert read(out).metric == {"type": "group_ndcg", "k": 3, "output": None}
    assert not [note for note in result.notes if "sealed" in note], result.notes
    with quick_runs(races=False):
        recheck = hasten.certify(out, {**given, "x": -given["x"]}, max_drop=0.2)
    assert recheck.judgement.n == count
    assert json.dumps(recheck.judgement.metric) == '"group_ndcg"'
