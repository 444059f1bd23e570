"""IR files with open lengths on the compiled engine: their arithmetic of shapes is settled with the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import openvino.opset13 as ops
import pytest
from openvino.utils.node_factory import NodeFactory
from tests.support.plans import answers

from hasten.core.model import Model
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.compiled.ir.reader import as_onnx
from hasten.engines.compiled.lowering import lower_graph
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.nncf_quantization import NncfQuantization

Make = Callable[..., Any]
AS_WRITTEN = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
"""OpenVINO with the roundings as the IR has them: its integers overflow on processors without VNNI."""


def ir(folder: Path, make: Make, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """Write the IR of a function of inputs by name, of which -1 leaves sizes open."""
    given = {name: ops.parameter(shape, np.float32, name) for name, shape in shapes.items()}
    for name, parameter in given.items():
        parameter.output(0).set_names({name})
    made = make(*given.values()).output(0)
    made.set_names({"y"})
    path = folder / "open.xml"
    openvino.save_model(openvino.Model([made], [*given.values()]), path, compress_to_fp16=False)
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    outputs = (TensorSpec("y", "float32", ("n",)),)
    return Model(path, "openvino", inputs, outputs, files=(path.with_suffix(".bin"),))


def lowered(model: Model, given: Mapping[str, Array]) -> tuple[Plan, bytes]:
    """Return the plan of an IR for the shapes of a request, checked, and its weights."""
    request = tuple(TensorSpec(name, str(one.dtype), one.shape) for name, one in given.items())
    plan, weights = lower_graph(as_onnx(model.path, request, model.outputs), request, model.outputs)
    plan.check(len(weights))
    return plan, weights


def both(model: Model, given: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return the compiled engine's answer, and OpenVINO's."""
    plan, weights = lowered(model, given)
    found = answers(plan, weights, dict(zip(plan.inputs, given.values(), strict=True)))
    graph = openvino.Core().compile_model(model.path, "CPU", AS_WRITTEN)
    (wanted,) = graph(dict(given)).values()
    return found[plan.outputs[0]].reshape(wanted.shape), wanted


def length(given: Any, axis: int = 1, dtype: str = "i64") -> Any:
    """Return a size of an input, as the graph computes it, in an array of one."""
    return ops.gather(ops.shape_of(given, dtype), np.array([axis]), np.array(0))


def whole(*numbers: int) -> Any:
    return ops.constant(np.array(numbers, np.int64))


TABLE = np.random.default_rng(2).standard_normal((1, 40)).astype(np.float32)


def _counted(x: Any) -> Any:
    """Add 3, 5, 7 ... along the axis."""
    end = ops.add(ops.multiply(ops.squeeze(length(x), 0), ops.constant(np.int64(2))), 3)
    places = ops.range(ops.constant(np.int32(3)), end, ops.constant(np.int32(2)), "i32")
    return ops.add(x, ops.convert(places, "f32"))


def _counted_in_floats(x: Any) -> Any:
    end = ops.convert(ops.squeeze(length(x), 0), "f32")
    places = ops.range(ops.constant(np.float32(0)), end, ops.constant(np.float32(1)), "f32")
    return ops.multiply(x, places)


def _first_of_a_table(x: Any) -> Any:
    return ops.add(x, ops.slice(TABLE, whole(0), length(x), whole(1), whole(1)))


def _first_in_narrow_sizes(x: Any) -> Any:
    """Mix types of sizes, and leave the axes out."""
    ends = ops.concat([ops.constant(np.array([1], np.int32)), length(x, dtype="i32")], 0)
    starts, steps = (ops.constant(np.array([n, n], np.int32)) for n in (0, 1))
    return ops.add(x, ops.slice(TABLE, starts, ends, steps))


def _turned(x: Any) -> Any:
    """Slice backwards, from a size to the beginning."""
    last = ops.subtract(length(x), whole(1))
    return ops.slice(x, last, whole(-1000), whole(-1), whole(1))


def _spread(x: Any) -> Any:
    one = ops.constant(np.full((1, 1), 0.5, np.float32))
    return ops.multiply(
        x, ops.broadcast(one, ops.shape_of(x, "i64"), broadcast_spec="BIDIRECTIONAL")
    )


def _picked(x: Any) -> Any:
    """Take element n - 1 - i of the first row for each i, by places along two axes."""
    count = ops.squeeze(length(x), 0)
    places = ops.range(
        ops.subtract(count, 1), ops.constant(np.int64(-1)), ops.constant(np.int64(-1)), "i64"
    )
    places = ops.unsqueeze(places, ops.constant(np.int64(1)))
    rows = ops.multiply(places, ops.constant(np.int64(0)))
    return ops.gather_nd(x, ops.concat([rows, places], 1))


