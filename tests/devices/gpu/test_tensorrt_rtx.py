import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.tensorrt_graphs import ALTERED, BROKEN

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.tensorrt import rtx as tensorrt_rtx
from hasten.engines.tensorrt.parts import RTX_PARTS
from hasten.engines.tensorrt.plans import built
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
)


class TestTensorrtRtx(EngineTests):
    engine = TensorrtRtx()

    @pytest.fixture
    def target(self, sm80: Target) -> Target:
        return sm80

    def test_an_open_batch_takes_any_size(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert session.batch_sizes == tuple(range(1, 33))
            whole = session.run(request_for(model.inputs, batch=3))["logits"]
            assert whole.shape == (3, 10)


def build(path: Path, target: Target, engine: TensorrtRtx | None = None) -> Artifact:
    folder = path.parent / "built"
    folder.mkdir()
    return (engine or TensorrtRtx()).build(load(path), target, folder)


def plan_of(artifact: Artifact) -> Path:
    return next(file for file in artifact.files if file.suffix == ".plan")


def test_the_artifact_is_the_model_its_plan_and_what_the_builder_said(
    sm80: Target, tmp_path: Path
) -> None:
    artifact = build(models.small_cnn(tmp_path), sm80)
    assert [file.name for file in (artifact.path, *artifact.files)] == [
        "small_cnn.onnx",
        "small_cnn.plan",
        "small_cnn.plan.made-for.json",
        "small_cnn.plan.json",
    ]
    assert artifact.path.read_bytes() == (tmp_path / "small_cnn.onnx").read_bytes()
    assert json.loads(artifact.files[1].read_text()) == {
        "runtime": "TensorRT for RTX",
        "version": trt.__version__,
        "part": "sm80",
        "driver": None,
    }


def test_an_estimate_is_of_sizes_and_never_a_latency(sm80: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), sm80)
    estimate = TensorrtRtx().estimate(artifact, sm80, tmp_path)
    assert (estimate.source, estimate.latency_ns, estimate.rank) == ("none", None, None)
    assert estimate.figures["plan_bytes"] == plan_of(artifact).stat().st_size
    weights = sum(
        onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(artifact.path).graph.initializer
    )
    assert weights == pytest.approx(estimate.figures["weights_bytes"], rel=0.2)
    assert estimate.figures == json.loads(artifact.files[-1].read_text())


@pytest.mark.parametrize("graph", [*BROKEN, *ALTERED], ids=lambda graph: graph.name)
def test_what_breaks_the_profile_is_refused_by_node(graph, tmp_path):  # type: ignore[no-untyped-def]
    path = graph.write(tmp_path)
    target = find_target(f"cuda:{graph.part}", root=tmp_path)
    try:
        load(path)
    except (CandidateError, InputError):
        pytest.skip("hasten itself doesn't read such a model")
    with pytest.raises(CandidateError) as caught:
        build(path, target)
    assert str(caught.value).startswith(f"TensorRT can't take the model: {graph.says}")
    assert "\n" not in str(caught.value)


def test_a_node_that_only_the_parser_refuses_is_named_too(
    sm80: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "violations", lambda path, part: ())
    with pytest.raises(CandidateError) as caught:
        build(BROKEN[0].write(tmp_path), sm80)
    assert str(caught.value).startswith(
        "TensorRT can't take the model: QuantizeLinear (node 'Q'): Assertion failed: "
    )


def test_a_node_that_only_the_builder_refuses_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "violations", lambda path, part: ())
    with pytest.raises(CandidateError) as caught:
        build(models.small_cnn(tmp_path), find_target("cuda:sm75", root=tmp_path))
    assert str(caught.value) == (
        "TensorRT can't build the model: Cannot compile operation 'classifier' for Turing (SM75): "
        "FP32 GEMM is not supported. (Gemm, node 'classifier')"
    )


