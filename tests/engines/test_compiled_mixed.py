"""Networks of bytes with layers that stay in float, as mixed precision makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Engine
from hasten.engines.compiled.engine import CompiledC, read
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import NotCovered
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.optimization.measured.mixing import mixed
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import run

_TEXT = """
    <ir_version: 8, opset_import: ["": 17]>
    residual (float[1, 3, 56, 56] x) => (float[1, 10] y) {
        s0 = Conv <pads = [1, 1, 1, 1]> (x, stem)
        s = Relu (s0)
        a0 = Conv <pads = [1, 1, 1, 1]> (s, w1)
        a = Relu (a0)
        b0 = Conv <pads = [1, 1, 1, 1]> (a, w2)
        b1 = Add (b0, s)
        b = Relu (b1)
        c0 = Conv <pads = [1, 1, 1, 1]> (b, w3)
        c = Relu (c0)
        d0 = Conv <pads = [1, 1, 1, 1]> (c, w4)
        d1 = Add (d0, b)
        d = Relu (d1)
        p = GlobalAveragePool (d)
        f = Flatten (p)
        y = Gemm <transB = 1> (f, head)
    }"""
_SHAPES = {
    "stem": (64, 3, 3, 3),
    **{f"w{n}": (64, 64, 3, 3) for n in range(1, 5)},
    "head": (10, 64),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A network of which each of four layers has 116 million products, like those of a ResNet."""
    model = onnx.parser.parse_model(_TEXT)
    rng = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        spread = np.sqrt(2 / np.prod(shape[1:]))
        array = (rng.standard_normal(shape) * spread).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0]
    path = tmp_path_factory.mktemp("residual") / "residual.onnx"
    onnx.save(model, path)
    return load(path).settled_by({"x": np.zeros((3, 56, 56), np.float32)})


def _answers(engine: Engine, artifact: Artifact, x: Array) -> Array:
    with engine.open(artifact, Target.host()) as session:
        return session.run({"x": x})["y"]


def _mix(network: Model, kept: tuple[str, ...], folder: Path) -> tuple[Single, Model]:
    base = Single((StaticQuantization(samples=4),), CompiledC())
    candidate = mixed(base, kept)
    return candidate, run(candidate.passes[0], network, folder)


def _built(engine: Engine, model: Model, folder: Path) -> Artifact:
    folder.mkdir()
    return engine.build(model, Target.host(), folder)


def test_a_mix_of_a_network_like_resnet_is_built_and_answers_as_the_runtime(
    network: Model, tmp_path: Path
) -> None:
    candidate, model = _mix(network, ("b0",), tmp_path)
    artifact = _built(candidate.engine, model, tmp_path / "c")
    plan, _ = read(artifact)
    floats = [one.work for one in plan.operations if not one.narrow]
    assert sum(floats) > CompiledC().most_work
    assert not plan.same_bits
    x = np.random.default_rng(1).standard_normal((1, 3, 56, 56)).astype(np.float32)
    found = _answers(candidate.engine, artifact, x)
    runtime = OnnxRuntime(threads=1)
    original = _answers(runtime, _built(runtime, network, tmp_path / "o"), x)
    assert np.abs(found - original).max() < 0.05 * np.ptp(original)


def test_a_mix_that_is_mostly_of_floats_is_left_to_the_runtimes(
    network: Model, tmp_path: Path
) -> None:
    candidate, model = _mix(network, ("a0", "b0", "c0"), tmp_path)
    with pytest.raises(NotCovered, match=r"has more \(\d+ million; with bytes \d+ million\)$"):
        _built(candidate.engine, model, tmp_path / "c")


def test_a_float_model_is_refused_before_all_of_it_is_lowered(
    network: Model, tmp_path: Path
) -> None:
    with pytest.raises(NotCovered, match=r"takes up to 30 million .*: this model has more$"):
        _built(CompiledC(), network, tmp_path / "c")
    few = replace(CompiledC(), most_work=10**9)
    assert _built(few, network, tmp_path / "d").size_bytes
