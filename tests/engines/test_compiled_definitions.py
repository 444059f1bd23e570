"""Operators that the engine that writes C takes by the standard's own definitions, and versions that it doesn't know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from hasten.core.target import Target
from hasten.engines.compiled import lowering
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import NotCovered
from hasten.inputs.models.onnx import load

Array = npt.NDArray[Any]

ATTENTION = """<ir_version: 11, opset_import: ["": 23]>
    g (float[1, 5, 8] x) => (float[1, 5, 8] y) <float[8] scale = {1, 2, 1, 2, 1, 2, 1, 2}> {
        n = RMSNormalization (x, scale)
        y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (n, x, n)
    }"""
SHRUNK = """<ir_version: 10, opset_import: ["": 21]>
    g (float[N, 9] x) => (float[N, 9] y) { s = Shrink <lambd = 0.3> (x)  y = Tanh (s) }"""
BY_COLUMNS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6, 4] x) => (float[N, 3, 4] y, int64[N, 3, 4] at) <int64[1] k = {3}> {
        y, at = TopK <axis = 1, largest = 0> (x, k)
    }"""
BY_PLACES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[6, 4] x, int64[5, 1] at) => (float[5, 4] y) { y = GatherND (x, at) }"""
BY_SEVERAL_PLACES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 5, 4] x) => (float[2, 3, 4] y, float[2, 3] z)
    <int64[2, 3, 2] at = {0, 4, 1, -1, -2, 0, 1, 1, 0, 0, 1, 3},
     int64[2, 3, 3] all = {0, 4, 1, 1, -1, 0, -2, 0, 3, 1, 1, 2, 0, 0, -4, 1, 3, 3}> {
        y = GatherND (x, at)
        z = GatherND (x, all)
    }"""
DEPTH = """<ir_version: 13, opset_import: ["": 28]>
    g (float[N, 2, 4, 6] x) => (float[N, 8, 2, 3] y) { y = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) }"""


def written(text: str, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def answered(path: Path, given: dict[str, Array], folder: Path) -> dict[str, Array]:
    target, engine = Target.host().with_threads(1), CompiledC()
    with engine.open(engine.build(load(path), target, folder), target) as session:
        return session.run(given)


@pytest.mark.parametrize("text", [ATTENTION, SHRUNK, BY_COLUMNS, BY_PLACES, BY_SEVERAL_PLACES])
def test_it_answers_as_onnx_runtime(text: str, tmp_path: Path) -> None:
    path = written(text, tmp_path)
    session = onnxruntime.InferenceSession(path)
    random = np.random.default_rng(0)
    given: dict[str, Array] = {}
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in one.shape]
        given[one.name] = random.standard_normal(shape).astype(np.float32)
    if "at" in given:
        given["at"] = np.array([[3], [-1], [0], [5], [-6]])
    found = answered(path, given, tmp_path)
    for output, wanted in zip(session.get_outputs(), session.run(None, given), strict=True):
        np.testing.assert_allclose(found[output.name], wanted, rtol=1e-5, atol=1e-6)


def test_an_operator_is_named_as_the_model_names_it(tmp_path: Path) -> None:
    path = written(SHRUNK.replace("Tanh (s)", "Det (s)").replace("[N, 9]", "[3, 3]"), tmp_path)
    with pytest.raises(NotCovered, match=r"^the compiled engine doesn't take Shrink \(node that"):
        CompiledC().build(load(path), Target.host(), tmp_path)


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("this onnx doesn't know operator set 28")
    return written(DEPTH, tmp_path)


def test_channels_come_first_where_operator_set_28_says_so(depth: Path, tmp_path: Path) -> None:
    x = np.arange(96, dtype=np.float32).reshape(2, 2, 4, 6)
    wanted = x.reshape(2, 2, 2, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 8, 2, 3)
    assert np.array_equal(answered(depth, {"x": x}, tmp_path)["y"], wanted)


def test_an_attribute_of_a_later_operator_set_is_refused_and_not_passed_over(
    depth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "_NEWEST", 27)
    message = r"^the compiled engine doesn't take SpaceToDepth \(node .*\): its attribute 'mode' came after operator set 27$"
    with pytest.raises(NotCovered, match=message):
        CompiledC().build(load(depth), Target.host(), tmp_path)
