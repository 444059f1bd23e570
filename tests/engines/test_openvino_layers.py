"""What a profile by OpenVINO says of the steps that it executed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.models import depthwise_cnn

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.engines.layers import LayerTime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.openvino.layers import (
    Operation,
    _counted,
    _found,
    _kind,
    _listed,
    _precision,
    operations,
)
from hasten.engines.origins import traced
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load, read
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.testing import models
from hasten.testing.engine_tests import request_for
from hasten.testing.pass_tests import NARROW, run

PRODUCTS = {"stem", "depthwise", "pointwise", "classifier"}


@pytest.fixture
def target() -> Target:
    return Target.host().with_threads(1)


def settled(path: Path) -> Model:
    model = load(path)
    return model.settled_by(
        {s.name: np.zeros([int(n) for n in s.shape[1:]], s.dtype) for s in model.inputs}
    )


def built(model: Model, target: Target) -> Any:
    folder = model.path.parent / "built"
    folder.mkdir()
    return OpenVino().build(model, target, folder)


def profiled(model: Model, path: Path, target: Target, requests: int = 3) -> tuple[LayerTime, ...]:
    """Profile what was made of an ONNX file, and name the file's own nodes."""
    artifact = built(model, target)
    asked = [request_for(artifact.request, seed=seed) for seed in range(requests)]
    return traced(OpenVino().profile(artifact, target, asked), read(path).graph)


def int8(path: Path, **settings: Any) -> Model:
    step = NncfQuantization("performance", reduce_range=NARROW, **settings)
    return run(step, settled(path), path.parent)


def of(node: str, layers: tuple[LayerTime, ...]) -> LayerTime:
    (layer,) = [layer for layer in layers if node in layer.sources]
    return layer


def test_a_fused_convolution_is_one_step_named_after_all_that_it_covers(
    target: Target, tmp_path: Path
) -> None:
    path = depthwise_cnn(tmp_path, 1)
    layers = profiled(settled(path), path, target)
    products = [layer for layer in layers if layer.kind == "arithmetic"]
    assert [layer.sources for layer in products] == [
        ("stem", "relu1"),
        ("depthwise", "relu6"),
        ("pointwise", "skip", "relu2"),
        ("classifier",),
    ]
    assert {layer.precision for layer in layers} == {"f32"}
    assert all(layer.kernel for layer in products)


def test_a_change_of_layout_is_a_conversion_of_the_runtimes_own(
    target: Target, tmp_path: Path
) -> None:
    path = depthwise_cnn(tmp_path, 1)
    layers = profiled(settled(path), path, target)
    assert (layers[0].operator, layers[0].kind, layers[0].sources) == ("Reorder", "conversion", ())


def test_an_int8_model_shows_its_conversions_and_what_runs_in_int8(
    target: Target, tmp_path: Path
) -> None:
    path = depthwise_cnn(tmp_path)
    layers = profiled(int8(path), path, target)
    products = [layer for layer in layers if layer.kind == "arithmetic"]
    assert [(layer.sources, layer.precision) for layer in products] == [
        (("stem", "relu1"), "i8"),
        (("depthwise", "relu6"), "i8"),
        (("pointwise", "skip", "relu2"), "i8"),
        (("classifier",), "i8"),
    ]
    conversions = [layer for layer in layers if layer.kind == "conversion"]
    assert {"Reorder"} < {layer.operator for layer in conversions}
    assert {layer.operator for layer in conversions} <= {"FakeQuantize", "Reorder", "Subgraph"}
    assert not any(layer.sources for layer in conversions)


def test_what_is_kept_in_float_shows_as_such(target: Target, tmp_path: Path) -> None:
    path = depthwise_cnn(tmp_path)
    layers = profiled(int8(path, keep_float=("depthwise",)), path, target)
    assert of("depthwise", layers).precision == "f32"
    assert {of(node, layers).precision for node in PRODUCTS - {"depthwise"}} == {"i8"}


def test_int8_products_without_a_bias_keep_their_names(target: Target, tmp_path: Path) -> None:
    path = models.tiny_transformer_block(tmp_path)
    layers = profiled(int8(path), path, target)
    assert {of(node, layers).precision for node in ("q", "k", "v", "up", "down")} == {"i8"}
    covered = [node for layer in layers if layer.kind == "arithmetic" for node in layer.sources]
    assert covered.count("qk") == covered.count("mixed") == 1


def test_names_like_those_that_the_runtime_makes_up_are_still_the_files(
    target: Target, tmp_path: Path
) -> None:
    path = models.tiny_transformer_block(tmp_path)
    proto = onnx.load(path)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.save(proto, path)
    layers = profiled(settled(path), path, target)
    assert of("MatMul_1", layers).kind == "arithmetic"
    assert of("Relu_12", layers) == of("MatMul_11", layers)


@pytest.mark.parametrize(
    ("operator", "types", "kind"),
    [
        ("Convolution", ["Convolution", "Add"], "arithmetic"),
        ("Reorder", [], "conversion"),
        ("Transpose", ["Transpose"], "movement"),
        ("Softmax", ["Softmax"], "elementwise"),
        ("NoSuchOperator", [], "elementwise"),
        ("Subgraph", ["Multiply", "Add"], "elementwise"),
        ("Subgraph", ["MatMul", "Softmax", "MatMul"], "arithmetic"),
        ("Subgraph", ["FakeQuantize", "Constant"], "conversion"),
        ("Eltwise", ["Convert"], "conversion"),
        ("Eltwise", [], "elementwise"),
    ],
)
def test_what_a_fused_step_spends_its_time_on_follows_from_what_it_covers(
    operator: str, types: list[str], kind: str
) -> None:
    assert _kind(operator, types) == kind


