from pathlib import Path

import onnx
import pytest

from hasten.model import Model
from hasten.passes.base import Skipped
from hasten.passes.fix_shapes import FixShapes
from hasten.passes.onnx_files import read_onnx
from hasten.testing.pass_tests import PassTests, run


class TestFixShapes(PassTests):
    bound = 0.0

    @pytest.fixture
    def value(self) -> FixShapes:
        return FixShapes()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, convnet: Model, tmp_path: Path) -> Model:
        return run(FixShapes(), convnet, tmp_path, "settled")

    def test_the_specs_state_the_settled_shapes(self, result: Model) -> None:
        assert [spec.shape for spec in (*result.inputs, *result.outputs)] == [
            (1, 3, 16, 16),
            (1, 5),
        ]

    def test_every_tensor_of_the_file_has_a_settled_shape(self, result: Model) -> None:
        graph = read_onnx(result).graph
        values = (*graph.input, *graph.output, *graph.value_info)
        dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
        assert len(values) == 2 + len(graph.node) - 1
        assert all(dim.HasField("dim_value") for dim in dims)
        onnx.checker.check_model(str(result.path), full_check=True)

    def test_it_is_exact(self) -> None:
        assert FixShapes.exact

    def test_why_it_was_skipped_is_said_in_full(self, idle_model: Model, tmp_path: Path) -> None:
        with pytest.raises(Skipped, match=r"^every dimension is settled already$"):
            run(FixShapes(), idle_model, tmp_path)
