"""Tensors inside OpenVINO's graphs that a request's numbers make empty: each request is answered as by ONNX Runtime, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.engines.base import Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino, converted
from hasten.engines.openvino.runtime import new_core
from hasten.engines.openvino.watched import watch
from hasten.errors import BeyondRange
from hasten.inputs.models.onnx import load

Request = dict[str, npt.NDArray[Any]]
_CONSTANTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64 at = {1}, int64[1] many = {1000000}, "
    "bool yes = {1}, float[1] start = {0}, float half = {0.5}, int64[1] five = {5}, float[4] base = {1, 2, 3, 4}, "
    "float[1, 1, 3] kernel = {1, 2, 3}, float[1, 8, 1] w = {1, 1, 1, 1, 1, 1, 1, 1}, "
    f"float[1, 8, 2] r = {{{', '.join(['0.5'] * 16)}}}"
)
_FOUND = "p = Relu (x)  z = NonZero (p)  f = Cast <to = 1> (z)  "
"""Places of the positive numbers of `x`, as whole numbers and as floats, `(1, n)`."""
_ROW = f"{_FOUND} s = Unsqueeze (f, zero)  "
"""The same as floats, `(1, 1, n)`."""
_X: list[Request] = [
    {"x": np.array(numbers, np.float32)}
    for numbers in ([1, -2, 3, 4], [5, 6, -7, 9], [2, -1, -1, 8])
]
_NOTHING: list[Request] = [{"x": np.array([-1, -2, -3, -4], np.float32)}]


def counted(name: str, *counts: int) -> list[Request]:
    """Return requests of the same numbers with other counts."""
    return [{"x": np.array([1, 2, 3, 4], np.float32) + n, name: np.array([n])} for n in counts]


_PASSED_OVER = {
    "LSTM of what is found": (
        "float[N] x",
        f"{_ROW} t = Transpose <perm = [2, 0, 1]> (s)  o, q = LSTM <hidden_size = 2> (t, w, r)  y = Neg (q)",
        _X,
        _NOTHING,
    ),
    "convolution": ("float[N] x", f"{_ROW} y = Conv <pads = [2, 2]> (s, kernel)", _X, _NOTHING),
    "largest": ("float[N] x", f"{_ROW} y = ReduceMax <axes = [2]> (s)", _X, _NOTHING),
    "best": (
        "float[N] x",
        f"{_ROW} a = ArgMax <axis = 2> (s)  y = Cast <to = 1> (a)",
        _X,
        _NOTHING,
    ),
    "windows": (
        "float[N] x",
        f"{_ROW} y = MaxPool <kernel_shape = [3], pads = [2, 2]> (s)",
        _X,
        _NOTHING,
    ),
    "boxes": (
        "float[1, N, 4] b, float[1, 1, N] x",
        "z = NonMaxSuppression (b, x, five, half, half)  f = Cast <to = 1> (z)  y = ReduceMax <axes = [0]> (f)",
        [
            {
                "b": np.array([[[0, 0, 1, 1], [2, 2, 3, 3]]], np.float32),
                "x": np.array([[[0.9, 0.1]]], np.float32),
            }
        ],
        [
            {
                "b": np.array([[[0, 0, 1, 1], [2, 2, 3, 3]]], np.float32),
                "x": np.array([[[0.1, 0.2]]], np.float32),
            }
        ],
    ),
    "slice": (
        "float[N] x, int64[1] n",
        "c = Slice (x, zero, n)  y = ReduceMax (c)",
        counted("n", 2, 1),
        counted("n", 0),
    ),
    "slice of what is found": (
        "float[N] x",
        f"{_ROW} c = Slice (s, two, many, two)  y = ReduceMax <axes = [2]> (c)",
        [_X[0], _X[1]],
        [_X[2]],
    ),
    "topk": (
        "float[N] x, int64[1] n",
        "v, i = TopK (x, n)  y = ReduceMax (v)",
        counted("n", 2, 1),
        counted("n", 0),
    ),
    "expand": (
        "float[1] x, int64[1] n",
        "v = Expand (x, n)  y = ReduceMax (v)",
        [{"x": one["x"][:1], "n": one["n"]} for one in counted("n", 2, 1)],
        [{"x": one["x"][:1], "n": one["n"]} for one in counted("n", 0)],
    ),
    "tile": (
        "float[N] x, int64[1] n",
        "v = Tile (x, n)  y = ReduceMax (v)",
        counted("n", 2, 1),
        counted("n", 0),
    ),
    "range": (
        "float[N] x",
        f"{_FOUND} c = Shape (z)  n = Gather (c, at)  o = Constant <value_int = 0> ()  e = Constant <value_int = 1> ()  "
        "v = Range (o, n, e)  g = Cast <to = 1> (v)  y = ReduceMax (g)",
        _X,
        _NOTHING,
    ),
    "constant of a shape": (
        "float[N] x, int64[1] n",
        "v = ConstantOfShape (n)  m = ReduceMax (v)  y = Add (x, m)",
        counted("n", 2, 1),
        counted("n", 0),
    ),
    "branch": (
        "float[N] x, bool c",
        "q = If (c) <then_branch = t () => (int64[1, M] a) { p = Relu (x)  a = NonZero (p) }, "
        "else_branch = e () => (int64[1, M] b) { b = NonZero (x) }> f = Cast <to = 1> (q)  y = ReduceMax (f)",
        [{**one, "c": np.array(truth)} for one in _X for truth in (True, False)],
        [{**one, "c": np.array(True)} for one in _NOTHING],
    ),
    "loop": (
        "float[N] x",
        f"{_FOUND} c = Shape (z)  n = Gather (c, at)  l = Loop (n, yes) <body = b (int64 i, bool on) => (bool again, "
        "float row) { again = Identity (on)  v = Gather (x, i)  row = Neg (v) }>  m = ReduceSum <keepdims = 1> (l)  "
        "y = Add (x, m)",
        _X,
        _NOTHING,
    ),
    "loop of a row less": (
        "float[N] x",
        "c = Shape (x)  d = Sub (c, one)  n = Squeeze (d, zero)  l = Loop (n, yes) <body = b (int64 i, bool on) => "
        "(bool again, float row) { again = Identity (on)  v = Gather (x, i)  row = Neg (v) }>  "
        "m = ReduceSum <keepdims = 1> (l)  y = Add (x, m)",
        _X,
        [{"x": np.array([3], np.float32)}],
    ),
    "loop of two rows less": (
        "float[N] x",
        "c = Shape (x)  d = Sub (c, two)  n = Squeeze (d, zero)  l = Loop (n, yes) <body = b (int64 i, bool on) => "
        "(bool again, float row) { again = Identity (on)  v = Gather (x, i)  row = Neg (v) }>  "
        "m = ReduceSum <keepdims = 1> (l)  y = Add (x, m)",
        _X,
        [{"x": np.array([3], np.float32)}, {"x": np.array([3, 4], np.float32)}],
    ),
}
"""Graphs by name: inputs, nodes that make `y`, requests that are answered, and requests that are refused."""
_RIGHT = {
    "sum": ("float[N] x", f"{_ROW} y = ReduceSum (s, two)", [*_X, *_NOTHING]),
    "product": (
        "float[N] x",
        f"{_ROW} t = Transpose <perm = [0, 2, 1]> (s)  n = Neg (t)  y = MatMul (s, n)",
        [*_X, *_NOTHING],
    ),
    "joined": (
        "float[N] x",
        f"{_FOUND} g = Squeeze (f, zero)  y = Concat <axis = 0> (x, g)",
        [*_X, *_NOTHING],
    ),
    "written": (
        "float[N] x",
        f"{_FOUND} i = Transpose (z)  q = Squeeze (z, zero)  u = Gather (x, q)  v = ScatterND (base, i, u)  y = Neg (v)",
        [*_X, *_NOTHING],
    ),
    "detections": (
        "float[N] x",
        f"{_ROW} g = Mul (s, s)  y = Squeeze (g, zero)",
        [*_X, *_NOTHING],
    ),
    "state of a loop": (
        "float[N] x",
        f"{_FOUND} c = Shape (z)  n = Gather (c, at)  y = Loop (n, yes, start) <body = b (int64 i, bool on, float[1] s) => "
        "(bool again, float[1] t) { again = Identity (on)  v = Gather (x, i)  t = Add (s, v) }>",
        [*_X, *_NOTHING],
    ),
}
"""Graphs by name that are right about empty tensors: inputs, nodes that make `y`, and requests."""


def written(folder: Path, inputs: str, nodes: str) -> Path:
    """Write a model; return its path."""
    path = folder / "model.onnx"
    text = f"g ({inputs}) => (float y) <{_CONSTANTS}> {{ {nodes} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model)
    onnx.save(inferred, path)
    return path


@contextmanager
def opened(folder: Path, path: Path, threads: int) -> Iterator[Session]:
    """Open a model on OpenVINO."""
    host = Target.host().with_threads(1)
    artifact = OpenVino().build(load(path), host, folder)
    with OpenVino(threads=threads).open(artifact, host) as session:
        yield session


def truth(path: Path) -> onnxruntime.InferenceSession:
    """Open a model on ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def same(found: Request, expected: list[npt.NDArray[Any]]) -> bool:
    """Whether answers are equal but for rounding."""
    return all(
        one.shape == other.shape and np.allclose(one, other, equal_nan=True)
        for one, other in zip(found.values(), expected, strict=True)
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _PASSED_OVER)
def test_numbers_made_of_what_a_requests_numbers_leave_empty_are_never_the_last_answers(
    tmp_path: Path, name: str, threads: int
) -> None:
    inputs, nodes, full, empty = _PASSED_OVER[name]
    path = written(tmp_path, inputs, nodes)
    original = truth(path)
    with opened(tmp_path, path, threads) as session:
        for number in range(3 * len(full)):
            request = full[number % len(full)]
            assert same(session.run(request), original.run(None, request))
            with pytest.raises(
                BeyondRange, match=r"the last request's numbers|K \(0\) must be greater"
            ):
                session.run(empty[number % len(empty)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _RIGHT)
def test_what_openvino_makes_right_of_nothing_is_answered(
    tmp_path: Path, name: str, threads: int
) -> None:
    inputs, nodes, requests = _RIGHT[name]
    path = written(tmp_path, inputs, nodes)
    original = truth(path)
    with opened(tmp_path, path, threads) as session:
        for request in [*requests, *requests, *requests[::-1]]:
            assert same(session.run(request), original.run(None, request))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "largest",
            r"where an operation gets an empty tensor, as Reduce \(node '\w'\) does since NonZero \(node 'z'\) gives nothing "
            "for the numbers of this request: give others, or use another engine",
        ),
        (
            "loop",
            r"where a loop has no steps, as Loop \(node 'l'\) has for this request: give longer inputs, or use another engine",
        ),
    ],
)
def test_a_graph_from_the_cache_tells_of_its_requests_as_a_compiled_one(
    tmp_path: Path, name: str, said: str
) -> None:
    inputs, nodes, full, empty = _PASSED_OVER[name]
    path, host = written(tmp_path, inputs, nodes), Target.host().with_threads(1)
    artifact = OpenVino().build(load(path), host, tmp_path)
    for _ in range(2):
        cache = CompileCache(CacheFolder(tmp_path / "cache", 1 << 30))
        with OpenVino().open_cached(artifact, host, cache) as session:
            assert [*session.run(full[0])] == ["y"]
            with pytest.raises(BeyondRange, match=said):
                session.run(empty[0])
            assert [*session.run(full[1])] == ["y"]
    assert (cache.found, cache.kept) == (1, 0)


@pytest.mark.parametrize(
    ("nodes", "added"),
    [
        ("y = Relu (x)", 0),
        ("s = Slice (x, one, many)  y = Neg (s)", 0),
        ("c = Shape (x)  e = Expand (half, c)  y = Add (x, e)", 0),
        ("v, i = TopK (x, one)  y = Gather (x, i)", 0),
        ("i = Cast <to = 7> (x)  y = GatherElements (x, i)", 0),
        ("i = Cast <to = 7> (x)  e = GatherElements (x, i)  y = Slice (e, one, many)", 0),
        ("z = NonZero (x)  y = Cast <to = 1> (z)", 1),
        (
            "z = NonZero (x)  f = Cast <to = 1> (z)  g = Mul (f, f)  h = Slice (g, one, many, one)  y = Neg (h)",
            2,
        ),
    ],
)
def test_only_a_graph_whose_sizes_follow_from_numbers_gets_further_outputs(
    tmp_path: Path, nodes: str, added: int
) -> None:
    artifact = converted(load(written(tmp_path, "float[N] x", nodes)), tmp_path)
    graph = new_core().read_model(artifact.path)
    watch(graph)
    assert len(graph.outputs) == 1 + added
