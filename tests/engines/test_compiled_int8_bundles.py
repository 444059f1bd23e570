"""Bundles of models of bytes: open batches, NaN, shared weights, and plans that were tampered with."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.bundles import built, forge, stated
from tests.support.quantized import quantized, ran

from hasten.bundle import artifact_of, load, read, write
from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.engines.base import Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC, CompiledSession
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.kept import shared_tables
from hasten.errors import HastenError, IntegrityError

_TEXT = """
    <ir_version: 8, opset_import: ["": 17]>
    gated (float[1, 6, 9, 7] x) => (float[1, 4, 9, 7] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        h = HardSwish (c)
        p = GlobalAveragePool (h)
        s = Sigmoid (p)
        m = Mul (h, s)
        a = Add (m, x)
        y = Conv (a, v)
    }"""
_SHAPES = {"w": (6, 6, 3, 3), "b": (6,), "v": (4, 6, 1, 1)}


def _open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    for one in (model.graph.input[0], model.graph.output[0]):
        one.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes that takes any batch."""
    made = _open_batch(quantized(_TEXT, _SHAPES))
    path = tmp_path_factory.mktemp("gated") / "gated.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled")
    part = built(folder, model, CompiledC())
    write(folder / "gated.hasten", stated(part, part), {})
    return folder / "gated.hasten"


