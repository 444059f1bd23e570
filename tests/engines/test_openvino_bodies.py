"""Graphs inside an If or a Loop on OpenVINO: refused where its plugin may answer wrong without a word, else right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from hasten.core.target import Target
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import NotCovered
from hasten.inputs.models.onnx import load

_CONSTANTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] many = {9223372036854775807}, int64[1] last = {-1}, bool yes = {1}, "
    "int64 three = {3}, int64 at = {1}, float begin = {0}, int64[2] both = {0, 1}, "
    "float[1, 1, 3] kernel = {1, 2, 3}, float[3] table = {1, 2, 3}, float[1, 8, 1] w = {1, 1, 1, 1, 1, 1, 1, 1}, "
    f"float[1, 8, 2] r = {{{', '.join(['0.5'] * 16)}}}, int64[2] few = {{0, 2}}, float[0] none = {{}}"
)
_X = np.array([1, -2, 3], np.float32)


def branched(
    nodes: str, other: str = "b = ReduceSum <keepdims = 0> (x)", *, inputs: str = ""
) -> str:
    """Return a graph with an If whose first branch makes `a` by some nodes."""
    return f"""g (float[N] x, bool c{inputs}) => (float y) <{_CONSTANTS}> {{
        y = If (c) <then_branch = t () => (float a) {{ {nodes} }}, else_branch = e () => (float b) {{ {other} }}> }}"""


def looped(nodes: str, steps: str = "three", *, inputs: str = "") -> str:
    """Return a graph with a Loop whose body makes `row` by some nodes, from its number of the step, `i`."""
    return f"""g (float[N] x{inputs}) => (float[M] y) <{_CONSTANTS}> {{
        sizes = Shape (x)  rows = Squeeze (sizes, zero)
        y = Loop ({steps}, yes) <body = b (int64 i, bool on) => (bool again, float row) {{
            again = Identity (on)  {nodes} }}> }}"""


def written(folder: Path, text: str) -> Path:
    """Write a model; return its path."""
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), path)
    return path


_FOUND = "p = Relu (x)  z = NonZero (p)  f = Cast <to = 1> (z)"
_ROW = f"{_FOUND}  u = Unsqueeze (f, zero)  s = Transpose <perm = [2, 0, 1]> (u)"
_EMPTY = {
    "recurrent": branched(
        f"{_ROW}  o, q = LSTM <hidden_size = 2> (s, w, r)  a = ReduceSum <keepdims = 0> (q)"
    ),
    "largest": branched(f"{_FOUND}  a = ReduceMax <keepdims = 0> (f)"),
    "by shape": branched("v = Slice (x, one, many)  a = ReduceMax <keepdims = 0> (v)"),
    "by the request": branched(
        "v = Slice (x, zero, n)  a = ReduceMax <keepdims = 0> (v)", inputs=", int64[1] n"
    ),
    "of a product": branched(
        f"{_FOUND}  g = Mul (f, f)  h = Neg (g)  a = ReduceMax <keepdims = 0> (h)"
    ),
    "in a loop": looped(
        "j = Unsqueeze (i, zero)  v = Slice (x, j, many)  row = ReduceMax <keepdims = 0> (v)"
    ),
    "a loop in a branch": branched(
        "d = Shape (x)  e1 = Sub (d, one)  n = Squeeze (e1, zero)  l = Loop (n, yes) <body = b2 (int64 i, bool on) => "
        "(bool again, float row) { again = Identity (on)  k = Gather (x, i)  row = Neg (k) }>  a = ReduceSum <keepdims = 0> (l)"
    ),
}
_BEYOND = {
    "in a branch": branched(
        "k = Gather (x, n)  a = ReduceSum <keepdims = 0> (k)", inputs=", int64[2] n"
    ),
    "in the other branch": branched(
        "a = ReduceSum <keepdims = 0> (x)",
        "k = Gather (table, n)  b = ReduceSum <keepdims = 0> (k)",
        inputs=", int64[2] n",
    ),
    "in a loop": looped("j = Gather (n, i)  row = Gather (table, j)", inputs=", int64[3] n"),
    "calculated": looped("j = Add (i, i)  row = Gather (x, j)"),
    "of a short request": branched("k = Gather (x, few)  a = ReduceSum <keepdims = 0> (k)"),
    "more steps than rows": looped("row = Gather (table, i)", "rows"),
    "more steps than an open axis may have": looped("row = Gather (x, i)"),
}
_RIGHT = {
    "sum of what is found": branched(f"{_FOUND}  a = ReduceSum <keepdims = 0> (f)"),
    "without the last": branched("v = Slice (x, zero, one)  a = ReduceMax <keepdims = 0> (v)"),
    "the last": branched("v = Slice (x, last, many)  a = ReduceMax <keepdims = 0> (v)"),
    "constant places": branched("v = Gather (table, few)  a = ReduceSum <keepdims = 0> (v)"),
    "best of a table": branched(
        "t3 = Add (table, begin)  j = ArgMax <axis = 0, keepdims = 0> (t3)  a = Gather (table, j)"
    ),
    "rows in a loop": looped("v = Gather (x, i)  row = Neg (v)", "rows"),
    "convolutions of an open length": branched(
        "u = Unsqueeze (x, both)  k = Conv <pads = [1, 1]> (u, kernel)  l = Conv <pads = [1, 1]> (k, kernel)  "
        "a = ReduceSum <keepdims = 0> (l)"
    ),
    "steps of a table": looped("row = Gather (table, i)"),
    "what a branch found": f"""g (float[N] x, bool c) => (float y) <{_CONSTANTS}> {{
        q = If (c) <then_branch = t () => (int64[1, M] a) {{ p = Relu (x)  a = NonZero (p) }},
            else_branch = e () => (int64[1, M] b) {{ b = NonZero (x) }}>
        f = Cast <to = 1> (q)  y = ReduceSum <keepdims = 0> (f) }}""",
}


@pytest.mark.parametrize("name", _EMPTY)
def test_a_graph_that_may_have_an_empty_tensor_inside_an_operation_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(
        NotCovered, match=r"where an operation gets an empty tensor inside (If|Loop) .*, as .* may"
    ):
        OpenVino().build(load(written(tmp_path, _EMPTY[name])), Target.host(), tmp_path)


@pytest.mark.parametrize("name", _BEYOND)
def test_a_graph_that_may_look_beyond_a_tensor_inside_an_operation_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(
        NotCovered,
        match=r"reads zeros beyond a tensor, as Gather \(node '\w+'\) inside (If|Loop) \(node 'y'\)",
    ):
        OpenVino().build(load(written(tmp_path, _BEYOND[name])), Target.host(), tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _RIGHT)
def test_other_graphs_inside_an_operation_are_right(
    tmp_path: Path, name: str, threads: int
) -> None:
    path, host = written(tmp_path, _RIGHT[name]), Target.host().with_threads(1)
    original = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    artifact = OpenVino().build(load(path), host, tmp_path)
    with OpenVino(threads=threads).open(artifact, host) as session:
        for x in (_X, -np.abs(_X), _X + 1, -np.abs(_X), np.append(_X, _X)):
            for truth in (True, False):
                request: dict[str, npt.NDArray[Any]] = {"x": x}
                if any(spec.name == "c" for spec in artifact.inputs):
                    request["c"] = np.array(truth)
                (found,), (wanted,) = session.run(request).values(), original.run(None, request)
                assert found.shape == wanted.shape
                assert np.allclose(found, wanted)
