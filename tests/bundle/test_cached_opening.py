"""Bundles that are opened from what a cache kept: the same answers, and never worse than without."""

import logging
import math
import mmap
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, stated
from tests.support.cache_log import untold

from hasten.bundle import Loaded, Part, load, write
from hasten.core.cache_folder import CacheFolder
from hasten.core.memory_folder import MemoryFolder, _sealed
from hasten.core.onnx_functions import check_functions
from hasten.core.records import file_digest
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines import checked
from hasten.engines.base import Engine
from hasten.engines.cache_keys import cache_key
from hasten.engines.cascade import Cascade
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import IntegrityError
from hasten.inputs.models.onnx import load as load_onnx
from hasten.testing import models

KEEPING = (OnnxRuntime(threads=1), OpenVino(threads=1))
X = np.random.default_rng(0).standard_normal((5, 3, 8, 8), dtype=np.float32)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    untold(monkeypatch)


def bundle_of(folder: Path, engine: Engine) -> Path:
    """Write a bundle of a small CNN, which has products to lay out and branches to fuse."""
    winner = built(folder, models.small_cnn(folder), engine)
    write(folder / "cnn.hasten", stated(winner, winner), {})
    return folder / "cnn.hasten"


def answers(loaded: Loaded) -> list[Array]:
    """Answer a request as certified, and one of another batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other batch size
        shape = loaded.request[0].sizes[1:]
        rng = np.random.default_rng(0)
        x = rng.standard_normal((5, *shape), dtype=np.float32)
        return [loaded(x[:1])["logits"], loaded(x)["logits"]]


def opened(bundle: Path, cache: Path | bool | str) -> tuple[bool, list[Array]]:
    with load(bundle, cache=cache) as loaded:
        return loaded.from_cache, answers(loaded)


def assert_equal(one: list[Array], other: list[Array]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("engine", KEEPING)
def test_the_second_load_reads_the_cache_and_answers_the_same(
    engine: Engine, tmp_path: Path
) -> None:
    bundle, cache = bundle_of(tmp_path, engine), tmp_path / "cache"
    hit, expected = opened(bundle, False)
    assert not hit
    for want in (False, True, True):
        hit, got = opened(bundle, cache)
        assert hit == want
        assert_equal(got, expected)
    assert cache.stat().st_mode & 0o77 == 0


def test_an_opening_looks_through_each_file_once_and_a_second_one_through_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and places of weights are looked for in the copy that is opened; the file may change before that."""
    bundle, looked = bundle_of(tmp_path, OnnxRuntime(threads=1)), list[int]()

    def counted(data: bytes | mmap.mmap) -> None:
        looked.append(len(data))
        check_functions(data)

    monkeypatch.setattr(checked, "check_functions", counted)
    for _ in range(2):
        with load(bundle, cache=tmp_path / "cache") as loaded:
            names = loaded.manifest.winner.artifact
            assert sorted(looked) == sorted(
                (bundle / name).stat().st_size for name in (names.path, *names.files)
            )


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), CompiledC()])
def test_files_of_a_model_that_the_cache_has_are_checked_but_not_copied(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache = bundle_of(tmp_path, engine), tmp_path / "cache"
    _, expected = opened(bundle, cache)
    copied = list[str]()
    monkeypatch.setattr(MemoryFolder, "add", lambda _, name, *_more: copied.append(name))
    with load(bundle, cache=cache) as loaded:
        assert loaded.from_cache
        np.testing.assert_array_equal(answers(loaded)[0], expected[0])
        file = bundle / loaded.manifest.winner.artifact.path
    assert copied == []
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        load(bundle, cache=cache)


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1), CompiledC()])
def test_an_opening_hashes_no_file_that_it_does_not_open(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact model may be many times as large as the one that opens."""
    winner = built(tmp_path, models.small_cnn(tmp_path), engine)
    exact = built(tmp_path, models.linear_classifier(tmp_path), OnnxRuntime(threads=1))
    write(tmp_path / "b", stated(winner, exact), {"trials.json": [1]})
    bundle, hashed = tmp_path / "b", list[Path]()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(file: Path, *more: Any) -> Any:
            hashed.append(file)
            return function(file, *more)

        return noted

    monkeypatch.setattr("hasten.bundle.folder.file_digest", noting(file_digest))
    monkeypatch.setattr("hasten.core.memory_folder._sealed", noting(_sealed))
    for _ in range(2):
        hashed.clear()
        with load(bundle, cache=tmp_path / "cache") as loaded:
            names = loaded.manifest.winner.artifact
        assert set(hashed) == {bundle / name for name in (names.path, *names.files)}
    file = bundle / loaded.manifest.exact.artifact.path  # type: ignore[union-attr]
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    load(bundle, cache=False).close()
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        load(bundle, which="exact", cache=False)


_MADE = """
import sys
import hasten
with hasten.load(sys.argv[1], cache=sys.argv[2]) as loaded:
    print(loaded.from_cache)
modules = [module for name, module in sys.modules.items() if name.startswith("hasten.")]
made = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
print(*sorted(one.__name__ for one in made if "__dataclass_fields__" in vars(one)), sep=",")
print(*sorted({"hasten.engines.compiled.graph", "hasten.engines.compiled.writer"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("engine", "most"), [(OnnxRuntime(threads=1), 22), (OpenVino(threads=1), 21), (CompiledC(), 33)]
)
def test_a_second_opening_makes_few_dataclasses(engine: Engine, most: int, tmp_path: Path) -> None:
    """Each takes up to a millisecond of a start; classes that no opening needs are imported later."""
    bundle, cache = bundle_of(tmp_path, engine), tmp_path / "cache"
    opened(bundle, cache)
    command = [sys.executable, "-c", _MADE, str(bundle), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    hit, made, *writers = done.stdout.splitlines()
    assert hit == "True"
    assert len(made.split(",")) <= most, made
    assert writers == [""]  # C that the cache has isn't written again


def test_a_long_compilation_is_in_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache = bundle_of(tmp_path, CompiledC()), tmp_path / "cache"
    monkeypatch.setattr("hasten.bundle.loading._LONG_S", 0.0)
    monkeypatch.setattr("hasten.engines.compiled.engine.scratch", lambda: tmp_path / "scratch")
    for place in (False, cache, cache):
        with load(bundle, cache=place) as loaded:
            assert loaded.opened_s > 0
    said = [re.sub(r"\d+\.\d s", "N s", record.getMessage()) for record in caplog.records]
    took = f"{bundle} was opened in N s, of which compiling took N s"
    assert said == [
        took,
        f"{took}; the next opening finds what was compiled in {cache}",
    ]
    assert {(one.name, one.levelno) for one in caplog.records} == {("hasten.load", logging.WARNING)}


def test_a_short_compilation_is_not_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.bundle.loading._LONG_S", math.inf)
    with load(bundle_of(tmp_path, CompiledC()), cache=tmp_path / "cache"):
        assert not caplog.records


def test_a_cascade_took_as_long_to_compile_as_both_of_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_onnx(models.small_cnn(tmp_path))
    original = model.settled_by({"x": X[0, :, :8, :8].repeat(4, 1).repeat(4, 2)})
    (tmp_path / "made").mkdir()
    engine = Cascade(CompiledC(), OnnxRuntime(threads=1), 0.5, "logits")
    host = Target.host()
    artifact = engine.build(replace(original, origin=original), host, tmp_path / "made")
    compiled = CompileCache(CacheFolder(tmp_path / "cache"))
    with engine.open_cached(artifact, host, compiled) as session:
        assert session.compiling_s == compiled.compiling_s > 0
    with engine.open_cached(artifact, host, compiled) as session:
        assert session.compiling_s == 0


def test_an_engine_that_compiles_nothing_keeps_nothing(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, LiteRt(threads=1))
    assert [opened(bundle, tmp_path / "cache")[0] for _ in range(2)] == [False, False]
    assert not (tmp_path / "cache").exists()


def test_a_cascade_opens_both_of_its_models_from_the_cache(tmp_path: Path) -> None:
    engine = Cascade(OpenVino(threads=1), OnnxRuntime(threads=1), 1e9, "logits")
    model = load_onnx(models.linear_classifier(tmp_path)).settled_by(
        {"x": np.zeros(16, np.float32)}
    )
    (tmp_path / "built").mkdir()
    host = Target.host()
    artifact = engine.build(replace(model, origin=model), host, tmp_path / "built")
    x, found = np.ones((1, 16), np.float32), []
    with engine.open(artifact, host) as session:
        expected = session.run({"x": x})["logits"]
    for _ in range(2):
        compiled = CompileCache(CacheFolder(tmp_path / "cache"))
        with engine.open_cached(artifact, host, compiled) as session:
            np.testing.assert_array_equal(session.run({"x": x})["logits"], expected)
        found.append((compiled.found, compiled.kept))
    assert found == [(0, 2), (2, 0)]


@pytest.mark.parametrize("engine", KEEPING)
def test_other_settings_or_another_model_find_nothing(engine: Engine, tmp_path: Path) -> None:
    host = Target.host()
    winner = built(tmp_path, models.small_cnn(tmp_path), engine).artifact
    compiled = CompileCache(CacheFolder(tmp_path / "cache"))

    def key(engine: Engine = engine, target: Target = host) -> str:
        return cache_key(compiled, engine, winner, target, "x")

    same = key()
    assert key(target=replace(host, memory_bytes=1)) == same
    others = [
        key(engine.on_threads(2)),
        key(target=replace(host, isa=(*host.isa, "amx_tile"))),
        key(target=replace(host, processor="another")),
        key(target=host.with_threads(77)),
        cache_key(compiled, engine, replace(winner, request=()), host, "x"),
        cache_key(compiled, engine, winner, host, "y"),
    ]
    winner.path.write_bytes(winner.path.read_bytes() + b"\n")
    assert len({same, *others, key()}) == len(others) + 2


@pytest.mark.parametrize("engine", KEEPING)
def test_a_damaged_cache_is_rewritten_and_never_read(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, cache = bundle_of(tmp_path, engine), tmp_path / "cache"
    _, expected = opened(bundle, cache)
    for file in cache.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    for want in (False, True):
        hit, got = opened(bundle, cache)
        assert hit == want
        assert_equal(got, expected)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("engine", KEEPING)
def test_an_entry_that_the_runtime_refuses_is_made_again(engine: Engine, tmp_path: Path) -> None:
    """What another version wrote may be whole and yet of no use."""
    bundle, cache = bundle_of(tmp_path, engine), CacheFolder(tmp_path / "cache")
    _, expected = opened(bundle, cache.path)
    for key in {file.name[:64] for file in cache.path.iterdir()}:
        assert cache.put(key, b"what another version wrote")
    for want in (False, True):
        hit, got = opened(bundle, cache.path)
        assert hit == want
        assert_equal(got, expected)


def test_a_graph_that_the_runtime_refuses_twice_is_compiled_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of YOLOv3-tiny is refused by OpenVINO, which alone can't read what it exported itself."""
    bundle, cache = bundle_of(tmp_path, OpenVino(threads=1)), tmp_path / "cache"
    tried: list[bytes] = []

    def refused(engine: OpenVino, artifact: object, target: object, graph: bytes) -> None:
        tried.append(graph)

    monkeypatch.setattr(OpenVino, "_imported", refused)
    hit, expected = opened(bundle, cache)
    assert (hit, tried) == (False, [])
    assert opened(bundle, cache)[0] is False
    assert len(tried) == 2  # what was kept, and what is exported once more
    for _ in range(2):
        hit, got = opened(bundle, cache)
        assert (hit, len(tried)) == (False, 2)
        assert_equal(got, expected)


@pytest.mark.parametrize("engine", KEEPING)
def test_a_cache_that_cannot_be_used_costs_a_line_in_the_log(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundle_of(tmp_path, engine)
    _, expected = opened(bundle, False)
    (tmp_path / "file").write_bytes(b"")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for place in (tmp_path / "file", shared, Path("/proc/hasten")):
        caplog.clear()
        for _ in range(2):
            hit, got = opened(bundle, place)
            assert not hit
            assert_equal(got, expected)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not any(shared.iterdir())


def test_the_environment_switches_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(tmp_path, OnnxRuntime(threads=1))
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "named"))
    with load(bundle), load(bundle) as loaded:
        assert loaded.from_cache
    monkeypatch.setenv("HASTEN_CACHE", "off")
    with load(bundle) as loaded:
        assert not loaded.from_cache


def test_further_sessions_read_what_the_first_one_kept(tmp_path: Path) -> None:
    engine = OnnxRuntime(threads=1)
    winner: Part = built(tmp_path, models.linear_classifier(tmp_path), engine)
    compiled = CompileCache(CacheFolder(tmp_path / "cache"))
    x = np.ones((1, 16), np.float32)
    with engine.open_cached(winner.artifact, Target.host(), compiled) as one:
        with engine.open_cached(winner.artifact, Target.host(), compiled) as other:
            np.testing.assert_array_equal(
                one.run({"x": x})["logits"], other.run({"x": x})["logits"]
            )
    assert (compiled.kept, compiled.found) == (1, 1)


@pytest.mark.seconds
def test_many_processes_open_one_bundle_at_once(tmp_path: Path) -> None:
    bundle, cache = bundle_of(tmp_path, OpenVino(threads=1)), tmp_path / "cache"
    code = (
        "import sys, hashlib, hasten, numpy as np\n"
        "m = hasten.load(sys.argv[1], cache=sys.argv[2])\n"
        "x = np.ones(m.request[0].sizes, np.float32)\n"
        "print(hashlib.sha256(m(x)['logits'].tobytes()).hexdigest())\n"
    )
    words = [sys.executable, "-c", code, str(bundle), str(cache)]
    starts = [
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
        )
        for _ in range(3)
    ]
    said = [start.communicate() for start in starts]
    assert len({out for out, _ in said}) == 1
    assert [err for _, err in said] == [b""] * 3