@pytest.mark.filterwarnings("ignore:not certified here")
def test_a_bundle_of_bytes_answers_any_batch_with_the_answers_of_single_rows(
    bundle: Path, model: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((5, 6, 9, 7)).astype(np.float32)
    x[1, 0, :2], x[2, 1], x[3, 2] = np.inf, -np.inf, 1e-42
    wanted = ran(onnx.load(model), {"x": x})["y"]
    with load(bundle, cache=tmp_path) as opened:
        answers = opened(x)["y"]
        for row, answer in zip(x, answers, strict=True):
            assert opened(row[None])["y"].tobytes() == answer.tobytes()
    assert np.abs(answers - wanted).max() < 0.03 * np.ptp(wanted)


def test_no_row_gives_no_answer(model: Path, tmp_path: Path) -> None:
    part = built(tmp_path, model, CompiledC())
    with CompiledC().open(part.artifact, Target.host()) as session:
        assert session.run({"x": np.zeros((0, 6, 9, 7), np.float32)})["y"].shape == (0, 4, 9, 7)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_with_nan_gets_nan_and_no_other_row_does(
    threads: int, model: Path, tmp_path: Path
) -> None:
    engine = CompiledC(threads=threads)
    part = built(tmp_path, model, CompiledC())
    x = np.random.default_rng(2).standard_normal((5, 6, 9, 7)).astype(np.float32)
    unknown = x.copy()
    unknown[1, 5, 8, 6], unknown[3] = np.nan, -np.nan
    out = np.zeros((5, 4, 9, 7), np.float32)
    with engine.open(part.artifact, Target.host()) as session:
        wanted = session.run({"x": x})["y"]
        found = session.run({"x": unknown})["y"]
        session.bind({"x": unknown}, {"y": out})()
    with Integers().open(part.artifact, Target.host()) as session:
        slow = session.run({"x": unknown})["y"]
    wanted[[1, 3]] = np.nan
    for answers in (found, out, slow):
        np.testing.assert_array_equal(answers, wanted)


def test_nan_behind_steps_before_the_rounding_is_seen_and_whole_numbers_stay(
    tmp_path: Path,
) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        behind (float[1, 5, 4, 6] x) => (int64[1, 1] place, float[1, 3] y)
        <float two = {2}, float zero = {0}> {
            m = Sub (x, two)
            t = Transpose <perm = [0, 3, 1, 2]> (m)
            p = GlobalAveragePool (t)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w)
            place = ArgMax <axis = 1> (y)
        }"""
    onnx.save(quantized(text, {"w": (3, 6)}, floats=["x"]), tmp_path / "behind.onnx")
    part = built(tmp_path, tmp_path / "behind.onnx", CompiledC())
    x = np.zeros((1, 5, 4, 6), np.float32)
    x[0, 4, 3, 5] = np.nan
    for engine in (CompiledC(), Integers()):
        with engine.open(part.artifact, Target.host()) as session:
            found = session.run({"x": x})
        assert np.isnan(found["y"]).all()
        assert 0 <= found["place"].item() < 3


@pytest.mark.parametrize(
    "masked",
    [
        "m = Equal (x, x)  k = Where (m, x, zero)",
        "m = IsNaN (x)  k = Where (m, zero, x)",
        "m = IsNaN (x)  n = Not (m)  k = Where (n, x, zero)",
    ],
)
def test_nan_that_the_model_itself_replaces_is_no_nan(masked: str, tmp_path: Path) -> None:
    text = f"""
        <ir_version: 8, opset_import: ["": 17]>
        masks (float[1, 4] x, float[1, 4] b) => (bool[1, 4] m, float[1, 4] y, float[1, 4] yb)
        <float zero = {{0}}, float step = {{0.25}}, uint8 point = {{10}}> {{
            {masked}
            q = QuantizeLinear (k, step, point)
            y = DequantizeLinear (q, step, point)
            qb = QuantizeLinear (b, step, point)
            yb = DequantizeLinear (qb, step, point)
        }}"""
    path = tmp_path / "masks.onnx"
    onnx.save(onnx.parser.parse_model(text), str(path))
    given = {
        "x": np.array([[1, 2, np.nan, 4]], np.float32),
        "b": np.array([[1, 2, 3, 4]], np.float32),
    }
    part = built(tmp_path, path, CompiledC())
    for engine in (CompiledC(), Integers()):
        with engine.open(part.artifact, Target.host()) as session:
            found = session.run(given)
            spoiled = session.run({"x": given["b"], "b": given["x"]})
        assert found["y"].tolist() == [[1, 2, 0, 4]]
        assert found["yb"].tolist() == [[1, 2, 3, 4]]
        assert spoiled["y"].tolist() == [[1, 2, 3, 4]]
        assert np.isnan(spoiled["yb"]).all()


def test_nan_in_columns_that_are_replaced_or_left_out_spoils_no_others(tmp_path: Path) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        parts (float[1, 4] x) => (float[1, 4] y, float[1, 2] first)
        <float zero = {0}, float step = {0.25}, uint8 point = {10},
         int64[2] halves = {2, 2}, int64[1] axis = {1}> {
            k, rest = Split <axis = 1> (x, halves)
            missing = IsNaN (rest)
            filled = Where (missing, zero, rest)
            whole = Concat <axis = 1> (k, filled)
            q = QuantizeLinear (whole, step, point)
            y = DequantizeLinear (q, step, point)
            qf = QuantizeLinear (k, step, point)
            first = DequantizeLinear (qf, step, point)
        }"""
    path = tmp_path / "parts.onnx"
    onnx.save(onnx.parser.parse_model(text), str(path))
    part = built(tmp_path, path, CompiledC())
    x = np.array([[1, 2, np.nan, 3]], np.float32)
    for engine in (CompiledC(), Integers()):
        with engine.open(part.artifact, Target.host()) as session:
            found = session.run({"x": x})
        assert found["y"].tolist() == [[1, 2, 0, 3]]
        assert found["first"].tolist() == [[1, 2]]


