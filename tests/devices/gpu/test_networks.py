"""Whole networks: quantized for TensorRT, taken by the checker, parsed and built without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.tensorrt.parts import RTX_PARTS
from hasten.engines.tensorrt.profile import alterations, violations
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.tensorrt_quantization import TensorrtQuantization
from hasten.testing.pass_tests import answers, error_between

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
)


PLAIN = OnnxRuntime(graph_optimization="disabled")


@pytest.fixture(scope="session")
def quantized(subject: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A network in int8."""
    return TensorrtQuantization()(subject.model, subject.data, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="session")
def exact(subject: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """The network's own answers."""
    return answers(subject.model, subject.data, tmp_path_factory.mktemp("exact") / "built")


@pytest.fixture(scope="session")
def float_bytes(subject: Any, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Size of the weights in the plan of the network itself."""
    return plan_bytes(subject.model, "cuda:sm80", tmp_path_factory.mktemp("float32") / "built")


def plan_bytes(model: Model, device: str, folder: Path) -> float:
    """Build a plan for a GPU that isn't here, and return how large it is."""
    target = find_target(device, root=folder)
    folder.mkdir()
    artifact = TensorrtRtx().build(model, target, folder)
    plan = next(file for file in artifact.files if file.suffix == ".plan")
    figures = TensorrtRtx().estimate(artifact, target, folder).figures
    assert figures["plan_bytes"] == plan.stat().st_size > 0
    assert {"layers", "weights_bytes", "activation_bytes"} <= figures.keys()
    return figures["weights_bytes"]


def test_int8_is_taken_and_built_and_keeps_a_quarter_of_the_weights(
    quantized: Model, float_bytes: float, tmp_path: Path
) -> None:
    assert violations(quantized.path) == alterations(quantized.path) == ()
    assert plan_bytes(quantized, "cuda:sm80", tmp_path / "int8") < 0.3 * float_bytes


def test_half_precision_is_built_for_turing_and_keeps_half_of_the_weights(
    subject: Any, float_bytes: float, tmp_path: Path
) -> None:
    (tmp_path / "half").mkdir()
    half = HalfPrecision()(subject.model, subject.data, tmp_path / "half")
    assert violations(half.path, "sm75") == alterations(half.path) == ()
    assert plan_bytes(half, "cuda:sm75", tmp_path / "sm75") < 0.6 * float_bytes


def test_int8_with_the_rest_in_half_precision_is_built_for_every_gpu(
    subject: Any, exact: dict[str, Array], tmp_path: Path
) -> None:
    (tmp_path / "mixed").mkdir()
    step = TensorrtQuantization(half=True)
    mixed = step(subject.model, subject.data, tmp_path / "mixed")
    assert violations(mixed.path, "sm75") == alterations(mixed.path) == ()
    for part in RTX_PARTS:
        assert plan_bytes(mixed, f"cuda:{part}", tmp_path / part) > 0
    quick = answers(mixed, subject.data, tmp_path / "quick", PLAIN)
    assert 0 < error_between(exact, quick) < subject.bound


@pytest.mark.parametrize("part", [part for part in RTX_PARTS if part != "sm75"])
def test_int8_is_built_for_every_gpu_but_turing(
    part: str, quantized: Model, tmp_path: Path
) -> None:
    assert plan_bytes(quantized, f"cuda:{part}", tmp_path / part) > 0


def test_float32_products_of_matrices_arent_for_turing(quantized: Model, tmp_path: Path) -> None:
    with pytest.raises(
        CandidateError,
        match=r"^TensorRT can't take the model: (Gemm|MatMul) \(node '\w+'\): sm75 has no matrix product in float32: use half precision",
    ):
        plan_bytes(quantized, "cuda:sm75", tmp_path / "sm75")


def test_answers_in_int8_stay_within_the_bound_on_this_host(
    subject: Any, quantized: Model, exact: dict[str, Array], tmp_path: Path
) -> None:
    quick = answers(quantized, subject.data, tmp_path / "quick", PLAIN)
    assert 0 < error_between(exact, quick) < subject.bound
