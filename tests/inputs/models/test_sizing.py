"""Axes of outputs that a graph sizes by a request's values, and those that it sizes by shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from hasten.core.tensors import BY_VALUE
from hasten.inputs.models.onnx import load

WEIGHTS = """<float zero = {0}, float one = {1}, int64[1] i_zero = {0}, int64[1] i_one = {1}, int64[1] flat = {-1},
    int64 first = {0}, int64 step = {1}, bool yes = {1}>"""
NUMBER = "most = ReduceMax <keepdims = 0> (x) number = Cast <to = 7> (most) count = Reshape (number, flat) "
"""`count`: int64[1] of the request's values."""
ROWS = "all = Shape (x) rows = Slice (all, i_zero, i_one) "
SEEN = "seen = Slice (all, i_one, flat) "


def shapes(
    folder: Path, output: str, nodes: str, inputs: str = "float[N, 6] x", more: str = ""
) -> tuple[object, ...]:
    text = f"""<ir_version: 9, opset_import: ["" : 17, "mine" : 1, "com.microsoft" : 1]>
        m ({inputs}) => ({output}) {WEIGHTS} {{ {nodes} }} {more}"""
    proto = onnx.parser.parse_model(text)
    onnx.save(proto, folder / "m.onnx")
    return load(folder / "m.onnx").outputs[0].shape


@pytest.mark.parametrize(
    "nodes",
    [
        NUMBER + ROWS + "shape = Concat <axis = 0> (rows, count) y = Expand (one, shape)",
        NUMBER + ROWS + "shape = Concat <axis = 0> (rows, count) y = ConstantOfShape (shape)",
        NUMBER
        + "steps = Range (first, number, step) s = Cast <to = 1> (steps) a = ReduceMax <axes = [1]> (x) y = Add (a, s)",
        NUMBER + "repeats = Concat <axis = 0> (i_one, count) y = Tile (x, repeats)",
        NUMBER + "y = Slice (x, i_zero, count, i_one)",
        NUMBER + "y, places = TopK (x, count)",
        NUMBER + "pads = Concat <axis = 0> (i_zero, i_zero, i_zero, count) y = Pad (x, pads)",
        NUMBER + ROWS + "shape = Concat <axis = 0> (rows, count) y = Reshape (x, shape)",
        "found = NonZero (x) how = Shape (found) many = Slice (how, i_one, flat) "
        + ROWS
        + "shape = Concat <axis = 0> (rows, many) y = ConstantOfShape (shape)",
        "y = mine.Find (x)",
        "y = com.microsoft.CropAndResize (x)",
    ],
)
def test_an_axis_that_values_size_is_named_so(tmp_path: Path, nodes: str) -> None:
    assert shapes(tmp_path, "float[N, t] y", nodes) == ("N", BY_VALUE)


@pytest.mark.parametrize(
    ("nodes", "inputs"),
    [
        ("y = Relu (x)", "float[N, 6] x"),
        (ROWS + "shape = Concat <axis = 0> (rows, flat) y = Reshape (x, shape)", "float[N, 6] x"),
        (ROWS + SEEN + "y = Slice (x, i_zero, seen, i_one)", "float[N, M] x"),
        (ROWS + "y, places = TopK (x, i_one)", "float[N, M] x"),
        ("w = Unsqueeze (x, i_one) k = Transpose <perm = [0, 2, 1]> (w) y = ReduceSum <keepdims = 0> (k, i_one)", "float[N, M] x"),
        ("f = NonZero (x) p = Transpose (f) v = GatherND (x, p) y = ScatterND (x, p, v)", "float[N, M] x"),
        ("y = com.microsoft.Gelu (x)", "float[N, M] x"),
    ],
)  # fmt: skip
def test_an_axis_that_shapes_size_keeps_its_name(tmp_path: Path, nodes: str, inputs: str) -> None:
    assert shapes(tmp_path, "float[N, t] y", nodes, inputs) == ("N", "t")


def test_an_axis_with_an_input_s_name_keeps_it(tmp_path: Path) -> None:
    nodes = NUMBER + "y = Slice (x, i_zero, count, i_one)"
    assert shapes(tmp_path, "float[N, M] y", nodes, "float[N, M] x") == ("N", "M")


LOOP = """y, each = Loop ({times}, {goes}, x) <body = b (int64 n, bool on, float[?, ?] had) =>
    (bool off, float[?, ?] has, float[?] made) {{
        longer = Concat <axis = 1> (had, had) has = Identity (longer) made = ReduceMax <keepdims = 0> (had)
        {ends}
    }}>"""


@pytest.mark.parametrize(
    ("first", "times", "goes", "ends", "axis"),
    [
        (NUMBER, "number", "yes", "off = Identity (on)", BY_VALUE),
        (NUMBER, "step", "yes", "off = Identity (on)", "t"),
        (NUMBER, "step", "yes", "high = ReduceMax <keepdims = 0> (had) off = Greater (high, zero)", BY_VALUE),
        (ROWS + "one_of = Squeeze (rows)", "one_of", "yes", "off = Identity (on)", "t"),
    ],
)  # fmt: skip
def test_a_loop_sizes_an_axis_by_values_if_they_decide_how_often_it_runs(
    tmp_path: Path, first: str, times: str, goes: str, ends: str, axis: str
) -> None:
    nodes = first + LOOP.format(times=times, goes=goes, ends=ends)
    assert shapes(tmp_path, "float[N, t] y", nodes) == ("N", axis)
    assert shapes(tmp_path, "float[r, t] y", nodes)[0] == "r"  # recurrent models have loops, too


def test_values_that_reach_a_size_through_a_function_or_a_loop_s_later_step_are_found(
    tmp_path: Path,
) -> None:
    function = (
        """<domain: "mine", opset_import: ["" : 17]> Wide (a, n) => (b) { b = Tile (a, n) }"""
    )
    nodes = NUMBER + "repeats = Concat <axis = 0> (i_one, count) y = mine.Wide (x, repeats)"
    assert shapes(tmp_path, "float[N, t] y", nodes, more=function) == ("N", BY_VALUE)
    nodes = "repeats = Concat <axis = 0> (i_one, i_one) y = mine.Wide (x, repeats)"
    assert shapes(tmp_path, "float[N, t] y", nodes, more=function) == ("N", "t")
    later = """p, q, y = Loop (step, yes, i_one, i_one, x) <body = b (int64 n, bool on, int64[1] p_, int64[1] q_, float[?, ?] had)
        => (bool off, int64[1] p2, int64[1] q2, float[?, ?] has) {
            off = Identity (on) q2 = Identity (p_) p2 = Identity (count) has = Slice (had, i_zero, q_, i_one)
        }>"""
    assert shapes(tmp_path, "float[N, t] y", NUMBER + later) == ("N", BY_VALUE)


def test_what_the_graph_says_is_what_the_model_does(tmp_path: Path) -> None:
    import onnxruntime

    nodes = NUMBER + ROWS + "shape = Concat <axis = 0> (rows, count) y = Expand (one, shape)"
    assert shapes(tmp_path, "float[N, t] y", nodes) == ("N", BY_VALUE)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for number in (2, 5):
        (y,) = session.run(None, {"x": np.full((3, 6), number, np.float32)})
        assert y.shape == (3, number)
