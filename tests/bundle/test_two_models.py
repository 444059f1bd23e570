"""A bundle that answers by two models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, forge, stated

from hasten.bundle import NotCertifiedHere, Part, load, part, write
from hasten.core.target import Target
from hasten.engines.cascade import Cascade
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, IntegrityError
from hasten.inputs.models.onnx import load as load_onnx
from hasten.measure.environment import environment
from hasten.testing import models

X = np.random.default_rng(0).standard_normal((1, 16), dtype=np.float32)


@pytest.fixture
def winner(tmp_path: Path) -> Part:
    model = load_onnx(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})
    engine = Cascade(OpenVino(threads=9), OnnxRuntime(spinning=False), 1e9, "logits")
    (tmp_path / "built").mkdir()
    artifact = engine.build(replace(model, origin=model), Target.host(), tmp_path / "built")
    return part("two models", (), engine, artifact)


@pytest.fixture
def bundle(tmp_path: Path, winner: Part) -> Path:
    write(tmp_path / "model.hasten", stated(winner, None), {})
    return tmp_path / "model.hasten"


def test_it_is_one_callable_and_says_how_often_it_asked_again(bundle: Path) -> None:
    with load(bundle) as fast:
        assert fast(X)["logits"].shape == (1, 4)
        fast(X)
        assert fast.properties()["asked again"] == "2 of 2"


def test_neither_model_gets_more_threads_than_there_are(bundle: Path) -> None:
    with load(bundle) as fast:
        assert fast.properties()["fast: threads"] == str(Target.host().threads)


def test_the_second_models_threads_sleep_between_requests_and_beside_others_both_ones_do(
    tmp_path: Path,
) -> None:
    model = load_onnx(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})
    engine = Cascade(OnnxRuntime(), OnnxRuntime(threads=1), 1e9, "logits")
    (tmp_path / "built").mkdir()
    artifact = engine.build(replace(model, origin=model), Target.host(), tmp_path / "built")
    write(tmp_path / "b", stated(part("two models", (), engine, artifact), None), {})
    for beside, lingering in ((False, ["True", "False"]), (True, ["False", "False"])):
        with load(tmp_path / "b", beside_others=beside) as fast:
            found = fast.properties()
        assert [found[f"{which}: lingering"] for which in ("fast", "careful")] == lingering


def test_another_version_of_either_runtime_is_said(tmp_path: Path, winner: Part) -> None:
    here = environment(Target.host())
    older = {**here, "openvino": "0.1", "onnxruntime": "0.2"}
    write(tmp_path / "b", stated(winner, None, environment=older), {})
    with pytest.warns(NotCertifiedHere):
        loaded = load(tmp_path / "b")
    with loaded as fast:
        assert fast.not_certified == (
            f"openvino: 0.1 there, {here['openvino']} here",
            f"onnxruntime: 0.2 there, {here['onnxruntime']} here",
        )


def test_another_version_of_litert_is_said(tmp_path: Path) -> None:
    here = environment(Target.host())
    winner = built(tmp_path, models.linear_classifier(tmp_path), LiteRt())
    older = {**here, "ai-edge-litert": "0.1"}
    write(tmp_path / "b", stated(winner, None, environment=older), {})
    with pytest.warns(NotCertifiedHere):
        loaded = load(tmp_path / "b")
    with loaded as fast:
        assert fast.not_certified == (f"ai-edge-litert: 0.1 there, {here['ai-edge-litert']} here",)


def test_engines_of_engines_of_engines_are_refused(bundle: Path) -> None:
    def nest(record: dict[str, Any]) -> None:
        engine = record["winner"]["engine"]
        record["winner"]["engine"] = {**engine, "fast": engine}

    forge(bundle, nest)
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == (
        f"{bundle}: the manifest is damaged: the engine of 'two models' is nested too deeply"
    )


def test_a_list_that_leads_out_of_the_bundle_is_refused(bundle: Path) -> None:
    outside = {"fast": ["../../etc/passwd"], "careful": ["careful/linear_classifier.onnx"]}
    forge(bundle, files={"model/cascade.json": json.dumps(outside).encode()})
    with pytest.raises(CandidateError) as error:
        load(bundle)
    assert str(error.value) == "cascade.json is damaged: it lists other files"
