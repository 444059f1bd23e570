"""Operators of the engine that writes C, against ONNX Runtime: many random nodes in one graph."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.lowering import lower
from hasten.errors import BeyondRange, CandidateError
from hasten.inputs.models.onnx import load

Array = npt.NDArray[Any]


class Drawn:
    """Graph of random nodes, each of which gives an output; its inputs have an open batch.

    Args:
        seed: Seed of all that is random.
        opset: Version of the operators.
    """

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng, self.pick, self.opset = np.random.default_rng(seed), random.Random(seed), opset
        self.inputs: dict[str, Array] = {}
        self.constants: list[Any] = []
        self.nodes: list[Any] = []
        self.outputs: list[str] = []

    def input(self, *shape: int, dtype: str = "float32", low: int = -3, high: int = 3) -> str:
        """Add an input of a shape behind the batch's axis; return its name."""
        name = f"x{len(self.inputs)}"
        rows = (_ROWS, *shape)
        drawn = self.rng.standard_normal(rows) if dtype.startswith("f") else None
        self.inputs[name] = (self.rng.integers(low, high, rows) if drawn is None else drawn).astype(
            dtype
        )
        return name

    def constant(self, array: Any, dtype: str = "float32") -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def normal(self, *shape: int) -> str:
        """Add a constant of random numbers; return its name."""
        return self.constant(self.rng.standard_normal(shape))

    def node(self, op: str, *inputs: str, gives: int = 1, **attributes: Any) -> str:
        """Add a node; return its first output's name."""
        names = [f"t{len(self.nodes)}_{at}" for at in range(gives)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0]

    def output(self, name: str) -> None:
        """Make a node's result an output of the graph."""
        self.outputs.append(name)

    def write(self, folder: Path) -> Path:
        """Write the model."""
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), ["n", *array.shape[1:]]
            )
            for name, array in self.inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "drawn", inputs, outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        path = folder / "drawn.onnx"
        onnx.save(model, path)
        return path

    def check(self, folder: Path, tolerance: float = 1e-4) -> None:
        """Check that all rows at once, and each alone, are answered as ONNX Runtime answers them."""
        path = self.write(folder)
        wanted = onnxruntime.InferenceSession(path).run(self.outputs, self.inputs)
        target, engine = Target.host().with_threads(1), CompiledC()
        model = load(path)
        with engine.open(engine.build(model, target, folder), target) as session:
            assert session.batch_sizes is None, "rows aren't apart"
            found = session.run(self.inputs)
            for name, array in zip(self.outputs, wanted, strict=True):
                node = next(one for one in self.nodes if name in one.output)
                assert found[name].dtype == array.dtype, node
                kind = array.dtype.kind
                if kind in "iub":
                    np.testing.assert_array_equal(found[name], array, err_msg=str(node))
                    continue
                np.testing.assert_allclose(
                    found[name].astype("f8"),
                    array.astype("f8"),
                    rtol=tolerance,
                    atol=tolerance,
                    err_msg=str(node),
                )
            for row in range(0, _ROWS, 3):
                lone = session.run({k: v[row : row + 1].copy() for k, v in self.inputs.items()})
                for name in self.outputs:
                    np.testing.assert_array_equal(lone[name][0], found[name][row], err_msg=name)


_ROWS = 9