@pytest.mark.parametrize("size", [1, 5, 9])
@pytest.mark.parametrize(
    "make",
    [
        _counted,
        _counted_in_floats,
        _first_of_a_table,
        _first_in_narrow_sizes,
        _turned,
        _spread,
        _picked,
    ],
)
def test_arithmetic_of_shapes_is_settled_with_the_request(
    tmp_path: Path, make: Make, size: int
) -> None:
    given = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
    found, wanted = both(ir(tmp_path, make, {"x": (1, -1)}), {"x": given})
    assert found.tolist() == wanted.tolist()


def _scaled(q: Any, k: Any, v: Any) -> Any:
    return ops.scaled_dot_product_attention(
        q, k, v, ops.constant(np.float32(0)), ops.constant(np.float32(0.7))
    )


def _causal(q: Any, k: Any, v: Any) -> Any:
    return ops.scaled_dot_product_attention(q, k, v, causal=True)


@pytest.mark.parametrize("shape", [(1, 2, -1, 4), (1, -1, 4)])
@pytest.mark.parametrize("make", [ops.scaled_dot_product_attention, _scaled, _causal])
def test_attention_is_that_of_openvino(tmp_path: Path, make: Make, shape: tuple[int, ...]) -> None:
    model = ir(tmp_path, make, dict.fromkeys("qkv", shape))
    random = np.random.default_rng(4)
    for queries, keys in ((3, 5), (6, 6), (1, 7)):
        sizes = {"q": queries, "k": keys, "v": keys}
        given = {
            name: random.standard_normal([n if one == -1 else one for one in shape])
            for name, n in sizes.items()
        }
        found, wanted = both(model, {n: one.astype(np.float32) for n, one in given.items()})
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["boolean", "floats"])
def test_masks_of_attention_hide_keys_and_a_hidden_row_is_no_number(
    tmp_path: Path, kind: str
) -> None:
    def make(q: Any, k: Any, v: Any, m: Any) -> Any:
        mask = ops.greater(m, ops.constant(np.float32(0))) if kind == "boolean" else m
        return ops.scaled_dot_product_attention(q, k, v, mask)

    shapes = {**dict.fromkeys("qkv", (1, 2, -1, 4)), "m": (1, 1, -1, -1)}
    random = np.random.default_rng(4)
    given = {name: random.standard_normal((1, 2, 6, 4)).astype(np.float32) for name in "qkv"}
    taken = random.random((1, 1, 6, 6)) < 0.5
    taken[..., 0], taken[:, :, 4] = True, False
    hidden = (0, 1) if kind == "boolean" else (-np.inf, 0.25)
    mask = np.where(taken, *hidden[::-1]).astype(np.float32)
    found, wanted = both(ir(tmp_path, make, shapes), {**given, "m": mask})
    assert np.isnan(wanted[:, :, 4]).all()
    assert np.isfinite(wanted[:, :, :4]).all()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def _with_a_sink(x: Any) -> Any:
    numbers = ops.unsqueeze(ops.unsqueeze(x, ops.constant(np.int64(0))), ops.constant(np.int64(0)))
    zero, one = (ops.constant(np.full((1, 1, 1, 1), n, np.float32)) for n in (0, 1))
    given = [numbers, numbers, numbers, zero, ops.constant(np.float32(1)), one]
    return NodeFactory("opset13").create("ScaledDotProductAttention", given, {"causal": False})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: ops.convert(
                ops.range(
                    ops.constant(np.float32(0.5)),
                    ops.constant(np.int64(3)),
                    ops.constant(np.int64(1)),
                    "i32",
                ),
                "f32",
            ),
            r"Range \(operation '.*'\): it makes i32 of a start, stop or step of another type",
        ),
        (
            lambda x: ops.gather_nd(x, ops.constant(np.array([[2]])), 1),
            r"GatherND \(operation '.*'\): it has batch axes",
        ),
        (
            _with_a_sink,
            r"ScaledDotProductAttention \(operation '.*'\): it has a sink, a score beside",
        ),
        (
            lambda x: ops.slice(
                x,
                whole(0),
                ops.convert(ops.reduce_max(x, ops.constant(np.array([1]))), "i64"),
                whole(1),
                whole(1),
            ),
            r"Slice \(operation '.*'\): its shape isn't fixed",
        ),
    ],
)
def test_what_is_not_covered_is_named(tmp_path: Path, make: Make, message: str) -> None:
    model = ir(tmp_path, make, {"x": (1, -1)})
    with pytest.raises(CandidateError, match=message):
        lowered(model, {"x": np.ones((1, 5), np.float32)})


