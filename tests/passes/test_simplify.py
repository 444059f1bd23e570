from pathlib import Path
from typing import Any

import onnx
import pytest

from hasten.core.model import Model
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.passes.base import Skipped
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.simplify import Simplify
from hasten.testing.pass_tests import PassTests, answers, error_between, run, samples_of

FOLDABLE = """
<ir_version: 8, opset_import: ["": 17]>
foldable (float[batch, 8, 4] x) => (float[batch, 32] y)
<float[8, 8, 1] w, float[8] scale, float[8] shift, float[8] mean,
 float[8] var = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}, int64 zero = {0}, int64[1] axes = {0}>
{
    [conv] c = Conv (x, w)
    [norm] n = BatchNormalization (c, scale, shift, mean, var)
    [same] i = Identity (n)
    [shape] s = Shape (i)
    [batch] b = Gather (s, zero)
    [lift] u = Unsqueeze (b, axes)
    [rest] r = Constant <value_ints = [-1]> ()
    [join] j = Concat <axis = 0> (u, r)
    [flat] y = Reshape (i, j)
}
"""
COLUMN = """
<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]>
binned (float[batch, 6] x) => (float[batch, 4] y)
<int64 third = {2}, float[3] bins = {-1.0, 0.0, 1.0}, float[1] none = {0.0}, float[1] one = {1.0}>
{
    [column] c = ai.onnx.ml.ArrayFeatureExtractor (x, third)
    [floats] f = Cast <to = 1> (c)
    [less] l = Less (f, bins)
    [nothing] n = Mul (f, none)
    [last] o = Add (n, one)
    [bins] b = Cast <to = 1> (l)
    [same] s = Identity (b)
    [join] y = Concat <axis = 1> (s, o)
}
"""


class TestSimplify(PassTests):
    @pytest.fixture
    def value(self) -> Simplify:
        return Simplify()

    @pytest.fixture
    def model(self, build: Any) -> Model:
        model: Model = build(FOLDABLE)
        return model

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_a_normalization_goes_into_its_convolution(self, model: Model, result: Model) -> None:
        assert op_counts(read_onnx(model))["BatchNormalization"] == 1
        after = op_counts(read_onnx(result))
        assert after["BatchNormalization"] == after["Identity"] == 0
        assert after["Conv"] == 1

    def test_the_result_has_the_common_ir_version(self, result: Model) -> None:
        assert read_onnx(result).ir_version == 10

    def test_a_column_of_a_pipeline_keeps_its_axes(self, build: Any, tmp_path: Path) -> None:
        model = build(COLUMN)
        result = run(Simplify(), model, tmp_path)
        assert op_counts(read_onnx(result))["Identity"] == 0
        data = samples_of(model)
        before, after = (
            answers(model, data, tmp_path / "a"),
            answers(result, data, tmp_path / "b"),
        )
        assert error_between(before, after) == 0

    def test_it_is_exact(self) -> None:
        assert Simplify.exact

    def test_external_data_stays_external(self, outside: Model, tmp_path: Path) -> None:
        result = run(Simplify(), outside, tmp_path)
        assert [file.name for file in result.files] == ["simplified.onnx.data"]
        data = samples_of(outside)
        before, after = (
            answers(outside, data, tmp_path / "a"),
            answers(result, data, tmp_path / "b"),
        )
        assert error_between(before, after) == 0


def test_a_file_that_is_gone_is_the_candidates_failure(elementwise: Model, tmp_path: Path) -> None:
    elementwise.path.unlink()
    message = r"^can't read elementwise\.onnx: \[Errno 2\] No such file or directory: .*$"
    with pytest.raises(CandidateError, match=message):
        run(Simplify(), elementwise, tmp_path)


def test_why_it_was_skipped_is_said_in_full(elementwise: Model, tmp_path: Path) -> None:
    with pytest.raises(Skipped, match=r"^nothing to simplify: all 2 nodes are needed$"):
        run(Simplify(), elementwise, tmp_path)


FUNCTION = """
<ir_version: 8, opset_import: ["": 17, "own": 1]>
gated (float[batch, 8] x) => (float[batch, 8] y)
<float[8, 8] w>
{
    [first] a = own.Gate <alpha = 0.3> (x)
    [product] p = MatMul (a, w)
    [second] y = own.Gate <alpha = 0.7> (p)
}
<domain: "own", opset_import: ["": 17]>
Gate <alpha> (x) => (y) { e = Elu <alpha: float = @alpha> (x) s = Sigmoid (e) y = Mul (x, s) }
"""


def test_functions_of_a_model_become_nodes_that_every_engine_takes(
    build: Any, tmp_path: Path
) -> None:
    model = build(FUNCTION)
    result = run(Simplify(), model, tmp_path)
    assert not onnx.load(result.path).functions
    assert op_counts(read_onnx(result)) == {"Elu": 2, "Sigmoid": 2, "Mul": 2, "MatMul": 1}
    data = samples_of(model)
    own = answers(model, data, tmp_path / "own")
    for number, engine in enumerate((OnnxRuntime(), OpenVino())):
        others = answers(result, data, tmp_path / str(number), engine)
        assert error_between(own, others) < 1e-6


def test_constants_of_floats_stay_floats(build: Any, tmp_path: Path) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["": 17]>
        halved (float[n, 3] x) => (float[n, 3] y) {
            half = Constant <value_float = 0.5> ()
            shift = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            h = Mul (x, half)
            i = Identity (h)
            y = Add (i, shift)
        }"""
    )
    data = samples_of(model)
    before = answers(model, data, tmp_path / "a")
    after = answers(run(Simplify(), model, tmp_path), data, tmp_path / "b")
    assert error_between(before, after) == 0
