"""Every operator's fixed-point form answers as the float operator does, up to its rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.fpga import program
from hasten.engines.fpga.values import Overflow
from hasten.errors import CandidateError, NotCovered
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.fixed_point import FixedPoint

Written = Callable[..., Model]
Drawn = Callable[..., ArrayDataset]

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")

RANDOM = np.random.default_rng(5)


def drawn(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


W = {"w": drawn(6, 6), "b": drawn(6)}
K = {"k": drawn(3, 2, 3, 3), "c": drawn(3)}
SIX, IMAGE = (6,), (2, 6, 6)
GRAPHS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "gemm": ("y = Gemm(x, w, b)", SIX, W),
    "gemm of a transposed matrix": ("y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)", SIX, W),
    "matmul and add": ("h = MatMul(x, w) y = Add(h, b)", SIX, W),
    "two products": ("h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, w, b)", SIX, W),
    "leaky": ("h = Gemm(x, w, b) r = LeakyRelu<alpha=0.1>(h) y = MatMul(r, w)", SIX, W),
    "sigmoid": ("h = Gemm(x, w, b) r = Sigmoid(h) y = MatMul(r, w)", SIX, W),
    "tanh": ("h = Gemm(x, w, b) r = Tanh(h) y = MatMul(r, w)", SIX, W),
    "residual": ("h = Gemm(x, w, b) r = Relu(h) s = Add(r, x) y = MatMul(s, w)", SIX, W),
    "difference": ("h = Gemm(x, w, b) s = Sub(b, h) y = MatMul(s, w)", SIX, W),
    "product of activations": ("h = Gemm(x, w, b) s = Mul(h, x) y = MatMul(s, w)", SIX, W),
    "scaled": ("h = Div(x, b) y = MatMul(h, w)", SIX, W),
    "softmax at the end": ("h = Gemm(x, w, b) y = Softmax<axis=1>(h)", SIX, W),
    "convolution": ("y = Conv(x, k, c)", IMAGE, K),
    "padded convolution": ("y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k, c)", IMAGE, K),
    "same padding": ('y = Conv<auto_pad="SAME_UPPER">(x, k, c)', IMAGE, K),
    "dilated convolution": ("y = Conv<dilations=[2,2]>(x, k, c)", IMAGE, K),
    "depthwise convolution": ("y = Conv<group=2>(x, k)", IMAGE, {"k": drawn(2, 1, 3, 3)}),
    "largest of windows": (
        "h = Conv(x, k, c) r = Relu(h) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = Flatten(p)",
        IMAGE,
        K,
    ),
    "mean of windows": (
        "h = Conv(x, k, c) r = Relu(h) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r) y = Flatten(p)",
        IMAGE,
        K,
    ),
    "mean of windows with padding": (
        "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) y = Conv(p, k, c)",
        IMAGE,
        K,
    ),
    "mean of windows without their padding": (
        'p = AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x) y = Conv(p, k, c)',
        IMAGE,
        K,
    ),
    "mean of channels": ("h = Conv(x, k, c) p = GlobalAveragePool(h) y = Flatten(p)", IMAGE, K),
    "clipped": (
        "h = Conv(x, k, c) r = Clip(h, low, high) p = GlobalAveragePool(r) y = Flatten(p)",
        IMAGE,
        {**K, "low": np.float32(0), "high": np.float32(2)},
    ),
    "normalized": (
        "n = BatchNormalization(x, g, o, m, v) y = Conv(n, k, c)",
        IMAGE,
        {**K, "g": drawn(2), "o": drawn(2), "m": drawn(2), "v": np.abs(drawn(2)) + 0.5},
    ),
    "joined and cut": (
        "h = Gemm(x, w, b) j = Concat<axis=1>(h, x) s = Slice(j, from, to, axis) y = MatMul(s, w)",
        SIX,
        {**W, "from": np.array([3]), "to": np.array([9]), "axis": np.array([1])},
    ),
    "turned": ("h = Conv(x, k, c) t = Transpose<perm=[0,2,3,1]>(h) y = Flatten(t)", IMAGE, K),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_answers_with_many_bits_are_the_float_graphs(
    name: str, written: Written, samples: Drawn, tmp_path: Path
) -> None:
    body, shape, constants = GRAPHS[name]
    model, data = written(body, shape, constants), samples(shape)
    workdir = tmp_path / "fixed"
    workdir.mkdir()
    made = FixedPoint(14, 14, 14)(model, data, workdir)
    loaded = program.load(made.path)
    inputs = data.inputs(range(len(data)))
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    exact = np.concatenate([session.run(None, {"x": row[None]})[0] for row in inputs["x"]])
    found = loaded.ports.decode(loaded.answers(loaded.ports.encode(inputs)), made.outputs)["y"]
    assert np.abs(found - exact).max() <= 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("overflow", ["saturate", "wrap", "grow"])
def test_every_way_to_treat_overflow_answers_alike_within_the_range_of_calibration(
    overflow: Overflow, written: Written, samples: Drawn, tmp_path: Path
) -> None:
    body, shape, constants = GRAPHS["two products"]
    model, data = written(body, shape, constants), samples(shape)
    found = {}
    for mode in ("grow", overflow):
        (tmp_path / mode).mkdir(exist_ok=True)
        made = program.load(FixedPoint(8, 8, 8, mode)(model, data, tmp_path / mode).path)
        found[mode] = made.answers(made.ports.encode(data.inputs(range(len(data)))))
    assert np.abs(found["grow"] - found[overflow]).max() <= 0.1 * np.abs(found["grow"]).max()


def test_fewer_bits_make_a_smaller_program(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    model, data = written(*GRAPHS["two products"]), samples(SIX)
    costs = []
    for bits in (10, 6, 4):
        (tmp_path / str(bits)).mkdir()
        made = FixedPoint(bits, bits, bits)(model, data, tmp_path / str(bits))
        costs.append(program.load(made.path).cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6 * costs[0]


def test_an_operator_without_a_fixed_point_form_is_named_with_its_node(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    model = written("h = Gemm(x, w, b) [middle] r = Erf(h) y = MatMul(r, w)", SIX, W)
    with pytest.raises(
        NotCovered, match=r"^the operator Erf \(node 'middle'\) has no fixed-point form;"
    ):
        FixedPoint()(model, samples(SIX), tmp_path)


def test_a_softmax_that_is_read_inside_is_not_left_to_the_reader(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    model = written("h = MatMul(x, w) y = Softmax<axis=1>(h) [last] z = MatMul(y, w)", SIX, W)
    proto = onnx.load(model.path)
    proto.graph.node[1].name = "inside"
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [1, 6]))
    onnx.save(proto, model.path)
    both = load(model.path).settled_by({"x": np.zeros(6, np.float32)})
    with pytest.raises(
        NotCovered, match=r"^the operator Softmax \(node 'inside'\) has no fixed-point form;"
    ):
        FixedPoint()(both, samples(SIX), tmp_path)


def test_a_cast_to_integers_is_named_with_its_node(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    model = written("[cut] i = Cast<to=7>(x) f = Cast<to=1>(i) y = MatMul(f, w)", SIX, W)
    with pytest.raises(NotCovered) as error:
        FixedPoint()(model, samples(SIX), tmp_path)
    assert str(error.value) == "a Cast to int64 (node 'cut') has no fixed-point form"


def test_a_graph_without_a_product_is_skipped(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    with pytest.raises(Skipped, match="nothing to round: the model has no product and no tree"):
        FixedPoint()(written("y = Relu(x)", SIX, {}), samples(SIX), tmp_path)


def test_bits_out_of_range_are_refused(written: Written, samples: Drawn, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as error:
        FixedPoint(weight_bits=1)(written(*GRAPHS["gemm"]), samples(SIX), tmp_path)
    assert str(error.value) == "weight_bits must be from 2 to 24: got 1"