@pytest.mark.parametrize("seed", range(3))
def test_convolutions_answer_as_onnx_runtime(tmp_path: Path, seed: int) -> None:
    drawn = Drawn(seed, opset=(11, 17, 21)[seed])
    pick = drawn.pick
    for number in range(7):
        flat = number % 3 == 2
        groups = pick.choice([1, 1, 2, 3])
        ins, outs = groups * pick.choice([1, 2, 3]), groups * pick.choice([1, 2, 4, 5, 7])
        sizes = [pick.randint(7, 19)] if flat else [pick.randint(6, 12), pick.randint(6, 12)]
        kernel = [pick.choice([1, 2, 3, 5]) for _ in sizes]
        if number == 6:
            kernel, sizes = sizes, sizes
        attributes: dict[str, Any] = {"group": groups, "kernel_shape": kernel}
        if number == 5:
            attributes["auto_pad"] = pick.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        elif number != 6:
            attributes["pads"] = [pick.randint(0, k) for k in (*kernel, *kernel)]
            attributes["dilations"] = [pick.choice([1, 1, 2]) if k < 4 else 1 for k in kernel]
        attributes["strides"] = [pick.choice([1, 1, 2, 3]) for _ in sizes]
        x = drawn.input(ins, *sizes)
        weight = drawn.normal(outs, ins // groups, *kernel)
        bias = [drawn.normal(outs)] if pick.random() < 0.7 else []
        made = drawn.node("Conv", x, weight, *bias, **attributes)
        drawn.output(drawn.node("Relu", made) if pick.random() < 0.5 else made)
    for groups in (1, 2):
        x, weight = drawn.input(2 * groups, 5, 6), drawn.normal(2 * groups, 3, 3, 2)
        attributes = {"strides": [pick.choice([1, 2]), 3], "group": groups, "pads": [1, 0, 0, 1]}
        attributes["output_padding"] = [0, pick.choice([0, 1])]
        drawn.output(drawn.node("ConvTranspose", x, weight, drawn.normal(3 * groups), **attributes))
    drawn.check(tmp_path)


def test_large_kernels_and_many_channels_answer_as_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0)
    for ins, outs, size, kernel in ((2, 5, 20, 7), (40, 33, 9, 3), (17, 24, 7, 1), (3, 6, 28, 5)):
        x = drawn.input(ins, size, size)
        weight, bias = drawn.normal(outs, ins, kernel, kernel), drawn.normal(outs)
        drawn.output(drawn.node("Conv", x, weight, bias, pads=[kernel // 2] * 4))
    x, weight = drawn.input(12, 14, 14), drawn.normal(12, 1, 3, 3)
    drawn.output(drawn.node("Conv", x, weight, group=12, pads=[1] * 4))
    drawn.check(tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_pools_answer_as_onnx_runtime(tmp_path: Path, seed: int) -> None:
    drawn = Drawn(seed, opset=(11, 19)[seed])
    pick = drawn.pick
    for _ in range(10):
        sizes = [pick.randint(6, 13) for _ in range(pick.choice([1, 2, 2]))]
        kernel = [pick.choice([2, 3, 4]) for _ in sizes]
        attributes: dict[str, Any] = {"kernel_shape": kernel}
        attributes["strides"] = [pick.choice([1, 2, 3]) for _ in sizes]
        if pick.random() < 0.6:
            attributes["pads"] = [pick.randint(0, k - 1) for k in (*kernel, *kernel)]
        elif pick.random() < 0.5:
            attributes["auto_pad"] = pick.choice(["SAME_UPPER", "SAME_LOWER"])
        op = pick.choice(["MaxPool", "AveragePool"])
        if op == "AveragePool":
            attributes["count_include_pad"] = pick.choice([0, 1])
        if op == "MaxPool":
            attributes["ceil_mode"] = pick.choice([0, 1]) if "auto_pad" not in attributes else 0
            if "auto_pad" not in attributes:
                attributes["dilations"] = [pick.choice([1, 1, 2]) for _ in sizes]
        drawn.output(drawn.node(op, drawn.input(pick.randint(1, 5), *sizes), **attributes))
    drawn.output(drawn.node("LRN", drawn.input(7, 3, 4), size=3, alpha=0.3, beta=0.6, bias=1.5))
    drawn.output(drawn.node("GlobalMaxPool", drawn.input(3, 5, 5)))
    drawn.check(tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_products_answer_as_onnx_runtime(tmp_path: Path, seed: int) -> None:
    drawn = Drawn(seed)
    pick = drawn.pick
    for _ in range(4):
        rows, inner, columns = (pick.choice([1, 2, 3, 5, 8, 13, 17, 33]) for _ in range(3))
        a, b = drawn.input(2, rows, inner), drawn.input(2, inner, columns)
        drawn.output(drawn.node("MatMul", a, b))
        turned = drawn.node("Transpose", b, perm=[0, 1, 3, 2])
        c = drawn.input(3, columns)
        broad = drawn.node("Unsqueeze", c, drawn.constant([1], "int64"))
        drawn.output(drawn.node("Relu", drawn.node("MatMul", broad, turned)))
        drawn.output(drawn.node("MatMul", a, drawn.normal(2, inner, columns)))
        drawn.output(drawn.node("MatMul", drawn.normal(4, rows), a))
        drawn.output(drawn.node("MatMul", a, drawn.normal(inner)))
    for inner, outer in ((1, 3), (9, 2), (40, 1), (13, 65), (24, 130), (7, 16), (64, 32), (33, 48)):
        x = drawn.input(inner)
        made = drawn.node("Gemm", x, drawn.normal(outer, inner), drawn.normal(outer), transB=1)
        drawn.output(drawn.node("Sigmoid", made))
    x = drawn.input(4, 6)
    drawn.output(drawn.node("Add", drawn.node("MatMul", x, drawn.normal(6, 20)), drawn.normal(20)))
    a, b = drawn.input(5, 2, 8), drawn.input(7, 2, 8)
    for equation in ("bqhd,bkhd->bhqk", "bqhd,bkhd->bqkh"):
        drawn.output(drawn.node("Einsum", a, b, equation=equation))
    drawn.output(drawn.node("Einsum", a, drawn.normal(2, 8, 6), equation="bqhd,hde->bqe"))
    drawn.check(tmp_path)


def test_choices_answer_as_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0)
    ids = drawn.input(4, dtype="int64", low=-10, high=10)
    short = drawn.input(2, 3, dtype="int32", low=0, high=10)
    for places in (ids, short):
        drawn.output(drawn.node("Gather", drawn.normal(10, 6), places, axis=0))
    behind = drawn.node("Gather", drawn.normal(3, 10), ids, axis=1)
    drawn.output(drawn.node("Transpose", behind, perm=[1, 0, 2]))
    drawn.output(drawn.node("Add", drawn.node("Gather", drawn.normal(10), ids), drawn.normal(4)))
    x = drawn.input(5, 10, 3)
    drawn.output(drawn.node("Gather", x, drawn.constant([[1, -1, 3], [0, 0, 2]], "int64"), axis=2))
    places = drawn.constant(drawn.rng.integers(-10, 10, 80), "int64")
    drawn.output(drawn.node("Gather", x, places, axis=2))
    picks = drawn.input(5, 4, 3, dtype="int64", low=-10, high=10)
    drawn.output(drawn.node("GatherElements", x, picks, axis=2))
    for largest, count in ((1, 3), (0, 10), (1, 1)):
        turned = drawn.node("Transpose", x, perm=[0, 1, 3, 2])
        k = drawn.constant([count], "int64")
        values = drawn.node("TopK", turned, k, gives=2, largest=largest, axis=-1)
        drawn.output(values)
        drawn.output(values[:-1] + "1")
    for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
        last = drawn.constant(2, "int64")
        drawn.output(drawn.node("CumSum", x, last, exclusive=exclusive, reverse=reverse))
    depth, two = drawn.constant(7, "int64"), drawn.constant([-1.5, 2.5])
    small = drawn.input(4, dtype="int64", low=-9, high=9)
    for axis in (-1, 1):
        drawn.output(drawn.node("OneHot", small, depth, two, axis=axis))
    for side, diagonal in ((1, 0), (0, 1), (1, -2)):
        drawn.output(drawn.node("Trilu", x, drawn.constant(diagonal, "int64"), upper=side))
    drawn.check(tmp_path)


def test_resized_and_rearranged_pictures_answer_as_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0)
    x = drawn.input(4, 6, 4)
    modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    for mode, kind in [(one, two) for one in modes for two in ("nearest", "linear")]:
        attributes: dict[str, Any] = {"coordinate_transformation_mode": mode, "mode": kind}
        if kind == "nearest":
            attributes["nearest_mode"] = drawn.pick.choice(["floor", "round_prefer_floor"])
        for scales in ([1, 1, 2, 2], [1, 1, 1.5, 0.5]):
            drawn.output(drawn.node("Resize", x, "", drawn.constant(scales), **attributes))
    for mode in ("DCR", "CRD"):
        drawn.output(drawn.node("DepthToSpace", x, blocksize=2, mode=mode))
    drawn.output(drawn.node("SpaceToDepth", x, blocksize=2))
    drawn.check(tmp_path)


def test_elementwise_operators_answer_as_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0)
    x, y = drawn.input(3, 5), drawn.input(5)
    wide = drawn.node("Mul", x, drawn.constant(50.0))
    for op in ("Sin", "Cos", "Round", "Floor", "Sign", "IsNaN", "IsInf"):
        drawn.output(drawn.node(op, wide))
    positive = drawn.node("Abs", x)
    drawn.output(drawn.node("Pow", positive, drawn.constant(1.7)))
    drawn.output(drawn.node("Pow", x, drawn.constant([3.0, -2.0, 0.0, 5.0, 1.0])))
    drawn.output(
        drawn.node("Pow", positive, drawn.node("Unsqueeze", y, drawn.constant([1], "int64")))
    )
    drawn.output(drawn.node("Mod", wide, drawn.constant(7.25), fmod=1))
    whole = drawn.input(3, 5, dtype="int64", low=-40, high=40)
    for divisor in (7, -7):
        drawn.output(drawn.node("Mod", whole, drawn.constant(divisor, "int64")))
        drawn.output(drawn.node("Mod", whole, drawn.constant(divisor, "int64"), fmod=1))
        drawn.output(drawn.node("Div", whole, drawn.constant(divisor, "int64")))
    for kind, zero in (("uint8", 100), ("int8", -5)):
        scale, point = drawn.constant(0.11), drawn.constant(zero, kind)
        quantized = drawn.node("QuantizeLinear", wide, scale, point)
        drawn.output(quantized)
        drawn.output(drawn.node("DequantizeLinear", quantized, scale, point))
    scales, points = drawn.constant([0.1, 0.2, 0.5]), drawn.constant([0, 3, 250], "uint8")
    drawn.output(drawn.node("QuantizeLinear", x, scales, points, axis=1))
    halves = drawn.node("Mul", drawn.node("Round", wide), drawn.constant(0.5))
    drawn.output(
        drawn.node("QuantizeLinear", halves, drawn.constant(1.0), drawn.constant(3, "int8"))
    )
    drawn.check(tmp_path)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_remainder_by_one_is_exact_in_both_floats(tmp_path: Path, kind: str) -> None:
    """The categories of LightGBM's trees are made whole by it, in float64."""
    drawn = Drawn(0)
    x = drawn.input(4, 6, dtype=kind)
    large = 1e30 if kind == "float32" else 1e300
    edges = drawn.constant([-0.0, 2.0, -2.5, np.inf, -large, np.nan], kind)
    for numbers in (drawn.node("Mul", x, drawn.constant(1e9, kind)), drawn.node("Add", x, edges)):
        drawn.output(drawn.node("Mod", numbers, drawn.constant(1.0, kind), fmod=1))
    drawn.check(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_chains_of_views_answer_as_onnx_runtime(tmp_path: Path, seed: int) -> None:
    drawn = Drawn(seed, opset=(9, 12, 17, 21)[seed])
    pick = drawn.pick
    for _ in range(5):
        shape = [pick.randint(1, 6) for _ in range(3)]
        value = drawn.input(*shape)
        for _ in range(6):
            value, shape = _viewed(drawn, value, shape)
        drawn.output(drawn.node("Neg", value))
    drawn.check(tmp_path)


def _viewed(drawn: Drawn, value: str, shape: list[int]) -> tuple[str, list[int]]:
    """Append a random view, copy, join or reduction behind the batch's axis."""
    pick = drawn.pick
    rank = len(shape)
    axis = pick.randrange(rank)
    kind = pick.choice(["turn", "slice", "join", "pad", "reduce", "add", "flat", "softmax"])
    if kind == "turn":
        order = pick.sample(range(rank), rank)
        made = drawn.node("Transpose", value, perm=[0, *(one + 1 for one in order)])
        return made, [shape[one] for one in order]
    if kind == "slice":
        start, step = pick.randrange(shape[axis]), pick.choice([1, 2, -1])
        end = 10**6 if step > 0 else -(10**6)
        left = len(range(shape[axis])[slice(start, end, step)])
        if drawn.opset < 10:
            step, left = 1, shape[axis] - start
            made = drawn.node("Slice", value, starts=[start], ends=[10**6], axes=[axis + 1])
        else:
            given = (drawn.constant([one], "int64") for one in (start, end, axis + 1, step))
            made = drawn.node("Slice", value, *given)
        return made, [left if at == axis else n for at, n in enumerate(shape)]
    if kind == "join":
        made = drawn.node("Concat", value, drawn.node("Abs", value), value, axis=axis + 1)
        return made, [3 * n if at == axis else n for at, n in enumerate(shape)]
    if kind == "pad":
        pads = [0] * (2 * rank + 2)
        pads[axis + 1], pads[rank + axis + 2] = 1, 2
        if drawn.opset < 11:
            made = drawn.node("Pad", value, pads=pads, value=0.5)
        else:
            made = drawn.node("Pad", value, drawn.constant(pads, "int64"), drawn.constant(0.5))
        return made, [n + 3 if at == axis else n for at, n in enumerate(shape)]
    if kind == "reduce":
        op = pick.choice(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2", "ReduceSum"])
        inputs = drawn.opset >= (13 if op == "ReduceSum" else 18)
        if inputs:
            made = drawn.node(op, value, drawn.constant([axis + 1], "int64"))
        else:
            made = drawn.node(op, value, axes=[axis + 1])
        return made, [1 if at == axis else n for at, n in enumerate(shape)]
    if kind == "add":
        some = [n if pick.random() < 0.5 else 1 for n in shape]
        return drawn.node("Add", value, drawn.normal(*some)), shape
    if kind == "softmax":
        return drawn.node("Softmax", value, axis=axis + 1 if drawn.opset >= 13 else rank), shape
    whole = [shape[0] * shape[1], *shape[2:], 1]
    return drawn.node("Reshape", value, drawn.constant([0, *whole], "int64")), whole


def test_pads_of_the_values_own_elements_answer_as_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0, opset=19)
    x, line = drawn.input(2, 4, 5), drawn.input(90)
    for mode in ("reflect", "edge", "wrap"):
        pads = drawn.constant([0, 0, 2, 1, 0, 1, 3, 4], "int64")
        drawn.output(drawn.node("Pad", x, pads, mode=mode))
        long = drawn.constant([0, 80, 0, 70], "int64")  # more pieces than copies are written for
        drawn.output(drawn.node("Pad", line, long, mode=mode))
    size = drawn.node("Size", drawn.normal(3, 4))
    drawn.output(drawn.node("Add", line, drawn.node("Cast", size, to=onnx.TensorProto.FLOAT)))
    drawn.check(tmp_path)


def test_a_branch_on_a_constant_is_taken(tmp_path: Path) -> None:
    drawn = Drawn(0)
    x = drawn.input(3)
    float_ = onnx.TensorProto.FLOAT
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [x], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", float_, ["n", 3])],
        )
        for name, op in (("then_branch", "Abs"), ("else_branch", "Neg"))
    }
    for condition in (True, False):
        drawn.output(drawn.node("If", drawn.constant(condition, "bool"), **branches))
        for branch in branches.values():
            branch.node[0].output[0] = branch.output[0].name = branch.output[0].name + "_"
    drawn.check(tmp_path)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("Gather", "int32"), ("Gather", "int64"), ("GatherElements", "int64"), ("GatherND", "int64")],
)
def test_places_beyond_a_tensor_are_refused_and_other_requests_answered(
    tmp_path: Path, op: str, dtype: str
) -> None:
    drawn = Drawn(0)
    x, places = drawn.input(4), drawn.input(3, dtype=dtype)
    table = drawn.constant([5, 6, 7, 8])
    if op == "GatherElements":
        found = drawn.node(op, x, places, axis=1)
    elif op == "GatherND":
        found = drawn.node(op, table, drawn.node("Unsqueeze", places, drawn.constant([2], "int64")))
    else:
        found = drawn.node(op, table, places)
    drawn.output(found)
    path, target = drawn.write(tmp_path), Target.host()
    artifact = CompiledC().build(load(path), target, tmp_path)
    given = {x: np.array([[5, 6, 7, 8]], np.float32), places: np.zeros((1, 3), dtype)}
    made = {found: np.empty((1, 3), np.float32)}
    for engine in (CompiledC(), Integers()):
        with engine.open(artifact, target) as session:
            call = session.bind(given, made)
            for wrong in (4, -5, np.iinfo(dtype).max, np.iinfo(dtype).min):
                given[places][:] = [[0, wrong, 9]]
                for ask in (lambda: session.run(given), call):
                    with pytest.raises(BeyondRange) as error:
                        ask()
                    assert str(error.value) == (
                        f"the model looks up place {wrong} of 4 for this request: give numbers for which its places "
                        "are from -4 to 3"
                    )
            given[places][:] = [[-4, 3, -1]]
            call()
            for answer in (made[found], session.run(given)[found]):
                assert answer.tolist() == [[5, 8, 8]]


