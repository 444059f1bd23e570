from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.models import Build, settled

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.block_quantization import BlockQuantization
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.testing.pass_tests import PassTests, answers, error_between, host, run, samples_of

SCORER = """
<ir_version: 10, opset_import: ["": 20]>
scorer (float[batch, 64] x) => (float[batch, 16] y)
<float[96, 64] w, float[96] b, float[96, 16] v>
{
    [first] h = Gemm <transB = 1> (x, w, b)
    [bend] r = Relu (h)
    [second] y = Gemm (r, v)
}
"""
LARGE = """
<ir_version: 10, opset_import: ["": 20]>
large (float[batch, 512] x) => (float[batch, 512] y)
<float[512, 512] w>
{
    [product] y = MatMul (x, w)
}
"""


BRANCHING = """
<ir_version: 10, opset_import: ["": 20]>
branching (float[batch, 64] x, bool c) => (float[batch, 96] y, float[96, 64] v)
<float[96, 64] w, float[96, 64] v, float[96, 64] u, float[96] k>
{
    [first] h = Gemm <transB = 1> (x, w)
    [second] g = Gemm <transB = 1> (x, v)
    [third] f = Gemm <transB = 1> (x, u)
    hg = Add (h, g)
    s = Add (hg, f)
    y = If (c) <
        then_branch = added () => (float[batch, 96] a) { a = Add (s, k) },
        else_branch = other () => (float[batch, 96] o) {
            ut = Transpose <perm = [1, 0]> (u)
            o = MatMul (x, ut)
        }
    >
}
"""


class TestBlockQuantization(PassTests):
    bound = 0.03

    @pytest.fixture
    def value(self) -> BlockQuantization:
        return BlockQuantization()

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_every_product_with_weights_reads_them_in_8_bits(self, result: Model) -> None:
        counts = op_counts(read_onnx(result))
        assert (counts["MatMulNBits"], counts["MatMul"]) == (4, 2)


def test_a_gemm_becomes_a_product_and_a_sum_in_either_order_of_its_weights(
    build: Build, tmp_path: Path
) -> None:
    model = build(SCORER, "scorer")
    result = run(BlockQuantization(), model, tmp_path)
    proto = read_onnx(result)
    assert op_counts(proto) == {"MatMulNBits": 2, "Relu": 1, "Add": 1}
    assert not {"w", "v", "w/turned"} & {tensor.name for tensor in proto.graph.initializer}
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "exact")
    assert error_between(exact, answers(result, data, tmp_path / "own")) < 0.03


def test_constants_that_a_branch_or_an_output_reads_are_kept(build: Build, tmp_path: Path) -> None:
    graph = read_onnx(run(BlockQuantization(), build(BRANCHING, "branching"), tmp_path)).graph
    kept = {tensor.name for tensor in graph.initializer}
    assert {"k", "u", "v"} <= kept
    assert "w" not in kept


def test_an_answer_does_not_depend_on_its_batch_mates(build: Build, tmp_path: Path) -> None:
    model = build(SCORER, "scorer")
    result = run(BlockQuantization(), model, tmp_path)
    data = samples_of(model)
    alone = answers(result, data, tmp_path / "alone")["y"]
    loud = data.inputs(range(len(data)))["x"].copy()
    loud[1:] *= 100
    beside = answers(result, ArrayDataset({"x": loud}), tmp_path / "beside", batch=8)["y"]
    np.testing.assert_allclose(beside[0], alone[0], rtol=1e-5, atol=1e-5)


def test_4_bits_take_half_of_8_and_err_more(build: Build, tmp_path: Path) -> None:
    model = build(LARGE, "large")
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "exact")
    sizes, errors = [], []
    for bits in (8, 4):
        result = run(BlockQuantization(bits=bits), model, tmp_path, f"made{bits}")
        sizes.append(result.size_bytes)
        errors.append(error_between(exact, answers(result, data, tmp_path / f"own{bits}")))
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    assert errors[0] < 0.02 < errors[1] < 0.2


def test_a_kept_product_stays_in_float(attention: Model, tmp_path: Path) -> None:
    result = run(BlockQuantization(keep_float=("out", "key")), attention, tmp_path)
    graph = read_onnx(result).graph
    assert op_counts(read_onnx(result))["MatMulNBits"] == 2
    assert {"out", "key"} < {node.name for node in graph.node if node.op_type == "MatMul"}


def test_it_is_tried_on_this_host_where_weights_are_many(build: Build, attention: Model) -> None:
    large = build(LARGE, "large")
    assert len(list(BlockQuantization.variants(large, host()))) == 3
    assert list(BlockQuantization.variants(attention, host())) == []
    assert list(BlockQuantization.variants(large, find_target("cuda"))) == []


def test_why_it_was_skipped_is_said_in_full(elementwise: Model, tmp_path: Path) -> None:
    message = r"^nothing to quantize: there is no matrix product with constant weights$"
    with pytest.raises(Skipped, match=message):
        run(BlockQuantization(), elementwise, tmp_path)


def test_a_quantizer_that_changes_nothing_is_refused(
    attention: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    monkeypatch.setattr(ort.MatMulNBitsQuantizer, "process", lambda _: None)
    message = r"^ONNX Runtime's quantizer left all 4 matrix products in float$"
    with pytest.raises(CandidateError, match=message):
        run(BlockQuantization(), attention, tmp_path)


def test_weights_that_an_old_file_lists_as_inputs_are_no_inputs_of_the_result(
    build: Build, tmp_path: Path
) -> None:
    path = build(SCORER, "old").path
    proto = onnx.load(str(path))
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        for one in proto.graph.initializer
    )
    onnx.save(proto, str(path))
    model = settled(load(path))
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "before")
    result = run(BlockQuantization(), model, tmp_path)
    assert error_between(exact, answers(result, data, tmp_path / "after")) < 0.03
