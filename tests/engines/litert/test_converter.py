"""Whole networks, older operator sets, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.engines.litert.tflite.conversion import convert
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load

Compare = Callable[..., str]

EFFICIENTNET = """
efficientnet (float[batch, 3, 17, 17] x) => (y) {
    [pad] x0 = Pad(x, edges)
    [stem] c0 = Conv<strides=[2, 2]>(x0, k0, b0)
    [gate0] g0 = Sigmoid(c0)  [silu0] s0 = Mul(c0, g0)
    [expand] c1 = Conv(s0, k1)
    [norm1] n1 = BatchNormalization(c1, scale, shift, mean, variance)
    [gate1] g1 = Sigmoid(n1)  [silu1] s1 = Mul(n1, g1)
    [depthwise] c2 = Conv<pads=[2, 2, 2, 2], group=12>(s1, k2, b2)
    [gate2] g2 = Sigmoid(c2)  [silu2] s2 = Mul(g2, c2)
    [mean] m = ReduceMean<keepdims=1>(s2, places)
    [squeeze] q = Conv(m, k3, b3)
    [gate3] g3 = Sigmoid(q)  [silu3] s3 = Mul(q, g3)
    [excite] e = Conv(s3, k4, b4)
    [gate4] g4 = Sigmoid(e)
    [weigh] w = Mul(s2, g4)
    [project] c5 = Conv(w, k5, b5)
    [skip] a = Add(c5, s0)
    [pool] p = GlobalAveragePool(a)
    [flat] f = Flatten(p)
    [head] y = Gemm<transB=1>(f, wy, by)
}"""
EFFICIENTNET_WEIGHTS: dict[str, Any] = {
    "edges": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
    "places": np.array([2, 3]),
    **{"k0": (4, 3, 3, 3), "b0": (4,), "k1": (12, 4, 1, 1), "k2": (12, 1, 5, 5), "b2": (12,)},
    **{"scale": (12,), "shift": (12,), "mean": (12,), "variance": np.full(12, 1.5, np.float32)},
    **{"k3": (2, 12, 1, 1), "b3": (2,), "k4": (12, 2, 1, 1), "b4": (12,)},
    **{"k5": (4, 12, 1, 1), "b5": (4,), "wy": (7, 4), "by": (7,)},
}

MOBILENET = """
mobilenet (float[batch, 3, 16, 16] x) => (y) {
    [stem] c0 = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(x, k0)
    [act0] s0 = HardSwish(c0)
    [depthwise] c1 = Conv<strides=[2, 2], pads=[1, 1, 1, 1], group=8>(s0, k1)
    [act1] s1 = Relu(c1)
    [mean] m = GlobalAveragePool(s1)
    [squeeze] q = Conv(m, k2)  [act2] s2 = Relu(q)
    [excite] e = Conv(s2, k3)  [gate] g = HardSigmoid<alpha=0.16666667, beta=0.5>(e)
    [weigh] w = Mul(g, s1)
    [project] c3 = Conv(w, k4)
    [three] t = Add(c3, three)  [clip] l = Clip(t, zero, six)  [by] d = Div(l, six)  [act3] s3 = Mul(c3, d)
    [pool] p = GlobalAveragePool(s3)
    [last] c5 = Conv(p, k5, b5)  [act5] s5 = HardSwish(c5)
    [flat] f = Reshape(s5, rows)
    [head] y = Gemm(f, wy)
}"""
MOBILENET_WEIGHTS: dict[str, Any] = {
    **{"k0": (8, 3, 3, 3), "k1": (8, 1, 3, 3), "k2": (4, 8, 1, 1), "k3": (8, 4, 1, 1)},
    **{"k4": (6, 8, 1, 1), "k5": (16, 6, 1, 1), "b5": (16,), "wy": (16, 5)},
    **{"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)},
    "rows": np.array([0, -1]),
}


@pytest.mark.parametrize(
    ("text", "weights", "operators"),
    [(EFFICIENTNET, EFFICIENTNET_WEIGHTS, 23), (MOBILENET, MOBILENET_WEIGHTS, 19)],
)
def test_a_network_is_xnnpacks_alone(
    text: str, weights: dict[str, Any], operators: int, agree: Compare
) -> None:
    assert agree(text, **weights) == f"{operators} of {operators} operators"


OLDER: dict[str, tuple[int, str, dict[str, Any]]] = {
    # id: (opset, the nodes on x: float[batch, 4, 6, 7], constants)
    "BatchNormalization": (9, "y = BatchNormalization(x, a, a, a, v)", {"a": (4,), "v": np.ones(4, np.float32)}),
    "Clip": (6, "y = Clip<min=0.0, max=6.0>(x)", {}),
    "Constant": (11, "i = Constant<value = int64[2] {0, 168}>() y = Reshape(x, i)", {}),
    "Pad": (10, 'y = Pad<mode="constant", pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5>(x)', {}),
    "ReduceMean": (11, "y = ReduceMean<axes=[2, 3], keepdims=0>(x)", {}),
    "ReduceSum": (11, "y = ReduceSum<axes=[1]>(x)", {}),
    "Resize": (10, 'y = Resize<mode="nearest">(x, s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Slice": (9, "y = Slice<axes=[1, 3], starts=[1, 0], ends=[3, -1]>(x)", {}),
    "Softmax": (11, "y = Softmax<axis=3>(x)", {}),
    "Split": (11, "a, b = Split<axis=3, split=[3, 4]>(x) y = Relu(b)", {}),
    "Squeeze": (11, "p = GlobalAveragePool(x) y = Squeeze<axes=[2, 3]>(p)", {}),
    "Unsqueeze": (11, "y = Unsqueeze<axes=[1]>(x)", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OLDER)
def test_older_operator_sets_are_read(case: str, agree: Compare) -> None:
    opset, nodes, constants = OLDER[case]
    if case == "Constant":
        agree(
            f"case (float[1, 4, 6, 7] x) => (y) {{ {nodes} }}",
            opset,
            **constants | {"unused": (1,)},
        )
        return
    agree(f"case (float[batch, 4, 6, 7] x) => (y) {{ {nodes} }}", opset, **constants)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    # what is said: the nodes, constants
    "the operator Sin (node 'n')": ("[n] y = Sin(x)", {}),
    "the operator Erf (node 'n')": ("[n] y = Erf(x)", {}),
    "the operator QuantizeLinear (node 'n')": ("[n] q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", {"s": np.float32(1)}),
    "the operator BatchNormalization (node 'n'): it is in training mode": ("[n] y, m, v = BatchNormalization<training_mode=1>(x, w, w, w, w)", {"w": (4,)}),
    "the operator Conv (node 'n'): its input 'k' must be constant": ("k = Reshape(x, s) [n] y = Conv(x, k)", {"s": np.array([1, 4, 6, 7])}),
    "the operator Conv (node 'n'): only images, which have four axes, are supported": ("r = Reshape(x, s) [n] y = Conv(r, k)", {"s": np.array([1, 4, 42]), "k": (2, 4, 3)}),
    "the operator ConvTranspose (node 'n'): only images, without groups and dilation, are supported": ("[n] y = ConvTranspose<group=2>(x, k)", {"k": (4, 3, 2, 2)}),
    "the operator ConvTranspose (node 'n'): its padding must be given as "
    "numbers": ('[n] y = ConvTranspose<auto_pad="SAME_UPPER">(x, k)', {"k": (4, 3, 2, 2)}),
    "the operator ConvTranspose (node 'n'): its output padding can't be expressed": ("[n] y = ConvTranspose<strides=[3, 3], output_padding=[2, 2]>(x, k)", {"k": (4, 3, 1, 1)}),
    "the operator MaxPool (node 'n'): its padding [(2, 1), (2, 0)] can't be expressed": ("[n] y = MaxPool<kernel_shape=[3, 3], pads=[2, 2, 2, 2], strides=[3, 3]>(x)", {}),
    "the operator MaxPool (node 'n'): dilation and indices aren't supported": ("[n] y = MaxPool<kernel_shape=[3, 3], dilations=[2, 1]>(x)", {}),
    "the operator AveragePool (node 'n'): its padding [(1, 0), (1, 0)] can't be expressed": ("[n] y = AveragePool<kernel_shape=[2, 2], pads=[1, 1, 0, 0]>(x)", {}),
    "the operator Gemm (node 'n'): it adds a matrix, not a vector": ("r = Reshape(x, s) [n] y = Gemm(r, w, c)", {"s": np.array([2, 84]), "w": (84, 3), "c": (2, 3)}),
    "the operator MatMul (node 'n'): a vector isn't supported": ("[n] y = MatMul(x, w)", {"w": (7,)}),
    "the operator Div (node 'n'): only two tensors of floats are supported": ("i = Cast<to=7>(x) [n] d = Div(i, w) y = Cast<to=1>(d)", {"w": np.int64(2)}),
    "the operator Max (node 'n'): only two tensors of floats are supported": ("[n] y = Max(x, x, x)", {}),
    "the operator Pow (node 'n'): its exponent must be one number": ("[n] y = Pow(x, w)", {"w": np.array([1, 2, 1, 2, 1, 2, 1], np.float32)}),
    "the operator Elu (node 'n'): its alpha must be 1": ("[n] y = Elu<alpha=0.5>(x)", {}),
    "the operator LayerNormalization (node 'n'): its mean and deviation aren't supported as outputs": ("[n] l, m = LayerNormalization(x, w) y = Add(l, m)", {"w": (7,)}),
    "the operator Pad (node 'n'): only padding with constants or by reflection is "
    "supported": ('[n] y = Pad<mode="edge">(x, p)', {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "the operator Slice (node 'n'): a negative step isn't supported": ("[n] y = Slice(x, b, e, a, t)", {"b": np.array([5]), "e": np.array([0]), "a": np.array([2]), "t": np.array([-1])}),
    "the operator Slice (node 'n'): the slice is empty": ("[n] y = Slice(x, b, e, a)", {"b": np.array([2]), "e": np.array([2]), "a": np.array([2])}),
    "the operator Resize (node 'n'): only nearest and linear, of images and without antialias, are supported": ('[n] y = Resize<mode="cubic">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "the operator Resize (node 'n'): it changes more than the height and the width": ("[n] y = Resize(x, , s)", {"s": np.array([1, 2, 2, 2], np.float32)}),
    "the operator Resize (node 'n'): its coordinates can't be expressed": ('[n] y = Resize<nearest_mode="ceil">(x, , s)', {"s": np.array([1, 1, 1.5, 2], np.float32)}),
    "the operator Resize (node 'n'): tf_crop_and_resize isn't supported": ('[n] y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, s)', {"r": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "s": np.array([1, 1, 2, 2], np.float32)}),
    "the operator Reshape (node 'n'): the shape of 'y' isn't known before a request runs": ("m = "
    "ReduceMax(x) i = Cast<to=7>(m) f = Reshape(i, one) [n] y = Reshape(x, f)", {"one": np.array([-1])}),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_refused_is_said_in_one_line(said: str, agree: Compare) -> None:
    nodes, constants = REFUSED[said]
    with pytest.raises(CandidateError) as caught:
        agree(
            f"case (float[1, 4, 6, 7] x) => (float[] y) {{ {nodes} }}",
            19,
            reference=False,
            **constants,
        )
    assert str(caught.value) == f"LiteRT can't take {said}"


def test_softmax_over_several_axes_is_refused(agree: Compare) -> None:
    with pytest.raises(
        CandidateError, match=r": a softmax over several axes at once isn't supported$"
    ):
        agree("case (float[batch, 4, 6, 7] x) => (float[] y) { y = Softmax(x) }", 11)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats_are_refused(dtype: str, agree: Compare) -> None:
    with pytest.raises(CandidateError) as caught:
        agree(f"case ({dtype}[1, 4] x) => ({dtype}[1, 4] y) {{ y = Relu(x) }}")
    name = {"double": "float64"}.get(dtype, dtype)
    assert str(caught.value) == f"LiteRT takes no {name} tensors, but 'x' is one"


def test_a_file_that_is_no_onnx_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }'
    )
    onnx.save(proto, path)
    model = load(path)
    path.write_bytes(b"no model" * 9)
    with pytest.raises(CandidateError, match=r"^LiteRT's converter can't read model\.onnx: .+"):
        convert(model, tmp_path / "model.tflite")
    onnx.save(proto, path)
    with pytest.raises(InputError, match=r"^can't write .*: No such file or directory$"):
        convert(model, tmp_path / "nowhere" / "model.tflite")


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 17, "mine": 1]> '
        "g (float[1, 4] x) => (float[1, 4] y) { [own] y = mine.Relu(x) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(CandidateError) as caught:
        convert(load(tmp_path / "model.onnx"), tmp_path / "model.tflite")
    assert str(caught.value) == "LiteRT can't take the operator mine:Relu (node 'own')"


def test_tensors_are_named_as_the_nodes_that_give_them(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    text = (
        '<ir_version: 10, opset_import: ["": 17]> g (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) '
        "<float[4, 4, 2, 2] w> { [a] c = Conv<pads=[1, 1, 0, 0]>(x, w)  [act] y = Relu(c) }"
    )
    proto = onnx.parser.parse_model(text)
    weights = onnx.numpy_helper.from_array(np.ones((4, 4, 2, 2), np.float32), "w")
    proto.graph.initializer.append(weights)
    proto.graph.node[0].name = "a;b"
    onnx.save(proto, tmp_path / "model.onnx")
    convert(load(tmp_path / "model.onnx"), tmp_path / "model.tflite")
    whole = schema.ModelT.InitFromPackedBuf((tmp_path / "model.tflite").read_bytes())
    graph = whole.subgraphs[0]
    given = [graph.tensors[operator.outputs[0]].name.decode() for operator in graph.operators]
    assert given == ["x:nhwc", "a,b:padded", "a,b", "a,b:plain"]
    (signature,) = whole.signatureDefs
    assert [entry.name.decode() for entry in (*signature.inputs, *signature.outputs)] == ["x", "y"]