@pytest.mark.parametrize("table", [(5, 4), (3, 4), (1, 4)])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", ["data", "indices"])
@pytest.mark.parametrize("rows", [1, 3])
def test_elements_gathered_between_a_constant_and_a_request_are_of_the_same_row(
    tmp_path: Path, table: tuple[int, int], axis: int, constant: str, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    first = rows if axis == 0 else min(rows, table[0])
    data, size = rng.standard_normal(table).astype(np.float32), table[axis]
    if constant == "indices":  # as a batch of 1 takes them, for which an open one is built
        data, first, size = data[:rows], 1, (1 if axis == 0 else size)
    indices = rng.integers(-size, size, (first, 2))
    named: dict[str, Array] = {"data": data, "indices": indices}
    kept = named.pop(constant)
    ((name, given),) = named.items()
    node = helper.make_node("GatherElements", ["data", "indices"], ["y"], axis=axis)
    target = Target.host().with_threads(1)
    for batch in ("n", len(given)):
        shape, kind = [batch, *given.shape[1:]], helper.np_dtype_to_tensor_dtype(given.dtype)
        graph = helper.make_graph(
            [node],
            "gathered",
            [helper.make_tensor_value_info(name, kind, shape)],
            [helper.make_tensor_value_info("y", 1, ["rows", 2])],
            [numpy_helper.from_array(kept, constant)],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / f"{batch}.onnx"
        onnx.save(made, path)
        (wanted,) = onnxruntime.InferenceSession(path).run(None, {name: given})
        for engine in (CompiledC(), Integers()):
            artifact = engine.build(load(path), target, tmp_path)
            with engine.open(artifact, target) as session:
                assert session.batch_sizes is not None, "rows aren't apart"
                if session.batch_sizes == (len(given),):
                    assert session.run({name: given})["y"].tolist() == wanted.tolist()
                else:
                    with pytest.raises(CandidateError) as caught:
                        session.run({name: given})
                    assert re.fullmatch(
                        rf"the compiled model has \d+ numbers? of {given.dtype} in {name!r}, and the array given for it has "
                        rf"{given.size} of {given.dtype}, in the shape {re.escape(str(list(given.shape)))}: give arrays for a batch "
                        rf"of {session.batch_sizes[0]} rows?, as the model was compiled",
                        str(caught.value),
                    )


@pytest.mark.parametrize(
    ("shape", "place", "why"),
    [
        ((1, 6, 4), 3, r"its indices, of shape \[1, 6, 4\], exceed \[1, 5, 4\]"),
        ((1, 5, 4), 4, "its indices go beyond 4"),
        ((1, 5, 4), -5, "its indices go beyond 4"),
    ],
)
def test_indices_that_exceed_their_data_are_refused(
    tmp_path: Path, shape: tuple[int, ...], place: int, why: str
) -> None:
    drawn = Drawn(0)
    x, picks = drawn.input(5, 4), drawn.constant(np.full(shape, place), "int64")
    drawn.output(drawn.node("GatherElements", x, picks, axis=2))
    with pytest.raises(CandidateError, match=f"doesn't take GatherElements.*{why}"):
        CompiledC().build(load(drawn.write(tmp_path)), Target.host(), tmp_path)


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_dividing_whole_numbers_by_0_is_refused_as_by_onnx_runtime(tmp_path: Path, op: str) -> None:
    drawn = Drawn(0)
    a, b = drawn.input(2, dtype="int64"), drawn.input(2, dtype="int64")
    drawn.output(drawn.node(op, a, b))
    path, target, engine = drawn.write(tmp_path), Target.host(), CompiledC()
    given = {a: np.array([[5, -(2**63)]]), b: np.array([[2, -1]])}
    with engine.open(engine.build(load(path), target, tmp_path), target) as session:
        for _ in range(2):
            (found,) = session.run(given).values()
            assert found.tolist() == ([[2, -(2**63)]] if op == "Div" else [[1, 0]])
            with pytest.raises(BeyondRange, match="divides a whole number by 0"):
                session.run({**given, b: np.array([[2, 0]])})


@pytest.mark.parametrize(
    ("op", "attributes", "why"),
    [
        ("Einsum", {"equation": "bii->bi"}, "its equation is 'bii->bi'"),
        ("MaxPool", {"kernel_shape": [9, 9]}, r"its window of \[9, 9\] is larger than \[4, 4\]"),
        ("Pad", {"mode": "reflect"}, "it pads 4 by a reflection of 4"),
    ],
)
def test_what_is_not_covered_names_the_operator(
    tmp_path: Path, op: str, attributes: dict[str, Any], why: str
) -> None:
    drawn = Drawn(0)
    x = drawn.input(4, 4) if op == "Einsum" else drawn.input(2, 4, 4)
    more = [drawn.constant([1], "int64")] if op == "TopK" else []
    if op == "Pad":
        more = [drawn.constant([0, 0, 0, 4, 0, 0, 0, 0], "int64")]
    drawn.output(drawn.node(op, x, *more, gives=2 if op == "TopK" else 1, **attributes))
    info = helper.make_tensor_value_info(drawn.outputs[0], 1, None)
    graph = helper.make_graph(
        drawn.nodes,
        "drawn",
        [helper.make_tensor_value_info(x, 1, ["n", *drawn.inputs[x].shape[1:]])],
        [info],
        drawn.constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "m.onnx")
    request = load(tmp_path / "m.onnx").inputs
    settled = tuple(TensorSpec(one.name, one.dtype, (1, *one.shape[1:])) for one in request)
    with pytest.raises(CandidateError, match=f"doesn't take {op}.*{why}"):
        lower(tmp_path / "m.onnx", settled, ())


@pytest.mark.parametrize(
    "node",
    [
        "y = Reshape(x, merged)",
        "y = Flatten <axis = 0> (x)",
        "y = Slice(x, zero, one, zero)",
        "y = Add(x, three)",
        "t = Add(x, three) y = Reshape(t, merged)",
    ],
)
def test_what_answers_one_row_only_as_a_batch_of_one_is_not_for_more(
    tmp_path: Path, node: str
) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        apart (float[n, 4] x) => (float[a, b] y)
            <int64[2] merged = {1, -1}, int64[1] zero = {0}, int64[1] one = {1},
             float[3, 4] three = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> {
    """
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text + node + "}"), path)
    plan, _ = lower(path, (TensorSpec("x", "float32", (1, 4)),), (TensorSpec("y", "float32", ()),))
    assert not plan.by_row


@pytest.mark.parametrize(("of", "to"), [("float32", "float64"), ("float64", "float32")])
def test_products_before_a_cast_to_another_float_answer_as_onnx_runtime(
    of: str, to: str, tmp_path: Path
) -> None:
    drawn = Drawn(1)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
    weights = np.random.default_rng(0).standard_normal((4, 3)).tolist()
    x, y = (drawn.input(2, 4, dtype=of) for _ in range(2))
    turned = drawn.node("Transpose", y, perm=[0, 2, 1])
    for product in (drawn.constant(weights, of), turned):
        cast = drawn.node("Cast", drawn.node("MatMul", x, product), to=kind)
        drawn.output(drawn.node("Abs", cast))
    drawn.check(tmp_path)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_bits_of_whole_numbers_answer_as_onnx_runtime(dtype: str, tmp_path: Path) -> None:
    drawn = Drawn(1, opset=18)
    low, high = (0, 255) if dtype == "uint8" else (-(2**31), 2**31)
    x, y = (drawn.input(5, dtype=dtype, low=low, high=high) for _ in range(2))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        drawn.output(drawn.node(op, x, y))
        drawn.output(drawn.node(op, x, drawn.constant([0, 1, 3, 60, 127], dtype)))
    drawn.check(tmp_path)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_whole_numbers_beyond_their_type_wrap_as_in_onnx_runtime(
    dtype: str, tmp_path: Path
) -> None:
    drawn = Drawn(1)
    info = np.iinfo(dtype)
    x, y = (drawn.input(40, dtype=dtype, low=info.min, high=info.max) for _ in range(2))
    for op in ("Add", "Sub", "Mul"):
        made = drawn.node(op, x, y)
        drawn.output(made)
        half = drawn.constant(info.max // 2, dtype)
        # Without care C takes it for granted that a sum is the larger one.
        drawn.output(drawn.node("Less", drawn.node(op, x, half), x))
    drawn.check(tmp_path)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("count", [2, 6])
def test_nan_is_the_largest_number_as_in_onnx_runtime(
    tmp_path: Path, count: int, largest: int
) -> None:
    drawn = Drawn(0)
    x = drawn.input(6)
    nan = np.nan
    drawn.inputs[x][:4] = [
        [3, nan, 1, 5, 2, 4],
        [nan, 1, nan, 7, 3, 7],
        [5, 4, 3, 2, np.inf, nan],
        [nan] * 6,
    ]
    k = drawn.constant([count], "int64")
    values = drawn.node("TopK", x, k, gives=2, axis=1, largest=largest)
    drawn.output(values)
    drawn.output(values.replace("_0", "_1"))
    drawn.check(tmp_path)


def test_infinite_exponents_stay_infinite_as_in_onnx_runtime(tmp_path: Path) -> None:
    drawn = Drawn(0, opset=13)
    x = drawn.input(3)
    low, high = -np.inf, np.inf
    drawn.inputs[x][:5] = [
        [1, high, 2],
        [low, low, low],
        [low, 1, 2],
        [low, high, 0],
        [1, np.nan, low],
    ]
    drawn.output(drawn.node("ReduceLogSumExp", x, axes=[1], keepdims=0))
    drawn.check(tmp_path)
