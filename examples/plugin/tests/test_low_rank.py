from pathlib import Path

import numpy as np
import onnx
import pytest
from hasten_numpy.low_rank import LowRank

from hasten.core.model import Model
from hasten.inputs.models.onnx import load
from hasten.testing.pass_tests import PassTests

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
wide (float[batch, 64] x) => (float[batch, 64] y) {
    [product] h = MatMul (x, w)
    [relu] y = Relu (h)
}
"""


def written(folder: Path, weight: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, folder / "wide.onnx")
    return load(folder / "wide.onnx").settled_by({"x": np.zeros(64, np.float32)})


class TestLowRank(PassTests):
    bound = 0.05

    @pytest.fixture
    def value(self) -> LowRank:
        return LowRank()

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        rng = np.random.default_rng(0)
        thin = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 64))
        return written(tmp_path, thin.astype(np.float32))

    @pytest.fixture
    def idle_model(self, tmp_path: Path) -> Model:
        return written(tmp_path, np.eye(64, dtype=np.float32))

    def test_the_weights_shrink(self, model: Model, result: Model) -> None:
        before, after = model.path.stat().st_size, result.path.stat().st_size
        assert after < before / 4
