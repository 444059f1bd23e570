"""A quantized network on the compiled engine and in numpy's integers: the same bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC, read
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.testing import models

_TEXT = """
    <ir_version: 8, opset_import: ["": 17]>
    network (float[N, 3, 20, 18] x) => (float[N, 10] y) <float zero = {0}, float six = {6}> {
        a0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, stem)
        a = Clip(a0, zero, six)
        b0 = Conv(a, expand)
        b = HardSwish(b0)
        c0 = Conv <group = 24, pads = [1, 1, 1, 1]> (b, depth)
        c = Relu(c0)
        s0 = GlobalAveragePool(c)
        s1 = Conv(s0, reduce)
        s2 = Relu(s1)
        s3 = Conv(s2, gate)
        s = HardSigmoid(s3)
        g = Mul(c, s)
        d0 = Conv(g, project)
        d = Add(d0, a)
        p = GlobalAveragePool(d)
        f = Flatten(p)
        y = Gemm <transB = 1> (f, head, bias)
    }"""
_WEIGHTS = {
    "stem": (8, 3, 3, 3),
    "expand": (24, 8, 1, 1),
    "depth": (24, 1, 3, 3),
    "reduce": (6, 24, 1, 1),
    "gate": (24, 6, 1, 1),
    "project": (8, 24, 1, 1),
    "head": (10, 8),
    "bias": (10,),
}


class _Requests(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, requests: list[Array]) -> None:
        self._left = iter(requests)

    def get_next(self) -> dict[str, Array] | None:
        found = next(self._left, None)
        return None if found is None else {"x": found}


@pytest.fixture(scope="module")
def pictures() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, 20, 18)).astype(np.float32) for _ in range(6)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, pictures: list[Array]) -> Path:
    rng = np.random.default_rng(1)
    model = onnx.parser.parse_model(_TEXT)
    for name, shape in _WEIGHTS.items():
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        array = (rng.standard_normal(shape) * 1.6 / np.sqrt(fan)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    folder = tmp_path_factory.mktemp("integers")
    onnx.save(model, folder / "float.onnx")
    quantization.quantize_static(
        folder / "float.onnx",
        folder / "model.onnx",
        _Requests(pictures),
        per_channel=True,
        extra_options={"WeightSymmetric": True},
    )
    return folder / "model.onnx"


def answers(engine: Engine, path: Path, folder: Path, pictures: list[Array]) -> Array:
    folder.mkdir()
    artifact = engine.build(load(path), Target.host(), folder)
    with engine.open(artifact, Target.host()) as session:
        single = np.concatenate([session.run({"x": one})["y"] for one in pictures])
        together = session.run({"x": np.concatenate(pictures)})["y"]
    if not isinstance(engine, OnnxRuntime):
        assert single.tobytes() == together.tobytes()
    return single


def test_the_c_answers_as_numpy_does_and_near_the_runtime(
    quantized: Path, pictures: list[Array], tmp_path: Path
) -> None:
    compiled = answers(CompiledC(), quantized, tmp_path / "c", pictures)
    integers = answers(Integers(), quantized, tmp_path / "i", pictures)
    runtime = answers(OnnxRuntime(), quantized, tmp_path / "o", pictures)
    assert compiled.tobytes() == integers.tobytes()
    assert np.abs(compiled - runtime).mean() < 0.02 * np.ptp(runtime)


def test_functions_and_residuals_are_computed_with_the_convolutions_before(
    quantized: Path, tmp_path: Path
) -> None:
    model = load(quantized)
    plan, _ = read(CompiledC().build(model, Target.host(), tmp_path))
    kinds = Counter(type(operation).__name__ for operation in plan.operations)
    assert kinds == {"Quantize": 1, "Conv8": 7, "Pool8": 2, "Gate8": 1, "Dequantize": 1}
    convolutions = [one for one in plan.operations if isinstance(one, Conv8)]
    assert sum(bool(one.table) for one in convolutions) == 2
    assert sum(bool(one.residual) for one in convolutions) == 1


def test_a_model_of_floats_has_no_integers(tmp_path: Path) -> None:
    model = load(models.small_cnn(tmp_path))
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError, match="a step calculates with floats"):
        Integers().build(model, Target.host(), tmp_path / "built")