@pytest.mark.parametrize(
    ("kernel", "runtime", "precision"),
    [
        ("brgconv_avx2_1x1_f32", "f32", "f32"),
        ("jit_avx2_dw_I8", "u8", "i8"),
        ("jit_gemm_i8", "i8", "i8"),
        ("jit_avx512_amx_bf16", "bf16", "bf16"),
        ("unknown_boolean", "boolean", "boolean"),
        ("undef", "u8", "i8"),
    ],
)
def test_the_kernel_tells_the_precision(kernel: str, runtime: str, precision: str) -> None:
    assert _precision(kernel, runtime) == precision


def test_an_operation_is_called_as_its_node_and_a_quantizer_as_none(tmp_path: Path) -> None:
    model = int8(depthwise_cnn(tmp_path))
    known = operations(import_quietly("openvino").Core().read_model(model.path))
    assert known["stem/WithoutBiases"] == Operation("Convolution", ("stem",))
    assert known["relu6"] == Operation("Clamp", ("relu6",))
    assert known["relu6/fq_output_0"] == Operation("FakeQuantize", ())
    assert known["logits"] == Operation("Add", ("logits",))


def test_a_step_that_is_a_piece_of_an_operation_has_its_names() -> None:
    known = {"c": Operation("Convolution", ("c",))}
    assert _found("c", known) == known["c"]
    assert _found("c/DequantizationMultiply", known) == Operation("Convert", ("c",))
    assert _found("d/DequantizationMultiply", known) is None
    assert _found("Multiply_7", known) is None


class Counters:
    """A compiled model that takes given times for its steps, and tells of them as OpenVINO does.

    Args:
        times_us: Step -> whole microseconds of each run.
    """

    def __init__(self, times_us: dict[str, list[int]]) -> None:
        self.times_us, self.runs = times_us, 0

    def answer(self, _: object) -> None:
        self.runs += 1

    def get_runtime_model(self) -> Any:
        return SimpleNamespace(get_ops=lambda: [self.told(name) for name in self.times_us])

    def told(self, name: str) -> Any:
        mean_us = sum(self.times_us[name][: self.runs]) // self.runs
        facts = {
            "execOrder": str(list(self.times_us).index(name)),
            "execTimeMcs": str(mean_us) if mean_us else "not_executed",
            "layerType": "Softmax",
        }
        rt_info = {key: SimpleNamespace(value=value) for key, value in facts.items()}
        return SimpleNamespace(rt_info=rt_info, get_friendly_name=lambda: name)


@given(st.lists(st.lists(st.integers(0, 5000), min_size=4, max_size=4), min_size=1, max_size=4))
def test_each_requests_latency_is_told_from_the_means_to_four_microseconds(
    drawn: list[list[int]],
) -> None:
    compiled = Counters({f"step{i}": runs for i, runs in enumerate(drawn)})
    counted = list(_counted(compiled, compiled.answer, [{}, {}, {}]))
    assert compiled.runs == 4
    for number, (steps, taken_ns) in enumerate(counted, start=1):
        assert [step.name for step in steps] == [f"step{i}" for i in range(len(drawn))]
        for runs, time_ns in zip(drawn, taken_ns, strict=True):
            assert time_ns == pytest.approx(1000 * runs[number], abs=4000)


def test_what_cutting_the_means_hides_is_made_up_for_on_average() -> None:
    compiled = Counters({"step": [10, 11, 11, 11]})  # its mean is 10 after each
    counted = _counted(compiled, compiled.answer, [{}, {}, {}])
    assert [taken_ns for _, taken_ns in counted] == [[10_500], [10_500], [10_500]]


def test_a_step_that_takes_no_time_is_listed_only_if_it_is_arithmetic(
    target: Target, tmp_path: Path
) -> None:
    idle = LayerTime("a", "Reshape", "movement", "f32", "", (), (0, 0))
    assert not _listed(idle)
    assert _listed(replace(idle, kind="arithmetic"))
    assert _listed(replace(idle, latency_ns=(0, 500)))
    path = depthwise_cnn(tmp_path, 1)
    layers = profiled(settled(path), path, target)
    assert all(any(layer.latency_ns) for layer in layers if layer.kind != "arithmetic")


def test_a_request_that_fails_is_one_line(target: Target, tmp_path: Path) -> None:
    artifact = built(settled(models.linear_classifier(tmp_path)), target)
    with pytest.raises(CandidateError) as caught:
        OpenVino().profile(artifact, target, [{"x": np.ones((1, 3), np.float32)}])
    assert str(caught.value) == (
        "OpenVINO failed: Can't set the input tensor with index: 0, because the model input "
        "(shape=[?,16]) and the tensor (shape=(1.3)) are incompatible"
    )


def test_a_damaged_artifact_is_one_line(target: Target, tmp_path: Path) -> None:
    artifact = built(settled(models.linear_classifier(tmp_path)), target)
    artifact.path.write_text("<net")
    with pytest.raises(CandidateError) as caught:
        OpenVino().profile(artifact, target, [request_for(artifact.request)])
    assert str(caught.value).startswith("OpenVINO can't compile the model: ")
