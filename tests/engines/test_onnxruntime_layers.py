"""What a profile by ONNX Runtime says of the steps that it executed."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.models import depthwise_cnn

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.layers import LayerTime
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.onnxruntime.layers import _WARMUP, _runs, _timed
from hasten.engines.origins import traced
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load, read
from hasten.passes.base import Pass
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing import models
from hasten.testing.engine_tests import request_for
from hasten.testing.pass_tests import NARROW, run

DEFAULT = OnnxRuntime()
PRODUCTS = {"stem", "depthwise", "pointwise", "classifier"}


@pytest.fixture
def target() -> Target:
    return Target.host().with_threads(1)


def built(path: Path, target: Target, engine: OnnxRuntime = DEFAULT) -> Artifact:
    folder = path.parent / "built"
    folder.mkdir()
    return engine.build(load(path), target, folder)


def profiled(
    path: Path, target: Target, engine: OnnxRuntime = DEFAULT, requests: int = 3
) -> tuple[LayerTime, ...]:
    artifact = built(path, target, engine)
    asked = [request_for(artifact.inputs, seed=seed) for seed in range(requests)]
    return engine.profile(artifact, target, asked)


def settled(path: Path) -> Model:
    model = load(path)
    return model.settled_by({s.name: np.zeros(s.shape[1:], s.dtype) for s in model.inputs})  # type: ignore[arg-type]


def quantized(step: Pass, path: Path) -> Path:
    return run(step, settled(path), path.parent).path


def of(node: str, layers: tuple[LayerTime, ...]) -> LayerTime:
    (layer,) = [layer for layer in layers if node in layer.sources]
    return layer


def test_a_fused_convolution_is_one_step_named_after_all_that_it_covers(
    target: Target, tmp_path: Path
) -> None:
    layers = profiled(depthwise_cnn(tmp_path, 1), target)
    assert [layer.sources for layer in layers if layer.kind == "arithmetic"] == [
        ("stem", "relu1"),
        ("depthwise", "relu6"),
        ("pointwise", "skip", "relu2"),
        ("classifier",),
    ]
    assert of("pool", layers).operator == "GlobalAveragePool"
    assert {layer.precision for layer in layers} == {"f32"}


def test_reorders_are_conversions_of_the_runtimes_own(target: Target, tmp_path: Path) -> None:
    layers = profiled(depthwise_cnn(tmp_path, 1), target)
    reorders = [layer for layer in layers if layer.operator.startswith("Reorder")]
    assert reorders
    assert {(layer.kind, layer.sources) for layer in reorders} == {("conversion", ())}
    assert of("stem", layers).kernel == "com.microsoft.nchwc"


def test_without_optimization_each_node_is_a_step_in_the_files_order(
    target: Target, tmp_path: Path
) -> None:
    path = depthwise_cnn(tmp_path, 1)
    layers = profiled(path, target, OnnxRuntime(graph_optimization="disabled"))
    nodes = read(path).graph.node
    assert [(layer.name, layer.operator, layer.sources) for layer in layers] == [
        (node.name, node.op_type, (node.name,)) for node in nodes
    ]


def test_a_node_without_a_name_is_called_as_its_output(target: Target, tmp_path: Path) -> None:
    layers = profiled(models.two_inputs(tmp_path, 1), target)
    assert of("score", layers).operator == "Mul"
    assert of("rows", layers).kind == "movement"
    assert of("same_ids", layers).precision == "i64"


def test_an_int8_model_shows_its_conversions_and_what_runs_in_int8(
    target: Target, tmp_path: Path
) -> None:
    source = depthwise_cnn(tmp_path)
    layers = profiled(quantized(StaticQuantization(reduce_range=NARROW), source), target)
    layers = traced(layers, read(source).graph)
    assert {of(node, layers).precision for node in PRODUCTS} == {"i8"}
    assert of("stem", layers).operator == "QLinearConv"
    assert of("stem", layers).sources == ("stem", "relu1")
    conversions = [layer for layer in layers if layer.kind == "conversion"]
    operators = {layer.operator for layer in conversions}
    assert operators == {"QuantizeLinear", "DequantizeLinear", "Transpose"}
    assert not any(layer.sources for layer in conversions)


def test_what_is_kept_in_float_shows_as_such(target: Target, tmp_path: Path) -> None:
    step = StaticQuantization(reduce_range=NARROW, keep_float=("stem",))
    layers = profiled(quantized(step, depthwise_cnn(tmp_path)), target)
    assert of("stem", layers).precision == "f32"
    assert {of(node, layers).precision for node in PRODUCTS - {"stem"}} == {"i8"}


def test_dynamic_quantization_multiplies_in_int8_though_it_reads_floats(
    target: Target, tmp_path: Path
) -> None:
    source = models.tiny_transformer_block(tmp_path)
    layers = profiled(quantized(DynamicQuantization(), source), target)
    layers = traced(layers, read(source).graph)
    assert {of(node, layers).precision for node in ("q", "k", "v", "up", "down")} == {"i8"}
    assert {of(node, layers).precision for node in ("qk", "mixed")} == {"f32"}
    assert all(of(node, layers).kind == "arithmetic" for node in ("q", "up", "mixed"))


CONDITION = """
<ir_version: 10, opset_import: ["": 17]>
condition (float[1, 64] x, bool flag) => (float[1, 64] y) {
    [first] a = Exp(x)
    [choice] b = If (flag) <
        then_branch = yes () => (float[1, 64] t) { [inner] i = Sin(a) [inner2] t = Cos(i) },
        else_branch = no () => (float[1, 64] e) { [other] e = Tan(a) }
    >
    [last] y = Log(b)
}
"""


def test_what_runs_inside_of_a_condition_is_its_own_time(target: Target, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(CONDITION), tmp_path / "condition.onnx")
    artifact = built(tmp_path / "condition.onnx", target)
    x = np.ones((1, 64), np.float32)
    both = [{"x": x, "flag": np.array(flag)} for flag in (True, False)]
    layers = OnnxRuntime().profile(artifact, target, both)
    assert [layer.operator for layer in layers] == ["Exp", "If", "Log"]
    assert [layer.sources for layer in layers] == [("first",), ("choice",), ("last",)]


def event(name: str, operator: str, ts: int, dur: int) -> dict[str, Any]:
    kind, suffix = ("Node", "_kernel_time") if operator else ("Session", "")
    return {"cat": kind, "name": name + suffix, "ts": ts, "dur": dur, "args": {"op_name": operator}}


def test_a_trace_is_split_into_its_requests_and_inner_steps_are_left_to_their_loop() -> None:
    trace = [
        event("model_loading_uri", "", 0, 5),
        event("a", "Exp", 10, 3),
        event("model_run", "", 9, 5),
        event("a", "Exp", 20, 4),
        event("inner", "Sin", 25, 2),
        event("inner", "Sin", 28, 2),
        event("b", "Loop", 24, 9),
        event("c", "Log", 34, 1),
        event("model_run", "", 19, 20),
    ]
    runs = [[(step["name"], step["dur"]) for step in run] for run in _runs(trace)]
    assert runs == [
        [("a_kernel_time", 3)],
        [("a_kernel_time", 4), ("b_kernel_time", 9), ("c_kernel_time", 1)],
    ]


def test_requests_that_warm_up_are_left_out() -> None:
    trace = [
        each
        for number in range(_WARMUP + 2)
        for each in (event("a", "Exp", 100 * number, number), event("model_run", "", 0, 0))
    ]
    assert [run[0]["dur"] for run in _timed(trace, 2)] == [_WARMUP, _WARMUP + 1]
    for count, changed in ((3, trace), (2, [*trace[:-2], event("b", "Exp", 0, 0), trace[-1]])):
        with pytest.raises(CandidateError) as caught:
            _timed(changed, count)
        assert str(caught.value) == ("ONNX Runtime executed different steps for different requests")


def test_nothing_is_left_of_the_trace(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "scratch")
    artifact = built(models.linear_classifier(tmp_path), target)
    before = sorted(tmp_path.rglob("*"))
    assert OnnxRuntime().profile(artifact, target, [request_for(artifact.inputs)])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_request_that_fails_is_one_line(target: Target, tmp_path: Path) -> None:
    artifact = built(models.linear_classifier(tmp_path), target)
    with pytest.raises(CandidateError) as caught:
        OnnxRuntime().profile(artifact, target, [{"x": np.ones((1, 3), np.float32)}])
    assert str(caught.value) == (
        "ONNX Runtime failed: Got invalid dimensions for input: x for the following indices"
    )


def test_without_onnx_the_extra_is_named(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = built(models.linear_classifier(tmp_path), target)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError) as caught:
        OnnxRuntime().profile(artifact, target, [request_for(artifact.inputs)])
    assert str(caught.value) == (
        "a profile of ONNX Runtime needs the extra: pip install 'hasten[optimize]'"
    )
