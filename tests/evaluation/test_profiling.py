"""Profiles of models and of bundles."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.bundles import built, stated
from tests.support.forked_workers import forked_workers
from tests.support.models import depthwise_cnn

import hasten
from hasten.core.scratch import scratch
from hasten.core.target import Target
from hasten.engines.layers import Kind, LayerTime
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.evaluation.profiling import Profile, remarks
from hasten.inputs.data.requests import MADE_UP
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, ToLayout
from hasten.testing import models

PRODUCTS = ["stem", "depthwise", "pointwise", "classifier"]


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    with forked_workers():
        yield


def covered(profile: Profile) -> list[str]:
    arithmetic = [layer for layer in profile.layers if layer.kind == "arithmetic"]
    return [node for layer in arithmetic for node in layer.sources if node in PRODUCTS]


@pytest.mark.seconds
def test_a_model_is_profiled_on_each_engine_with_random_numbers(tmp_path: Path) -> None:
    profiles = hasten.profile(depthwise_cnn(tmp_path), requests=3)
    assert [(one.role, one.label, one.failed) for one in profiles] == [
        ("model", "original, ONNX Runtime", ""),
        ("model", "original, OpenVINO", ""),
        ("model", "original, compiled C", ""),
    ]
    for one in profiles:
        assert covered(one) == PRODUCTS
        assert {len(layer.latency_ns) for layer in one.layers} == {3}
        assert min(one.latency_ns) > 0
        assert (one.requests, one.threads) == (MADE_UP, Target.host().threads)


def test_an_engine_and_real_samples_may_be_asked_for(tmp_path: Path) -> None:
    x = np.ones((5, 16, 16, 16), np.float32)
    (only,) = hasten.profile(
        depthwise_cnn(tmp_path), data=x, engines=["openvino"], threads=1, requests=2
    )
    assert (only.label, only.requests, only.threads) == (
        "original, OpenVINO",
        "samples of the data",
        1,
    )
    assert covered(only) == PRODUCTS


def test_a_folder_of_hugging_face_is_a_model_and_no_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    depthwise_cnn(tmp_path).rename(folder / "model.onnx")
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    (only,) = hasten.profile(folder, engines=["openvino"], threads=1, requests=2)
    assert (only.role, covered(only)) == ("model", PRODUCTS)


@pytest.mark.seconds
def test_a_module_in_a_file_is_exported_with_a_sample(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "net.py").write_text(
        "import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.ReLU()).eval()\n"
    )
    x = np.ones((5, 16), np.float32)
    (only,) = hasten.profile(
        f"{tmp_path}/net.py:model", data=x, engines=["onnxruntime"], requests=1
    )
    assert [layer.kind for layer in only.layers if "linear" in str(layer.sources)] == ["arithmetic"]
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(f"{tmp_path}/net.py:model")
    assert str(caught.value) == "a torch model is exported with a sample of its data: give data"


def test_of_a_bundle_the_winner_and_the_exact_model_are_profiled(tmp_path: Path) -> None:
    winner = built(tmp_path, depthwise_cnn(tmp_path), OpenVino(threads=1))
    (tmp_path / "exact").mkdir()
    exact = built(tmp_path / "exact", depthwise_cnn(tmp_path), OnnxRuntime())
    hasten.bundle.write(tmp_path / "b.hasten", stated(winner, exact), {})
    profiles = hasten.profile(tmp_path / "b.hasten", requests=2)
    assert [one.role for one in profiles] == ["winner", "exact"]
    assert [covered(one) for one in profiles] == [PRODUCTS, PRODUCTS]
    assert [layer.operator for layer in profiles[0].layers][-1] == "FullyConnected"


def test_a_bundle_whose_winner_is_the_exact_model_has_one_profile(exact_bundle: Path) -> None:
    (only,) = hasten.profile(str(exact_bundle), requests=2)
    assert (only.role, only.label) == ("winner", "original, ONNX Runtime")
    assert [layer.sources for layer in only.layers] == [("logits",)]


def test_a_bundle_takes_no_engine(exact_bundle: Path) -> None:
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(exact_bundle, engines=["openvino"])
    assert str(caught.value) == (
        f"{exact_bundle} is a bundle, which names its own engine: leave the engine out"
    )


def test_a_bundle_takes_no_pipeline(exact_bundle: Path) -> None:
    """Its own prepares the requests; another one was ignored without a word."""
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(exact_bundle, pipeline=Pipeline((Decode(), ToLayout())))
    assert str(caught.value) == (
        f"{exact_bundle} is a bundle, which has its own pipeline or none: leave the pipeline out"
    )


def test_an_engine_that_fails_leaves_the_others(tmp_path: Path) -> None:
    engines = ["null", "onnxruntime"]
    one, other = hasten.profile(models.linear_classifier(tmp_path), engines=engines, requests=1)
    assert (one.failed, one.layers) == ("null engine has no profiler", ())
    assert other.layers


def test_engines_that_all_fail_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(hasten.CandidateError) as caught:
        hasten.profile(models.unknown_operator(tmp_path), engines=["onnxruntime", "null"])
    said = str(caught.value)
    assert said.startswith("original, ONNX Runtime: ONNX Runtime can't load the model: ")
    assert said.endswith("; null engine: null engine has no profiler")


def test_sizes_that_only_data_can_tell_are_asked_for(tmp_path: Path) -> None:
    path = models.tiny_transformer_block(tmp_path)
    import onnx

    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    onnx.save(proto, path)
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(path)
    assert str(caught.value) == (
        "x: float32[batch, tokens, 32] has open dimensions besides the batch: give data, so that "
        "their sizes are known"
    )


@pytest.mark.parametrize("threads", [0, 10**6])
def test_threads_that_are_not_there_are_refused(tmp_path: Path, threads: int) -> None:
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(models.linear_classifier(tmp_path), threads=threads)
    most = Target.host().threads
    assert str(caught.value) == (
        f"the number of threads is from 1 to {most}, which this process may use; got {threads}"
    )


def test_no_request_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hasten.InputError) as caught:
        hasten.profile(models.linear_classifier(tmp_path), requests=0)
    assert str(caught.value) == "a profile takes at least one request; got requests=0"


@pytest.mark.seconds
def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    assert hasten.profile(models.linear_classifier(tmp_path), requests=1)
    left = [one.name for one in (tmp_path / "scratch").iterdir()]
    assert set(left) <= {scratch().name}  # what compiled C of all runs is kept in


def step(name: str, kind: Kind, precision: str, us: int) -> LayerTime:
    return LayerTime(name, "Any", kind, precision, "", (name,), (1000 * us,))


def test_a_remark_tells_of_products_that_are_not_in_int8() -> None:
    layers = [step(f"c{i}", "arithmetic", "i8", 10) for i in range(4)]
    assert remarks(layers) == []
    layers += [step(f"d{i}", "arithmetic", "f32", 10 + i) for i in range(4)]
    layers += [step("r", "conversion", "f32", 14)]
    assert remarks(layers) == [
        "4 of 8 arithmetic steps don't run in int8, 46% of the time: d3, d2, d1, ..."
    ]
    assert remarks([step("a", "arithmetic", "f32", 1)]) == []
