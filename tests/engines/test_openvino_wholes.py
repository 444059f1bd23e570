"""Whole numbers with which OpenVINO's plugins calculate in float32: requests with larger ones are refused."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import BeyondRange, NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing import models

MOST = 2**24
CALCULATIONS = {
    "Mod": "y = Mod (ids, seven)",
    "Div": "y = Div (ids, seven)",
    "Pow": "y = Pow (ids, one)",
    "Clip": "y = Clip (ids, seven)",
    "Select": "c = Greater (ids, seven)  y = Where (c, ids, seven)",
    "Less": "o = Neg (ids)  c = Less (o, ids)  y = Cast <to = 7> (c)",
    "Equal": "n = Gather <axis = 1> (ids, back)  c = Equal (n, ids)  y = Cast <to = 7> (c)",
    "ReduceMax": "y = ReduceMax (ids, axis)",
    "ReduceMin": "y = ReduceMin (ids, axis)",
    "ReduceSum": "y = ReduceSum (ids, axis)",
    "ReduceMean": "y = ReduceMean (ids, axis)",
    "MatMul": "t = Transpose (ids)  y = MatMul (t, ids)",
    "CumSum": "y = CumSum (ids, last)",
    "Mul": "y = Mul (ids, ids)",
    "Add": "y = Add (ids, large)",
    "Trilu": "y = Trilu (ids)",
    "Pad": "y = Pad (ids, edges)",
    "If": """l = ReduceMax <keepdims = 0> (ids)  c = Greater (l, seven)  y = If (c) <
        then_branch = t () => (int64[m, 2] r) { r = Mod (ids, seven) },
        else_branch = e () => (int64[m, 2] r2) { r2 = Identity (ids) }>""",
}
"""Calculations of int64, which a plugin gets wrong with some numbers that 32 bits hold."""
KEPT = {
    "Concat": "y = Concat <axis = 1> (ids, ids)",
    "Gather": "y = Gather <axis = 1> (ids, back)",
    "TopK": "y, places = TopK (ids, axis)",
    "Scatter": "y = ScatterElements <axis = 1> (ids, backs, ids)",
    "BitwiseAnd": "y = BitwiseAnd (ids, mask)",
    "BitwiseXor": "y = BitwiseXor (ids, mask)",
    "Cast": "i = Cast <to = 6> (ids)  y = Cast <to = 7> (i)",
    "Float": "f = Cast <to = 1> (ids)  y = Floor (f)",
    "Known": "c = Equal (ids, seven)  y = Cast <to = 7> (c)",
}
"""Operations with which plugins keep all 32 bits, or that are right in float32."""


@pytest.fixture
def host() -> Target:
    return replace(Target.host(), cpus=(0, 1), threads=1, isa=("avx2",))


def graph(folder: Path, body: str, dtype: str = "int64", output: str = "int64") -> Path:
    """Write a graph of rows with two whole numbers."""
    text = f"""<ir_version: 8, opset_import: ["": 18]> wholes ({dtype}[n, 2] ids) => ({output}[a, b] y)
        <{dtype} seven = {{7}}, {dtype} one = {{1}}, {dtype} mask = {{1073741823}}, {dtype} large = {{16000000}},
        int64[1] axis = {{1}}, int64 last = {{1}}, int64[2] back = {{1, 0}}, int64[2, 2] backs = {{1, 0, 1, 0}},
        int64[4] edges = {{0, 1, 0, 1}}> {{ {body} }}"""
    onnx.save(onnx.parser.parse_model(text), folder / "wholes.onnx")
    return folder / "wholes.onnx"


Opened = Callable[[Path, OpenVino | OnnxRuntime], Session]


@pytest.fixture
def opened(host: Target) -> Iterator[Opened]:
    """Give the function that opens a session of a graph, until the test ends."""
    with ExitStack() as sessions:

        def open_(path: Path, engine: OpenVino | OnnxRuntime) -> Session:
            model = load(path)
            model = model.settled_by({one.name: np.zeros(2, one.dtype) for one in model.inputs})
            folder = path.parent / type(engine).__name__
            folder.mkdir()
            return sessions.enter_context(engine.open(engine.build(model, host, folder), host))

        yield open_


def given(amount: int, dtype: str = "int64") -> Array:
    """Return rows near an amount."""
    return np.array([[amount, amount - 1], [amount - 2, amount - 3]], dtype)


@pytest.mark.parametrize("name", CALCULATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_calculated_in_float32_is_right_or_refused(
    opened: Opened, tmp_path: Path, name: str, sign: int
) -> None:
    path = graph(tmp_path, CALCULATIONS[name])
    exact = opened(path, OnnxRuntime())
    session = opened(path, OpenVino())
    answered = []
    for amount in (9, 100, 1001, 2**22 + 1, MOST - 5, MOST + 5, 2**25 + 5, 2**28 + 9, 2**31 - 1):
        ids = given(sign * amount)
        try:
            (answer,) = session.run({"ids": ids}).values()
        except BeyondRange:
            continue
        (wanted,) = exact.run({"ids": ids}).values()
        np.testing.assert_array_equal(answer, wanted)
        answered.append(amount)
    assert answered[:2] == [9, 100]
    assert answered[-1] < MOST


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_a_graph_that_may_divide_by_0_is_refused(opened: Opened, tmp_path: Path, op: str) -> None:
    why = r"OpenVINO computes \w+ \(node 'y', whose divisor may be 0\) in float32"
    with pytest.raises(NotCovered, match=why):
        opened(graph(tmp_path, f"y = {op} (seven, ids)"), OpenVino())
    other = tmp_path / "other"
    other.mkdir()
    session = opened(graph(other, f"less = Sub (ids, seven)  y = {op} (ids, less)"), OpenVino())
    session.run({"ids": np.array([[3, -3]])})
    with pytest.raises(BeyondRange, match=f"{why}, and the input 'ids' has 7: give numbers"):
        session.run({"ids": np.array([[3, 7]])})


@pytest.mark.parametrize("divisor", ["d = Max (ids, one)", "d = Size (ids)"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_a_divisor_that_is_a_size_or_never_0_is_taken(
    opened: Opened, tmp_path: Path, op: str, divisor: str
) -> None:
    path = graph(tmp_path, f"{divisor}  y = {op} (ids, d)")
    ids = np.array([[9, -4], [7, 0]])
    (answer,) = opened(path, OpenVino()).run({"ids": ids}).values()
    (wanted,) = opened(path, OnnxRuntime()).run({"ids": ids}).values()
    np.testing.assert_array_equal(answer, wanted)


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_32_bits_takes_them(opened: Opened, tmp_path: Path, name: str) -> None:
    path = graph(tmp_path, KEPT[name], output="float" if name == "Float" else "int64")
    exact = opened(path, OnnxRuntime())
    session = opened(path, OpenVino())
    for ids in (given(7), given(-100), given(MOST + 5), given(2**30 - 1), given(-(2**30) + 3)):
        (answer,) = session.run({"ids": ids}).values()
        (wanted,) = exact.run({"ids": ids}).values()
        np.testing.assert_array_equal(answer, wanted)


def test_the_message_names_the_operation_and_the_numbers_to_give(
    opened: Opened, tmp_path: Path
) -> None:
    session = opened(graph(tmp_path, "m = Mod (ids, seven)  y = Neg (m)"), OpenVino())
    (answer,) = session.run({"ids": np.array([[MOST, -MOST]])}).values()
    assert answer.tolist() == [[-(MOST % 7), -(-MOST % 7)]]
    with pytest.raises(BeyondRange) as error:
        session.run({"ids": np.array([[5, MOST + 1]])})
    assert str(error.value) == (
        "OpenVINO computes FloorMod (node 'm') in float32, and the input 'ids' has 16777217: give numbers from "
        "-16777216 to 16777216, or use another engine"
    )


@pytest.mark.parametrize("name", [*CALCULATIONS, *KEPT])
def test_a_cache_keeps_the_bounds_so_that_the_graph_is_not_read_again(
    tmp_path: Path, host: Target, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    body, output = (CALCULATIONS | KEPT)[name], "float" if name == "Float" else "int64"
    (tmp_path / "built").mkdir()
    engine = OpenVino(threads=1)
    artifact = engine.build(load(graph(tmp_path, body, output=output)), host, tmp_path / "built")
    told, read = list[str](), OpenVino._read

    def noted(self: OpenVino, artifact: Artifact) -> Any:
        told.append("read")
        return read(self, artifact)

    monkeypatch.setattr(OpenVino, "_read", noted)
    for _ in range(2):
        compiled = CompileCache(CacheFolder(tmp_path / "cache"))
        with engine.open_cached(artifact, host, compiled) as session:
            for ids in (given(7), given(MOST + 5), given(2**31)):
                try:
                    told += [str(answer.tolist()) for answer in session.run({"ids": ids}).values()]
                except BeyondRange as error:
                    told.append(str(error))
    first, second = told[: len(told) - 3], told[-3:]
    assert first == ["read", "read", *second]
    assert compiled.found == 1


@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint64", "int16"])
def test_whole_numbers_of_other_types_are_bounded_too(
    opened: Opened, tmp_path: Path, dtype: str
) -> None:
    body = "i = Cast <to = 7> (ids)  s = Mul (i, i)  y = Add (s, i)"
    session = opened(graph(tmp_path, body, dtype), OpenVino())
    (answer,) = session.run({"ids": given(2000, dtype)}).values()
    assert answer.tolist() == [[n * n + n for n in row] for row in given(2000).tolist()]
    with pytest.raises(BeyondRange, match=r"Add \(node 'y'\) in float32, and the input 'ids' has"):
        session.run({"ids": given(30_000, dtype)})


def test_a_sum_over_an_open_axis_is_bounded_by_the_requests_size(
    opened: Opened, tmp_path: Path
) -> None:
    text = "summed (int64[n, tokens] ids) => (int64[n, b] y) <int64[1] axis = {1}> { y = ReduceSum (ids, axis) }"
    session = opened(models.write(tmp_path / "summed.onnx", text, {}), OpenVino())
    (answer,) = session.run({"ids": np.full((1, 4), MOST // 4)}).values()
    assert answer.tolist() == [[MOST]]
    with pytest.raises(BeyondRange, match="from -2097152 to 2097152"):
        session.run({"ids": np.full((1, 8), MOST // 4)})
    (answer,) = session.run({"ids": np.full((1, 4), MOST // 4)}).values()
    assert answer.tolist() == [[MOST]]


def test_a_mask_that_is_summed_does_not_bound_the_tokens_beside_it(
    opened: Opened, tmp_path: Path
) -> None:
    text = """encoder (int64[n, 2] ids, int64[n, 2] mask) => (float[n, 2, 1] y, int64[n, 1] z)
        <float[5, 1] table = {0, 1, 2, 3, 4}, int64[1] axis = {1}> {
        y = Gather (table, ids)  z = ReduceSum (mask, axis) }"""
    session = opened(models.write(tmp_path / "encoder.onnx", text, {}), OpenVino())
    watched = {
        name: most for name, _, most in watched_by(session, ids=given(3)[:1], mask=given(4)[:1])
    }
    assert watched == {"ids": 2**31 - 1, "mask": 2**23}


@pytest.mark.parametrize(
    "node",
    [
        "y = MaxPool <kernel_shape = [2, 2]> (r)",
        "y = SpaceToDepth <blocksize = 2> (r)",
        "y = DepthToSpace <blocksize = 2> (r)",
    ],
)
def test_bytes_of_pictures_are_moved_as_they_are(opened: Opened, tmp_path: Path, node: str) -> None:
    text = f"""picture (uint8[n, 2] ids) => (uint8[a, b, c, d] y)
        <int64[4] shape = {{-1, 4, 6, 6}}> {{ r = Reshape (ids, shape)  {node} }}"""
    path = models.write(tmp_path / "picture.onnx", text, {})
    x = np.random.default_rng(0).integers(0, 256, (144, 2)).astype(np.uint8)
    own, other = (
        opened(path, engine).run({"ids": x})["y"] for engine in (OnnxRuntime(), OpenVino())
    )
    np.testing.assert_array_equal(own, other)


def test_what_a_branch_makes_larger_bounds_what_follows(opened: Opened, tmp_path: Path) -> None:
    body = """l = ReduceMin <keepdims = 0> (ids)  c = Greater (l, seven)  b = If (c) <
        then_branch = t () => (int64[m, 2] r) { r = Mul (ids, ids) },
        else_branch = e () => (int64[m, 2] r2) { r2 = Identity (ids) }>  y = Mul (b, ids)"""
    path = graph(tmp_path, body)
    exact, session = opened(path, OnnxRuntime()), opened(path, OpenVino())
    for amount in (11, 200):
        np.testing.assert_array_equal(
            session.run({"ids": given(amount)})["y"], exact.run({"ids": given(amount)})["y"]
        )
    with pytest.raises(BeyondRange, match=r"Multiply \(node 'y'\) in float32"):
        session.run({"ids": given(1001)})


def test_tokens_of_32_bits_are_not_looked_at(opened: Opened, tmp_path: Path) -> None:
    text = """tokens (int32[n, 2] ids) => (float[n, 2, 1] y)
        <float[5, 1] table = {0, 1, 2, 3, 4}> { y = Gather (table, ids) }"""
    session = opened(models.write(tmp_path / "tokens.onnx", text, {}), OpenVino())
    assert watched_by(session, ids=given(4, "int32")[:1]) == []


def watched_by(session: object, **inputs: Array) -> list[tuple[str, Array, int]]:
    """Answer a request, and return what the session looks at in it."""
    session.run(inputs)  # type: ignore[attr-defined]
    return session._first._ranges._watched  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "body",
    [
        "big = Constant <value_int = 1099511627776> ()  s = Add (ids, big)  y = Mod (s, seven)",
        "least = Constant <value_int = -9223372036854775808> ()  c = Less (ids, seven)  y = Where (c, least, ids)",
        "y = ReduceProd (ids, axis)",
    ],
)
def test_a_graph_whose_own_numbers_are_too_large_is_refused(
    opened: Opened, tmp_path: Path, body: str
) -> None:
    with pytest.raises(
        NotCovered,
        match=r"in float32, where its whole numbers don't fit|with 32 bits, and .* reads the constant",
    ):
        opened(graph(tmp_path, body), OpenVino())


def test_a_bound_beyond_all_numbers_is_no_reason_to_refuse(opened: Opened, tmp_path: Path) -> None:
    body = "most = Constant <value_int = 9223372036854775807> ()  y = Clip (ids, seven, most)"
    session = opened(graph(tmp_path, body), OpenVino())
    (answer,) = session.run({"ids": np.array([[3, MOST]])}).values()
    assert answer.tolist() == [[7, MOST]]


def test_a_float64_that_float32_cannot_hold_is_refused(opened: Opened, tmp_path: Path) -> None:
    text = "narrowed (double[n, 2] x) => (float[n, 2] y) { y = Cast <to = 1> (x) }"
    session = opened(models.write(tmp_path / "narrowed.onnx", text, {}), OpenVino())
    fine = np.array([[-3.0, 0.1], [3.4e38, -3.4e38]])
    (answer,) = session.run({"x": fine}).values()
    np.testing.assert_array_equal(answer, fine.astype(np.float32))
    for large in (-1e300, np.inf, -np.inf):
        with pytest.raises(BeyondRange) as error:
            session.run({"x": np.array([[1.0, large]])})
        assert str(error.value) == (
            f"OpenVINO computes float64 in float32, and the input 'x' has {large}: give numbers from -3.40282e+38 to "
            "3.40282e+38, or use another engine"
        )
