import re
from pathlib import Path

import onnx
import pytest

from hasten.core.model import Model
from hasten.errors import InputError
from hasten.passes.base import Skipped
from hasten.passes.fix_shapes import FixShapes
from hasten.passes.onnx_files import read_onnx
from hasten.testing.pass_tests import PassTests, answers, error_between, run, samples_of


class TestFixShapes(PassTests):
    bound = 0.0

    @pytest.fixture
    def value(self) -> FixShapes:
        return FixShapes()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        # As exporters write it: with the open shape of every tensor.
        path = str(convnet.path)
        onnx.shape_inference.infer_shapes_path(path, path)
        assert len(read_onnx(convnet).graph.value_info) == 7
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
        with pytest.raises(Skipped, match=r"^every dimension is already fixed$"):
            run(FixShapes(), idle_model, tmp_path)

    def test_external_data_stays_external(self, outside: Model, tmp_path: Path) -> None:
        result = run(FixShapes(), outside, tmp_path)
        assert [file.name for file in result.files] == ["fixed.onnx.data"]
        data = samples_of(outside)
        before, after = (
            answers(outside, data, tmp_path / "a"),
            answers(result, data, tmp_path / "b"),
        )
        assert error_between(before, after) == 0


def test_a_folder_that_cant_be_written_to_is_the_callers_to_fix(
    convnet: Model, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    message = f"^can't write {re.escape(str(missing))}/fixed\\.onnx: No such file or directory$"
    with pytest.raises(InputError, match=message):
        FixShapes()(convnet, samples_of(convnet), missing)