def test_sessions_read_one_table_of_weights_each_with_memory_of_its_own(
    model: Path, tmp_path: Path
) -> None:
    part, host = built(tmp_path, model, CompiledC()), Target.host()
    cache = CompileCache(CacheFolder(tmp_path / "cache"))
    engine, rng = CompiledC(), np.random.default_rng(4)
    xs = [rng.standard_normal((1, 6, 9, 7)).astype(np.float32) for _ in range(2)]
    with ExitStack() as opened:
        one, two, other = (
            opened.enter_context(engine.open_cached(part.artifact, host, cache)) for _ in range(3)
        )
        tables = {_address(session) for session in (one, two, other)}
        assert len(tables) == 1
        wanted = [one.run({"x": x})["y"].tobytes() for x in xs]
        answers: list[set[bytes]] = [set(), set()]

        def asking(session: Session, at: int) -> None:
            answers[at].update(session.run({"x": xs[at]})["y"].tobytes() for _ in range(300))

        threads = [threading.Thread(target=asking, args=each) for each in ((two, 0), (other, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [{wanted[0]}, {wanted[1]}]


def _address(session: Session) -> int:
    assert isinstance(session, CompiledSession)
    return session._tables.ctypes.data


def test_what_was_kept_of_another_model_is_never_opened_in_a_bundles_place(
    bundle: Path, tmp_path: Path
) -> None:
    """Whoever changes a bundle's files may know another model that was opened here."""
    other = tmp_path / "other.onnx"
    onnx.save(_open_batch(quantized(_TEXT, _SHAPES, seed=1)), other)
    part = built(tmp_path, other, CompiledC())
    write(tmp_path / "other.hasten", stated(part, part), {})
    request = {"x": np.random.default_rng(4).standard_normal((1, 6, 9, 7)).astype(np.float32)}
    target, folder = Target.host(), CacheFolder(tmp_path / "cache")
    answers = []
    for place in (bundle, tmp_path / "other.hasten"):
        manifest = read(place)
        artifact = artifact_of(place, manifest.winner, manifest, ())
        with CompiledC().open_cached(artifact, target, CompileCache(folder)) as session:
            answers.append(session.run(request)["y"])
    assert not np.array_equal(answers[0], answers[1])
    for file in (artifact.path, *artifact.files):
        file.write_bytes((bundle / file.relative_to(tmp_path / "other.hasten")).read_bytes())
    with CompiledC().open_cached(artifact, target, CompileCache(folder)) as session:
        np.testing.assert_array_equal(session.run(request)["y"], answers[1])
    with (
        pytest.raises(IntegrityError, match="was changed after it was written"),
        CompiledC().open_cached(artifact, target, CompileCache(CacheFolder(tmp_path / "empty"))),
    ):
        pass


def test_tables_are_shared_only_while_they_are_equal_and_read() -> None:
    first, same, other = (np.full(256, number, np.uint8) for number in (1, 1, 2))
    assert shared_tables("a model", first) is first
    assert shared_tables("a model", same) is first
    assert shared_tables("another", same) is same
    assert shared_tables("a model", other) is other
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 3
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def _first(record: Any, kind: str) -> Any:
    return next(one for one in record["plan"]["operations"] if one["type"] == kind)


_DAMAGES: dict[str, Callable[[Any], object]] = {
    "kernel": lambda record: _first(record, "conv8").update(kernel=[9, 3]),
    "zero": lambda record: _first(record, "conv8").update(zero=256),
    "groups": lambda record: _first(record, "conv8").update(groups=0),
    "rounding": lambda record: _first(record, "conv8")["rounding"].update(low=-1),
    "no rounding": lambda record: _first(record, "conv8").update(rounding=None),
    "weights": lambda record: _first(record, "conv8").update(weight="t0"),
    "step": lambda record: _first(record, "quantize").update(step=1e300),
    "steps": lambda record: _first(record, "quantize").update(step="1"),
    "factors": lambda record: _first(record, "add8")["sum"].update(factors=[40000, 1]),
    "shift": lambda record: _first(record, "add8")["sum"].update(shift=31),
    "gate": lambda record: _first(record, "gate8").update(channels=9),
    "gate's factor": lambda record: _first(record, "gate8")["product"].update(factor=1 << 30),
    "gate's shift": lambda record: _first(record, "gate8")["product"].update(shift=8),
    "window": lambda record: _first(record, "pool8").update(pads=[9, 0, 0, 0]),
    "pixels": lambda record: _first(record, "dequantize").update(pixels=2**40),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_plan_of_bytes_that_was_tampered_with_is_one_line(
    damage: str, bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.hasten"
    copy.mkdir()
    for file in bundle.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(bundle)).write_bytes(file.read_bytes())
    for path in copy.rglob("plan.json"):
        record = json.loads(path.read_bytes())
        _DAMAGES[damage](record)
        forge(copy, files={str(path.relative_to(copy)): json.dumps(record).encode()})
    with pytest.raises(HastenError, match="can't open the model") as caught:
        with load(copy, cache=tmp_path):
            pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
