"""Networks as exporters wrote them in old and new operator sets: upgraded, they answer as before, and quantize."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten.core.model import Model
from hasten.inputs.models.onnx import load
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.upgrading import OPSET, opset_of, upgraded
from hasten.testing.pass_tests import NARROW, answers, error_between, run, samples_of

_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
NEWEST = min(27 if _RUNTIME >= (1, 32) else 26, onnx.defs.onnx_opset_version())
"""Newest operator set of which ONNX Runtime 1.32 has QuantizeLinear; it runs floats of 28 too."""
OPSETS = (7, 9, 11, 13, 21, NEWEST)


class Net:
    """Nodes and weights of a network, in the form that an operator set asks for."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def constant(self, value: Any, dtype: str = "int64") -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        values = self._random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return self.constant(values, "float32")

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], f"n{output}", **attributes))
        return output

    def along(self, kind: str, x: str, axes: list[int], since: int = 13, **attributes: Any) -> str:
        """Add an operator whose axes are an attribute before an operator set, and an input since then."""
        if self.opset < since:
            return self.add(kind, x, axes=axes, **attributes)
        return self.add(kind, x, self.constant(axes), **attributes)

    def saved(self, folder: Path, output: str, shape: tuple[int, ...], classes: int) -> Model:
        self.nodes[-1].output[0] = "y"
        assert output == f"v{len(self.nodes) - 1}"
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        proto.ir_version = {7: 4, 9: 4, 11: 6}.get(self.opset, 10)
        onnx.checker.check_model(proto)
        path = folder / f"net{self.opset}.onnx"
        onnx.save(proto, path)
        return load(path).settled_by({"x": np.zeros(shape, np.float32)})


def recurrent(folder: Path, opset: int) -> Model:
    """Write a reader: columns of a picture, an LSTM in both directions, and a softmax over time."""
    net = Net(opset)
    squeezed = net.along("Squeeze", "x", [1])
    steps = net.add("Transpose", squeezed, perm=[2, 0, 1])
    ways = [net.weight(2, 4 * 8, 6), net.weight(2, 4 * 8, 8), net.weight(2, 8 * 8)]
    states = net.add("LSTM", steps, *ways, hidden_size=8, direction="bidirectional")
    turned = net.add("Transpose", states, perm=[2, 0, 1, 3])
    flat = net.add("Reshape", turned, net.constant([0, 0, -1]))
    scores = net.add("MatMul", flat, net.weight(16, 5))
    shares = net.add("Softmax", scores, axis=1)
    weighed = net.add("Mul", shares, scores)
    last = net.along("ReduceSum", weighed, [1], keepdims=0)
    wide = net.along("Unsqueeze", last, [1])
    return net.saved(folder, net.add("Flatten", wide), (1, 6, 10), 5)


def transformer(folder: Path, opset: int) -> Model:
    """Write a block of attention with a softmax of a middle axis, a norm by hand, and a pooled head."""
    net = Net(opset)
    parts = [net.add("MatMul", "x", net.weight(16, 16)) for _ in range(3)]
    heads = [net.add("Reshape", part, net.constant([0, 0, 2, 8])) for part in parts]
    q, v = (net.add("Transpose", one, perm=[0, 2, 1, 3]) for one in (heads[0], heads[2]))
    k = net.add("Transpose", heads[1], perm=[0, 2, 3, 1])
    scores = net.add("MatMul", q, k)
    shares = net.add("Softmax", scores, axis=2)  # before 13 over the last two axes together
    mixed = net.add("MatMul", shares, v)
    joined = net.add(
        "Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant([0, 0, 16])
    )
    whole = net.add("Add", joined, "x")
    mean = net.along("ReduceMean", whole, [2], 18, keepdims=1)
    apart = net.add("Sub", whole, mean)
    spread = net.along("ReduceMean", net.add("Mul", apart, apart), [2], 18, keepdims=1)
    root = net.add("Sqrt", net.add("Add", spread, net.constant(1e-5, "float32")))
    normed = net.add("Div", apart, root)
    pooled = net.along("ReduceMean", normed, [1], 18, keepdims=0)
    logits = net.add("Gemm", pooled, net.weight(16, 4), net.weight(4))
    return net.saved(folder, net.add("LogSoftmax", logits, axis=1), (6, 16), 4)


def convolutional(folder: Path, opset: int) -> Model:
    """Write a network of pictures: padding, norms, a limit, a dropout, a cut and a larger picture."""
    net = Net(opset)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    padded = (
        net.add("Pad", "x", pads=pads) if opset < 11 else net.add("Pad", "x", net.constant(pads))
    )
    first = net.add("Conv", padded, net.weight(8, 3, 3, 3), net.weight(8))
    ones, zeros = net.constant(np.ones(8), "float32"), net.constant(np.zeros(8), "float32")
    norm = net.add("BatchNormalization", first, ones, net.weight(8), zeros, ones)
    if opset < 11:
        limited = net.add("Clip", norm, min=0.0, max=6.0)
    else:
        limited = net.add("Clip", norm, net.constant(0, "float32"), net.constant(6, "float32"))
    kept = net.add("Dropout", limited, **({"ratio": 0.3} if opset < 12 else {}))
    if opset < 10:
        cut = net.add("Slice", kept, axes=[2], starts=[0], ends=[6])
    else:
        cut = net.add("Slice", kept, *(net.constant(one) for one in ([0], [6], [2])))
    scales = net.constant([1, 1, 2, 2], "float32")
    if opset < 9:
        large = net.add("Upsample", cut, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    elif opset < 11:
        large = net.add("Upsample", cut, scales, mode="nearest")
    else:
        roi = net.constant([], "float32") if opset < 13 else ""
        large = net.add("Resize", cut, roi, scales, mode="nearest")
    second = net.add("Conv", large, net.weight(8, 8, 3, 3), strides=[2, 2])
    pooled = net.add("Flatten", net.add("GlobalAveragePool", second))
    return net.saved(folder, net.add("Gemm", pooled, net.weight(8, 4), net.weight(4)), (3, 8, 8), 4)


NETS = pytest.mark.parametrize("make", [recurrent, transformer, convolutional])


@pytest.mark.parametrize("opset", OPSETS)
@NETS
def test_an_upgraded_network_answers_as_before(
    tmp_path: Path, make: Callable[[Path, int], Model], opset: int
) -> None:
    model = make(tmp_path, opset)
    data = samples_of(model)
    (tmp_path / "new").mkdir()
    new = upgraded(model, data, tmp_path / "new")
    assert opset_of(read_onnx(new)) == max(opset, OPSET)
    assert (new is model) == (opset >= OPSET)
    own = answers(model, data, tmp_path / "own")
    assert float(np.std(own["y"])) > 1e-3  # a constant would be equal to anything
    assert error_between(own, answers(new, data, tmp_path / "other")) < 1e-9


@pytest.mark.parametrize("opset", OPSETS)
@NETS
def test_a_network_of_any_operator_set_is_quantized(
    tmp_path: Path, make: Callable[[Path, int], Model], opset: int
) -> None:
    model = make(tmp_path, opset)
    data = samples_of(model)
    result = run(StaticQuantization(reduce_range=NARROW), model, tmp_path)
    assert op_counts(read_onnx(result))["DequantizeLinear"]
    own = answers(model, data, tmp_path / "own")
    assert error_between(own, answers(result, data, tmp_path / "int8")) < 0.1