ENCODER = """
<ir_version: 10, opset_import: ["": 20]>
encoder (int64[batch, seq] ids, int64[batch, seq] mask) => (float[batch, seq, 16] y)
<float[50, 16] words, float[16, 16] places, float[16, 16] wq, float[16, 16] wk, float[16, 16] wv,
 float[16, 16] wo, float[16] bo, float[16] g, float[16] b, float none = {0}, float far = {-inf},
 float scale = {0.5}, int64 first = {0}, int64 second = {1}, int64[1] start = {0},
 int64[1] axis = {1}, int64[2] ends = {1, 2}, int64[4] heads = {0, 0, 4, 4},
 int64[3] together = {0, 0, 16}>
{
    [sizes] s = Shape (ids)
    [count] n = Gather (s, second)
    [end] e = Unsqueeze (n, start)
    [place] p0 = Slice (places, start, e, start)
    [word] w = Gather (words, ids)
    [both] x = Add (w, p0)
    [query] q0 = MatMul (x, wq)
    [query2] q1 = Reshape (q0, heads)
    [query3] q = Transpose <perm = [0, 2, 1, 3]> (q1)
    [key] k0 = MatMul (x, wk)
    [key2] k1 = Reshape (k0, heads)
    [key3] k = Transpose <perm = [0, 2, 3, 1]> (k1)
    [value] v0 = MatMul (x, wv)
    [value2] v1 = Reshape (v0, heads)
    [value3] v = Transpose <perm = [0, 2, 1, 3]> (v1)
    [range] r = Range (first, n, second)
    [there] t0 = Cast <to = 9> (mask)
    [there2] t = Unsqueeze (t0, ends)
    [counted] c0 = GreaterOrEqual (r, first)
    [seen] c = And (t, c0)
    [hidden] h = Where (c, none, far)
    [score] a0 = MatMul (q, k)
    [scaled] a1 = Mul (a0, scale)
    [masked] a2 = Add (a1, h)
    [soft] a = Softmax <axis = -1> (a2)
    [mix] m0 = MatMul (a, v)
    [mix2] m1 = Transpose <perm = [0, 2, 1, 3]> (m0)
    [mix3] m = Reshape (m1, together)
    [out] o0 = MatMul (m, wo)
    [bias] o = Add (o0, bo)
    [skip] z = Add (o, x)
    [norm] y = LayerNormalization (z, g, b)
}
"""


def encoder(folder: Path) -> tuple[Model, ArrayDataset]:
    """Return an encoder whose length is open, and data of 16 words with masks."""
    random = np.random.default_rng(6)
    counts = random.integers(3, 17, 24)
    data = {
        "ids": random.integers(0, 50, (24, 16)),
        "mask": (np.arange(16) < counts[:, None]).astype(np.int64),
    }
    proto = onnx.parser.parse_model(ENCODER)
    known = {one.name for one in proto.graph.initializer}
    for value in [one for one in proto.graph.value_info if one.name not in known]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weight = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
    del proto.graph.value_info[:]
    folder.mkdir()
    onnx.save(proto, folder / "encoder.onnx")
    model = load(folder / "encoder.onnx").settled_by(
        {name: array[0] for name, array in data.items()}
    )
    return model, ArrayDataset(data)


@pytest.mark.seconds
@pytest.mark.parametrize("transformer", [True, False])
def test_an_int8_encoder_with_an_open_length_answers_at_each_length(
    tmp_path: Path, transformer: bool
) -> None:
    model, data = encoder(tmp_path / "source")
    (tmp_path / "int8").mkdir()
    made = NncfQuantization("mixed", transformer=transformer)(model, data, tmp_path / "int8")
    graph = openvino.Core().compile_model(made.path, "CPU", AS_WRITTEN)
    random = np.random.default_rng(8)
    for count in (4, 2, 16, 11):
        seen = np.arange(count) < max(1, count - 3)
        given = {"ids": random.integers(0, 50, (1, count)), "mask": seen.astype(np.int64)[None]}
        plan, weights = lowered(made, given)
        found = answers(plan, weights, dict(zip(plan.inputs, given.values(), strict=True)))
        (wanted,) = graph(given).values()
        apart = np.abs(found[plan.outputs[0]] - wanted.ravel()).max()
        assert apart < 0.03 * np.abs(wanted).max()
