from pathlib import Path

import onnx
import pytest
from hasten_numpy.engine import NumpyEngine

from hasten.core.target import Target
from hasten.errors import NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing.engine_tests import EngineTests


class TestNumpyEngine(EngineTests):
    engine = NumpyEngine()


def test_an_operator_with_attributes_that_it_does_not_take_is_skipped(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        scaled (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 0, 0, 1}> {
            y = Gemm <alpha = 2.0> (x, w)
        }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "scaled.onnx")
    with pytest.raises(NotCovered, match="Gemm with alpha, beta or transA isn't taken"):
        NumpyEngine().build(load(tmp_path / "scaled.onnx"), Target.host(), tmp_path / "built")
