"""Requests of many shapes on OpenVINO: each is answered as ONNX Runtime answers it, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from hasten.core.target import Target
from hasten.engines.base import Session
from hasten.engines.openvino.engine import OpenVino, converted
from hasten.engines.openvino.risks import Risks, risks_of
from hasten.errors import BeyondRange, NotCovered
from hasten.inputs.models.onnx import load

_CONSTANTS = (
    "float[4, 4] w = {1, -1, 0.5, 0, 0, 2, 0, -1, 1, 0, 0, 0.5, -2, 0, 1, 1}, "
    f"float[4, 4, 3] kernel = {{{', '.join(str(number % 5 - 2) for number in range(48))}}}, "
    f"float[1, 12, 4] v = {{{', '.join(str((number % 7 - 3) / 4) for number in range(48))}}}, "
    f"float[1, 12, 4] u = {{{', '.join(str((number % 3 - 1) / 4) for number in range(48))}}}, "
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] many = {1000000}, "
    "int64[1] minus = {-1}, float small = {1}, int64[3] halves = {0, -1, 2}, int64[3] wholes = {0, -1, 4}, int64[1] last = {-2}"
)
_STEPS = {
    "relu": "{o} = Relu ({i})",
    "tanh": "{o} = Tanh ({i})",
    "product": "{o} = MatMul ({i}, w)",
    "sum": "{o} = Add ({i}, z)",
    "longer": "{o} = Concat <axis = 1> ({i}, z)",
    "shares": "{o} = Softmax <axis = 1> ({i})",
    "without the first": "{o} = Slice ({i}, one, many, one)",
    "the first two": "{o} = Slice ({i}, zero, two, one)",
    "the last two": "{o} = Slice ({i}, last, many, one)",
    "convolution": "{o}a = Transpose <perm = [0, 2, 1]> ({i})  {o}b = Conv ({o}a, kernel)  {o} = Transpose <perm = [0, 2, 1]> ({o}b)",
    "padded": "{o}a = Transpose <perm = [0, 2, 1]> ({i})  {o}b = Conv <pads = [2, 2]> ({o}a, kernel)  {o} = Transpose <perm = [0, 2, 1]> ({o}b)",
    "halves": "{o}a = Reshape ({i}, halves)  {o}b = Neg ({o}a)  {o} = Reshape ({o}b, wholes)",
    "mean": "{o} = ReduceMean <axes = [1]> ({i})",
    "largest": "{o}, {o}a = TopK <axis = 1> ({i}, two)",
    "attention": "{o}a = Transpose <perm = [0, 2, 1]> ({i})  {o}b = MatMul ({i}, {o}a)  {o}c = Softmax ({o}b)  {o} = MatMul ({o}c, {i})",
    "found": "{o}a = ReduceMax <axes = [0, 2], keepdims = 0> ({i})  {o}b = Greater ({o}a, small)  {o} = Compress <axis = 1> ({i}, {o}b)",
    "the first few": "{o}a = ReduceMax <keepdims = 0> ({i})  {o}b = Cast <to = 7> ({o}a)  {o}c = Unsqueeze ({o}b, zero)  {o} = Slice ({i}, zero, {o}c, one)",
    "memory": "{o}a = Transpose <perm = [1, 0, 2]> ({i})  {o}b, {o}c = GRU <hidden_size = 4> ({o}a, v, u)  {o} = Transpose <perm = [1, 0, 2]> ({o}c)",
}
"""Parts of graphs, which make a tensor `o`, `(n, steps, 4)`, of another one, `i`."""


def written(folder: Path, text: str) -> Path:
    """Write a model; return its path."""
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), path)
    return path


@contextmanager
def opened(folder: Path, text: str, threads: int) -> Iterator[Session]:
    """Open a graph on OpenVINO."""
    host = Target.host().with_threads(1)
    artifact = OpenVino().build(load(written(folder, text)), host, folder)
    with OpenVino(threads=threads).open(artifact, host) as session:
        yield session


def drawn(rng: np.random.Generator) -> str:
    """Return a graph of some steps, with an output after each one, or after the last one."""
    names = ["x"]
    lines = []
    for number, step in enumerate(rng.choice(list(_STEPS), rng.integers(1, 5))):
        names.append(f"t{number}")
        lines.append(_STEPS[str(step)].format(i=names[-2], o=names[-1]))
    outputs = names[1:] if rng.random() < 0.3 else names[-1:]
    typed = ", ".join(f"float[N{name}, T{name}, 4] {name}" for name in outputs)
    return f"g (float[N, T, 4] x, float[M, S, 4] z) => ({typed}) <{_CONSTANTS}> {{ {'  '.join(lines)} }}"


def request(rng: np.random.Generator) -> dict[str, npt.NDArray[np.float32]]:
    """Return a request of small shapes, which fit together more often than not, and are empty now and then."""
    rows, steps = int(rng.choice([0, 1, 1, 2, 3])), int(rng.choice([0, 1, 1, 2, 3, 4, 5]))
    other = (rows if rng.random() < 0.8 else 2, steps if rng.random() < 0.5 else 1)
    shapes = {"x": (rows, steps, 4), "z": (*other, 4)}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def same(found: dict[str, npt.NDArray[Any]], expected: list[Any]) -> bool:
    """Whether answers are equal but for rounding."""
    return all(
        one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
        for one, other in zip(found.values(), expected, strict=True)
    )


def truthful(path: Path) -> Callable[[dict[str, Any]], Any]:
    """Return ONNX Runtime's answers of a model; of one with a GRU, which ends the process at empty sequences, onnx's."""
    import onnx.reference
    import onnxruntime

    if any(node.op_type == "GRU" for node in onnx.load(path).graph.node):
        return partial(onnx.reference.ReferenceEvaluator(str(path)).run, None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None)


def check(folder: Path, text: str, seed: int) -> tuple[int, int]:
    """Ask a graph for answers on one thread and on two; return how many it gave and how many requests it refused."""
    rng, host = np.random.default_rng(seed), Target.host().with_threads(1)
    path = written(folder, text)
    truth = truthful(path)
    artifact = OpenVino().build(load(path), host, folder)
    given = refused = 0
    kinds = [request(rng) for _ in range(8)]
    with (
        OpenVino(threads=1).open(artifact, host) as one,
        OpenVino(threads=2).open(artifact, host) as two,
    ):
        for number in range(30):
            kind = kinds[rng.integers(len(kinds))]
            inputs = {
                name: rng.standard_normal(a.shape).astype(a.dtype) for name, a in kind.items()
            }
            try:
                expected = truth(inputs)
            except Exception:
                expected = None
            for session in (one, two):
                try:
                    found = session.run(inputs)
                except BeyondRange:
                    refused += 1
                    continue
                given += 1
                shapes = {name: a.shape for name, a in inputs.items()}
                if (
                    expected is None
                ):  # as for a window longer than its input, of which OpenVINO makes none
                    with OpenVino(threads=1).open(artifact, host) as fresh:
                        expected = [*fresh.run(inputs).values()]
                assert same(found, expected), (text, shapes, number, found, expected)
    return given, refused


@pytest.mark.seconds
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_give_the_right_answer_or_none(tmp_path: Path, seed: int) -> None:
    given, refused = check(tmp_path, drawn(np.random.default_rng(seed)), seed)
    assert given + refused == 60


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("o, y = GRU <hidden_size = 4> (s, v, u)", "RNNSeq"),
        (
            "t = Transpose <perm = [1, 2, 0]> (s)  y = Conv <pads = [2, 2]> (t, kernel)",
            "Convolution",
        ),
        ("y = ArgMax <axis = 0, keepdims = 0> (s)", "TopK"),
        ("y = ReduceMax <axes = [0]> (s)", "Reduce"),
    ],
)
def test_numbers_made_of_an_empty_tensor_inside_are_never_the_last_answers(
    tmp_path: Path, text: str, kind: str, threads: int
) -> None:
    made = "int64[N, 4]" if kind == "TopK" else "float[A, B, C]"
    whole = f"g (float[T, N, 4] x) => ({made} y) <{_CONSTANTS}> {{ s = Slice (x, one, many, zero)  {text} }}"
    with opened(tmp_path, whole, threads) as session:
        for rows in (1, 2):
            x = np.arange(12 * rows, dtype=np.float32).reshape(3, rows, 4)
            expected = session.run({"x": x})["y"]
            for _ in range(2):
                with pytest.raises(BeyondRange) as error:
                    session.run({"x": x[:1]})
                assert re.fullmatch(
                    "OpenVINO may answer with the last request's numbers where an operation gets an empty tensor, as "
                    rf"{kind} \(node '\w+'\) does for inputs of the shapes 'x': \[1, {rows}, 4\]: give longer inputs, or "
                    "use another engine",
                    str(error.value),
                )
                assert np.array_equal(session.run({"x": x})["y"], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_that_may_fail_never_gives_the_last_answers_for_an_empty_tensor(
    tmp_path: Path, threads: int
) -> None:
    text = f"""g (float[T, N, 4] x, float[1, 4] e, int64[1, 4] i) => (float[A, N, 4] y) <{_CONSTANTS}> {{
        s = Slice (x, one, many, zero)  t = Transpose <perm = [1, 2, 0]> (s)  c = Conv <pads = [2, 2]> (t, kernel)
        a = Transpose <perm = [2, 0, 1]> (c)  b = GatherElements <axis = 0> (e, i)  y = Add (a, b) }}"""
    x, e, i = (
        np.ones((3, 2, 4), np.float32),
        np.ones((1, 4), np.float32),
        np.zeros((1, 4), np.int64),
    )
    with opened(tmp_path, text, threads) as session:
        expected = session.run({"x": x, "e": e, "i": i})["y"]
        for _ in range(2):
            with pytest.raises(BeyondRange, match="as Convolution"):
                session.run({"x": x[:1], "e": e, "i": i})
            assert np.array_equal(session.run({"x": x, "e": e, "i": i})["y"], expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = Concat <axis = 0> (s, x)", lambda x: np.concatenate([x[1:], x])),
        ("y = Pad (s, around)", lambda x: np.pad(x[1:], ((1, 1), (0, 0), (0, 0)))),
        ("r = Neg (s)  y = Concat <axis = 0> (x, r)", lambda x: np.concatenate([x, -x[1:]])),
    ],
)
def test_an_empty_tensor_inside_is_taken_where_openvino_computes_with_it(
    tmp_path: Path, text: str, expected: Callable[[Any], Any], threads: int
) -> None:
    whole = f"""g (float[T, N, 4] x) => (float[A, N, 4] y) <{_CONSTANTS}, int64[6] around = {{1, 0, 0, 1, 0, 0}}> {{
        s = Slice (x, one, many, zero)  {text} }}"""
    rng = np.random.default_rng(0)
    with opened(tmp_path, whole, threads) as session:
        for steps in (3, 1, 2, 1):
            x = rng.random((steps, 2, 4), np.float32)
            assert np.array_equal(session.run({"x": x})["y"], expected(x))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_shape_that_a_request_names_never_gets_the_last_answer(
    tmp_path: Path, threads: int
) -> None:
    text = """g (float[4] x, int64[2] s) => (float[1] y) <int64[1] all = {1}> {
        r = Reshape (x, s)  q = ReduceSum <keepdims = 1> (r)  o = Reshape (q, all)  y = Neg (o) }"""
    x = np.arange(4, dtype=np.float32)
    with opened(tmp_path, text, threads) as session:
        for number in range(3):
            shape = [(2, 2), (4, 1), (1, 4)][number]
            assert session.run({"x": x + number, "s": np.array(shape)})["y"] == -6 - 4 * number
            for _ in range(2):
                with pytest.raises(BeyondRange, match="conflicts with the reshape pattern"):
                    session.run({"x": x, "s": np.array([3, 2])})


@pytest.mark.parametrize("threads", [1, 2])
def test_shapes_that_do_not_fit_are_refused_each_time(tmp_path: Path, threads: int) -> None:
    text = "g (float[N, 4] x, float[M, 4] z) => (float[K, 4] y) { y = Add (x, z) }"
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    with opened(tmp_path, text, threads) as session:
        for rows, other in ((2, 2), (3, 1), (4, 4), (2, 2), (3, 1)):
            for _ in range(2):
                found = session.run({"x": x[:rows], "z": x[:other]})["y"]
                assert np.array_equal(found, x[:rows] + x[:other])
            with pytest.raises(BeyondRange, match=r"can't answer this request: Add \(node 'y'\)"):
                session.run({"x": x[:rows], "z": x[: rows + 1 if rows > 1 else 3]})


@pytest.mark.parametrize(
    ("text", "fails", "empties"),
    [
        ("y = MatMul (x, w)", False, False),
        ("a = Reshape (x, halves)  b = Neg (a)  y = Reshape (b, wholes)", False, False),
        ("y = Slice (x, one, many, one)", False, True),
        ("y = Slice (x, zero, two, two)", False, True),
        ("y = Slice (x, i, many, one)", True, True),
        ("c = Abs (i)  y = Slice (x, zero, c, one)", True, True),
        (
            "b = Cast <to = 7> (x)  c = ReduceMax <keepdims = 0> (b)  d = Unsqueeze (c, zero)  y = Slice (x, d, many, one)",
            True,
            True,
        ),
        ("s = Shape (x)  r = Reshape (x, minus)  y = Reshape (r, s)", False, False),
        ("a = NonZero (x)  b = Cast <to = 1> (a)  c = ReduceSum (b)  y = Add (x, c)", True, True),
        ("c = Gather <axis = 1> (x, i)  y = Relu (c)", False, False),
        (
            "t = Transpose <perm = [0, 2, 1]> (x)  c = Conv (t, kernel)  y = Transpose <perm = [0, 2, 1]> (c)",
            False,
            True,
        ),
    ],
)
def test_risks_of_a_graph_follow_from_what_reads_its_numbers(
    tmp_path: Path, text: str, fails: bool, empties: bool
) -> None:
    whole = f"g (float[N, T, 4] x, int64[1] i) => (float[A, B, C] y) <{_CONSTANTS}> {{ {text} }}"
    path = written(tmp_path, whole)
    artifact = converted(load(path), tmp_path)
    assert risks_of(artifact.path)[:2] == (fails, empties)


_TRANSPOSED = "y = ConvTranspose <strides = [2], output_shape = [7]> (x, k)"
_MEAN = "y = AveragePool <kernel_shape = [3], strides = [2], ceil_mode = 1, pads = [1, 1], count_include_pad = {}> (x)"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (_TRANSPOSED, r"OpenVINO doesn't pad ConvolutionBackpropData \(node 'y'\)"),
        (_MEAN.format(1), r"OpenVINO counts padding in AvgPool \(node 'y'\)"),
        (_MEAN.format(0), None),
        ("y = ConvTranspose <strides = [2], pads = [1, 1]> (x, k)", None),
    ],
)
def test_windows_that_would_lie_elsewhere_at_some_lengths_are_refused(
    tmp_path: Path, text: str, refused: str | None
) -> None:
    whole = (
        f"g (float[N, 1, T] x) => (float[N, 1, S] y) <float[1, 1, 3] k = {{1, 2, 3}}> {{ {text} }}"
    )
    if refused is not None:
        with pytest.raises(NotCovered, match=refused):
            converted(load(written(tmp_path, whole)), tmp_path)
        return
    answers = truthful(written(tmp_path, whole))
    with opened(tmp_path, whole, 1) as session:
        for steps in (4, 3, 5, 6):
            x = np.arange(steps, dtype=np.float32).reshape(1, 1, steps)
            assert same(session.run({"x": x}), answers({"x": x}))


def test_windows_over_a_settled_length_are_where_the_model_says(tmp_path: Path) -> None:
    whole = f"g (float[1, 1, 4] x) => (float[1, 1, 7] y) <float[1, 1, 3] k = {{1, 2, 3}}> {{ {_TRANSPOSED} }}"
    x = {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 4)}
    answers = truthful(written(tmp_path, whole))
    with opened(tmp_path, whole, 1) as session:
        assert same(session.run(x), answers(x))


def test_a_window_over_a_settled_image_makes_nothing_empty(tmp_path: Path) -> None:
    kernel = f"float[2, 1, 3, 3] k = {{{', '.join(['1'] * 18)}}}"
    text = f"g (float[N, 1, 8, 8] x) => (float[N, 2, 3, 3] y) <{kernel}> {{ c = Conv (x, k)  y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c) }}"
    artifact = converted(load(written(tmp_path, text)), tmp_path)
    assert risks_of(artifact.path) == Risks(fails=False, empties=False)


def test_a_graph_of_unknown_operations_or_of_another_hand_may_fail(tmp_path: Path) -> None:
    text = f"g (float[N, 4, 4] x) => (float[N, 4, 4] y) <{_CONSTANTS}> {{ y = MatMul (x, w) }}"
    path = converted(load(written(tmp_path, text)), tmp_path).path
    content = path.read_text()
    for old, new in (
        ('type="MatMul" version="opset1"', 'type="MatMul" version="extension"'),
        ('type="MatMul"', 'type="Mystery"'),
        ('type="MatMul"', 'type="ReadValue"'),
        ("<layer id", "<layer  id"),
        ("<edge from-layer", "<edge  from-layer"),
    ):
        assert old in content
        path.write_text(content.replace(old, new))
        assert risks_of(path).fails