def test_an_attention_without_a_kernel_is_named(sm80: Target, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
        g (float[1, 2, 16, 64] q, float[1, 2, 16, 64] k, float[1, 2, 16, 64] v)
            => (float[1, 2, 16, 64] y) { [attend] y = Attention(q, k, v) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(
        CandidateError,
        match=r"^TensorRT can't build the model: .* Attention operation .* \(Attention, node 'attend'\)$",
    ):
        build(tmp_path / "model.onnx", sm80)


def test_the_parts_that_it_takes_are_those_that_its_builder_names() -> None:
    known = {name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert set(RTX_PARTS) == known


def test_a_gpu_that_it_doesnt_build_for_is_named(tmp_path: Path) -> None:
    target = Target.host().with_device("cuda:sm90", present=False)
    with pytest.raises(CandidateError) as caught:
        build(models.linear_classifier(tmp_path), target)
    assert str(caught.value) == (
        "nothing builds for sm90 without that GPU: TensorRT for RTX builds for sm75, sm80, sm86, sm89, "
        "sm120, sm121, and TensorRT builds only on the GPU itself: on a host that has one, use "
        'target="cuda" (pip install tensorrt-cu13)'
    )


def test_a_gpu_that_an_older_library_doesnt_know_is_named(
    sm80: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "no_rtx", lambda part, target: "")
    with pytest.raises(CandidateError) as caught:
        build(models.linear_classifier(tmp_path), replace(sm80, device="cuda:sm130"))
    assert str(caught.value) == (
        f"TensorRT for RTX {trt.__version__} builds for sm75, sm80, sm86, sm89, sm120, sm121, "
        "but the target is sm130"
    )


def test_another_target_than_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CandidateError, match=r"^TensorRT makes plans for NVIDIA's GPUs, but the target is host$"
    ):
        build(models.linear_classifier(tmp_path), Target.host())


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_off_where_it_isnt_asked_for(
    tf32: bool, sm80: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*given: Any, configure: Any, **settings: Any) -> Artifact:
        def look(config: Any) -> None:
            seen.append(config.get_flag(trt.BuilderFlag.TF32))
            configure(config)

        return built(*given, configure=look, **settings)

    monkeypatch.setattr(tensorrt_rtx, "built", watched)
    build(models.small_cnn(tmp_path), sm80, TensorrtRtx(tf32=tf32))
    assert seen == [tf32]
    assert TensorrtRtx(tf32=tf32).exact != tf32


def test_without_the_gpu_only_what_answers_otherwise_is_tried(sm80: Target) -> None:
    attached = replace(sm80, kind="attached")
    assert list(TensorrtRtx.variants(sm80)) == [TensorrtRtx()]
    assert list(TensorrtRtx.variants(attached)) == [TensorrtRtx(), TensorrtRtx(tf32=True)]
    assert list(TensorrtRtx().tunings(sm80)) == []
    assert list(TensorrtRtx().tunings(attached)) == [TensorrtRtx(largest_batch=1)]


def test_one_request_at_a_time_is_a_plan_of_settled_sizes(sm80: Target, tmp_path: Path) -> None:
    engine = TensorrtRtx(largest_batch=1)
    artifact = build(models.small_cnn(tmp_path), sm80, engine)
    assert artifact.inputs[0].shape == (1, 3, 32, 32)
    with engine.open(artifact, sm80) as session:
        assert session.batch_sizes == (1,)


def test_open_axes_behind_the_first_are_settled_by_the_request(
    sm80: Target, tmp_path: Path
) -> None:
    text = (
        models.HEADER
        + "g (float[batch, length, 8] x) => (float[batch, length, 8] y) { y = Relu(x) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    (tmp_path / "built").mkdir()
    with pytest.raises(
        CandidateError,
        match=r"^x: float32\[batch, length, 8\] has open axes, and no data fixed their sizes$",
    ):
        TensorrtRtx().build(model, sm80, tmp_path / "built")
    settled = model.settled_by({"x": np.zeros((5, 8), np.float32)})
    artifact = TensorrtRtx().build(settled, sm80, tmp_path / "built")
    assert artifact.inputs[0].shape == ("batch", 5, 8)


def test_answers_on_this_host_are_the_files_and_nothing_that_a_runtime_makes_of_it(
    sm80: Target, tmp_path: Path
) -> None:
    artifact = build(models.small_cnn(tmp_path), sm80)
    with TensorrtRtx().open(artifact, sm80) as session:
        assert session.properties()["graph_optimization"] == "ORT_DISABLE_ALL"
    assert not TensorrtRtx.faithful


def test_an_artifact_without_its_plan_is_said(sm80: Target, tmp_path: Path) -> None:
    artifact = replace(build(models.small_cnn(tmp_path), sm80), files=())
    with pytest.raises(
        CandidateError, match=r"^the artifact has no \.plan\.json file: build it again$"
    ):
        TensorrtRtx().estimate(artifact, sm80, tmp_path)


def test_a_library_that_isnt_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError,
        match=r"^TensorRT for RTX isn't installed \(.+\): pip install 'hasten\[gpu\]'$",
    ):
        TensorrtRtx.version()
