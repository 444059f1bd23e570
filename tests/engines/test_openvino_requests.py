"""Requests at which OpenVINO's plugin fails, or would answer otherwise than the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import BeyondRange, NotCovered
from hasten.inputs.models.onnx import load

_WEIGHTS = f"""float[1, 6, 2] w = {{{", ".join(["0.5"] * 12)}}}, float[1, 6, 2] r = {{{", ".join(["0.5"] * 12)}}}"""


@pytest.fixture
def host() -> Target:
    """This host with one thread."""
    return Target.host().with_threads(1)


def written(folder: Path, text: str) -> Path:
    """Write a model; return its path."""
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}'), path)
    return path


def built(folder: Path, target: Target, text: str, **sample: npt.NDArray[Any]) -> Artifact:
    """Build a model for OpenVINO, settled by a sample if there is one."""
    model = load(written(folder, text))
    return OpenVino().build(model.settled_by(sample) if sample else model, target, folder)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_request_that_openvino_fails_at_never_gets_the_last_ones_answer(
    host: Target, tmp_path: Path, threads: int, rows: int
) -> None:
    text = "g (float[N, 4] x, int64[N, 3] i) => (float[N, 3] y) { [pick] y = GatherElements <axis = 1> (x, i) }"
    x, i = np.array([[5, 6, 7, 8]] * rows, np.float32), np.array([[0, -1, 2]] * rows)
    artifact = built(tmp_path, host, text, x=x[0], i=i[0])
    with OpenVino(threads=threads).open(artifact, host) as session:
        for _ in range(2):
            assert session.run({"x": x, "i": i})["y"].tolist() == [[5, 8, 7]] * rows
            with pytest.raises(BeyondRange) as error:
                session.run({"x": x, "i": i + 2})
            assert str(error.value) == (
                "OpenVINO can't answer this request: GatherElements (node 'y'): indices values of GatherElement exceed "
                "data size"
            )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_from_the_cache_fails_as_a_compiled_one(
    host: Target, tmp_path: Path, threads: int
) -> None:
    text = "g (float[N, 4] x, int64[N, 3] i) => (float[N, 3] y) { [pick] y = GatherElements <axis = 1> (x, i) }"
    x, i = np.array([[5, 6, 7, 8]], np.float32), np.array([[0, -1, 2]])
    artifact = built(tmp_path, host, text, x=x[0], i=i[0])
    for _ in range(2):
        cache = CompileCache(CacheFolder(tmp_path / "cache", 1 << 30))
        with OpenVino(threads=threads).open_cached(artifact, host, cache) as session:
            assert session.properties()["threads"] == str(threads)
            assert session.run({"x": x, "i": i})["y"].tolist() == [[5, 8, 7]]
            with pytest.raises(BeyondRange):
                session.run({"x": x, "i": i + 2})
    assert (cache.found, cache.kept) == (1, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("settled", [True, False])
def test_an_empty_batch_is_refused_and_spoils_no_later_request(
    host: Target, tmp_path: Path, settled: bool, threads: int
) -> None:
    text = """g (float[N, 1, 4, 4] x) => (float[N, 1, 2, 2] y) {
        p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)  y = Neg (p) }"""
    sample = {"x": np.ones((1, 4, 4), np.float32)} if settled else {}
    artifact = built(tmp_path, host, text, **sample)
    with OpenVino(threads=threads).open(artifact, host) as session:
        for rows in (2, 1, 3):
            x = np.random.default_rng(rows).random((rows, 1, 4, 4), np.float32)
            (found,) = session.run({"x": x}).values()
            corner = x[:, 0, :3, :3].max((1, 2))
            assert found.shape == (rows, 1, 2, 2)
            assert (found[:, 0, 0, 0] == -corner).all()
            with pytest.raises(
                BeyondRange, match=r"this request: MaxPool \(node '.*'\): Batch size is zero"
            ):
                session.run({"x": x[:0]})


def test_an_empty_batch_that_openvino_answers_is_empty(host: Target, tmp_path: Path) -> None:
    text = "g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }"
    x = np.ones((2, 3), np.float32)
    artifact = built(tmp_path, host, text, x=x[0])
    with OpenVino().open(artifact, host) as session:
        for rows in (1, 0, 2, 0):
            assert session.run({"x": x[:rows]})["y"].tolist() == (-x[:rows]).tolist()


@pytest.mark.parametrize(
    "inputs", ["float[T, N, 2] x, int32[N] n", "float[T, N, 2] x", "float[4, N, 2] x"]
)
def test_sequences_that_end_early_are_refused(host: Target, tmp_path: Path, inputs: str) -> None:
    lengths = "" if " n" in inputs else ", int32[1] n = {3}"
    whole = f"""g ({inputs}) => (float[T, 1, N, 2] y, float[1, N, 2] h) <{_WEIGHTS}{lengths}> {{
        y, h = GRU <hidden_size = 2> (x, w, r, , n) }}"""
    with pytest.raises(NotCovered, match="doesn't end sequences where their lengths say, as those"):
        built(tmp_path, host, whole)


def test_sequences_that_go_to_their_end_are_taken(host: Target, tmp_path: Path) -> None:
    x = np.ones((4, 1, 2), np.float32)
    for number, lengths in enumerate(("", ", n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        steps = "4" if lengths else "T"
        text = f"""g (float[{steps}, N, 2] x) => (float[{steps}, 1, N, 2] y) <{_WEIGHTS}, int32[1] n = {{4}}> {{
            y = GRU <hidden_size = 2> (x, w, r, {lengths}) }}"""
        artifact = built(folder, host, text)
        with OpenVino().open(artifact, host) as session:
            assert session.run({"x": x})["y"].shape == (4, 1, 1, 2)


def test_a_range_that_a_request_names_is_refused(host: Target, tmp_path: Path) -> None:
    text = "g (int64 a, int64 b, int64 c) => (int64[n] y) { [r] y = Range (a, b, c) }"
    with pytest.raises(
        NotCovered, match="doesn't check the ends and the step that a request names"
    ):
        built(tmp_path, host, text)


def looped(steps: str, count: str) -> str:
    return f"""g (float[N, 3] x{steps}) => (float[M, 3] y) <bool yes = {{1}}, int64 first = {{0}}> {{
        sizes = Shape (x)  rows = Gather (sizes, first)
        y = Loop ({count}, yes) <body = b (int64 i, bool on) => (bool again, float[3] row) {{
            again = Identity (on)  one = Gather (x, i)  row = Neg (one) }}> }}"""


def test_a_loop_without_steps_never_gives_the_last_answer(host: Target, tmp_path: Path) -> None:
    artifact = built(tmp_path, host, looped("", "rows"))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with OpenVino().open(artifact, host) as session:
        for _ in range(2):
            assert session.run({"x": x})["y"].tolist() == (-x).tolist()
            with pytest.raises(BeyondRange) as error:
                session.run({"x": x[:0]})
            assert str(error.value) == (
                "the input 'x' has the shape [0, 3], and OpenVINO may answer it with the last request's numbers: give at "
                "least one number along each axis"
            )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("text", "empty"),
    [
        (
            f"(float[T, N, 2] x) => (float[1, N, 2] y) <{_WEIGHTS}> {{ o, y = GRU <hidden_size = 2> (x, w, r) }}",
            0,
        ),
        (
            "(float[2, 1, T] x) => (float[2, 1, U] y) <float[1, 1, 3] w = {1, 2, 3}> { y = Conv <pads = [2, 2]> (x, w) }",
            2,
        ),
        ("(float[N, 1, T] x) => (int64[N, 1] y) { y = ArgMax <axis = 2, keepdims = 0> (x) }", 2),
    ],
)
def test_numbers_made_of_an_empty_input_are_never_the_last_answers(
    host: Target, tmp_path: Path, text: str, empty: int, threads: int
) -> None:
    artifact = built(tmp_path, host, f"g {text}")
    sizes = [size if isinstance(size, int) else 2 for size in artifact.inputs[0].shape]
    x = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    with OpenVino(threads=threads).open(artifact, host) as session:
        for _ in range(2):
            assert session.run({"x": x})["y"].size
            with pytest.raises(BeyondRange, match="may answer it with the last request's numbers"):
                session.run({"x": x.take([], empty)})


def test_an_empty_batch_of_a_recurrent_network_is_empty(host: Target, tmp_path: Path) -> None:
    text = f"""g (float[T, N, 2] x) => (float[T, 1, N, 2] y, float[1, N, 2] h) <{_WEIGHTS}> {{
        y, h = GRU <hidden_size = 2> (x, w, r) }}"""
    artifact = built(tmp_path, host, text)
    with OpenVino().open(artifact, host) as session:
        for rows in (2, 0, 1):
            found = session.run({"x": np.ones((4, rows, 2), np.float32)})
            assert (found["y"].shape, found["h"].shape) == ((4, 1, rows, 2), (1, rows, 2))


def test_a_loop_whose_steps_a_request_names_is_refused(host: Target, tmp_path: Path) -> None:
    with pytest.raises(NotCovered, match="last request's numbers where a loop has no steps, as"):
        built(tmp_path, host, looped(", int64 n", "n"))


def test_ir_of_a_pass_is_checked_as_a_model_is(host: Target, tmp_path: Path) -> None:
    import openvino

    text = """g (float[N, 6, 4] x, int64[N, 1] i) => (float[N, 4] y) {
        y = GatherND <batch_dims = 1> (x, i) }"""
    path = written(tmp_path, text)
    openvino.save_model(openvino.convert_model([[path]]), tmp_path / "ir.xml")
    source = load(path)
    model = Model(
        tmp_path / "ir.xml", "openvino", source.inputs, source.outputs, files=(tmp_path / "ir.bin",)
    )
    (tmp_path / "built").mkdir()
    with pytest.raises(NotCovered, match="doesn't check the places that a request names"):
        OpenVino().build(model, host, tmp_path / "built")


_SELF = "same = Equal (x, x)  y0 = Where (same, x, zero)"
_OTHER = "known = Equal (x, x)  lost = Not (known)  y0 = Where (lost, zero, x)"


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        (f"{_SELF}  y = Relu (y0)", True),
        (f"{_OTHER}  y = Relu (y0)", True),
        ("h = Add (x, x)  lost = IsNaN (h)  y0 = Where (lost, zero, h)  y = Relu (y0)", True),
        ("h = Add (x, x)  lost = IsNaN (x)  y0 = Where (lost, zero, h)  y = Relu (y0)", True),
        (f"{_SELF}  bent = Relu (x)  y = Add (bent, y0)", False),
        ("lost = IsNaN (x)  y0 = Where (lost, x, zero)  y = Relu (y0)", False),
        ("same = Equal (x, x)  y0 = Where (same, zero, x)  y = Relu (y0)", False),
        (
            "lost = IsNaN (x)  few = And (lost, some)  y0 = Where (few, zero, x)  y = Relu (y0)",
            False,
        ),
        (
            "t = Concat <axis = 0> (x, z)  y1 = Gather (t, at)  lost = IsNaN (y1)  y0 = Where (lost, zero, x)  y = Relu (y0)",
            False,
        ),
        (
            "lost = IsNaN (x)  w = Cast <to = 7> (x)  v = Cast <to = 1> (w)  y0 = Where (lost, zero, v)  y = Relu (y0)",
            False,
        ),
        (f"{_SELF}  more = Greater (x, zero)  y = Where (more, y0, zero)", False),
        ("same = Equal (x, zero)  y = Where (same, x, zero)", False),
    ],
)
def test_nan_is_taken_where_the_graph_asks_for_it_before_anything_else(
    host: Target, tmp_path: Path, text: str, takes: bool
) -> None:
    whole = f"g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y, float[N, 3] o) <float zero = {{0}}, bool[3] some = {{1, 0, 1}}, int64[1] at = {{1}}> {{ {text}  o = Relu (z) }}"
    x, z = np.array([[1, np.nan, 3]], np.float32), np.ones((1, 3), np.float32)
    artifact = built(tmp_path, host, whole, x=x[0], z=z[0])
    with OpenVino().open(artifact, host) as session:
        if takes:
            scale = 2 if "Add" in text else 1
            assert session.run({"x": x, "z": z})["y"].tolist() == [[scale, 0, 3 * scale]]
        else:
            with pytest.raises(BeyondRange, match="NaN, and the input 'x' has one"):
                session.run({"x": x, "z": z})
        with pytest.raises(BeyondRange, match="NaN, and the input 'z' has one"):
            session.run({"x": z, "z": x})
