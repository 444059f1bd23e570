"""The engine that writes a model as C."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.cache_log import untold

from hasten.core import c_compiler, cache_folder
from hasten.core.c_compiler import Compiler
from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC, CompiledSession
from hasten.engines.compiled.library import Library
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import write
from hasten.engines.installed import without_program
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, assert_one_line, request_for

PROGRAMS = os.environ["PATH"]


class TestCompiled(EngineTests):
    """Claims that hold for every engine."""

    engine: Engine = CompiledC()


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test find what another one compiled."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("scratch")))


@pytest.fixture
def target() -> Target:
    return Target.host().with_threads(1)


@pytest.fixture
def artifact(target: Target, tmp_path: Path) -> Artifact:
    folder = tmp_path / "built"
    folder.mkdir()
    return CompiledC().build(load(models.linear_classifier(tmp_path)), target, folder)


@contextmanager
def opened(artifact: Artifact, target: Target) -> Iterator[CompiledSession]:
    with CompiledC().open(artifact, target) as session:
        assert isinstance(session, CompiledSession)
        yield session


@pytest.fixture
def compiler_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program in the compiler's place, which works when it is tried and then runs a script."""

    def put(script: str) -> None:
        program = tmp_path / "some-cc"
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "some-cc 1.2.3"; exit; fi\n'
            f'if grep -q "int works;" model.c; then exec cc "$@"; fi\n{script}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv(c_compiler.VARIABLE, str(program))

    return put


def test_what_a_bundle_keeps_is_data(artifact: Artifact) -> None:
    assert [file.name for file in (artifact.path, *artifact.files)] == ["plan.json", "plan.bin"]
    record = json.loads(artifact.path.read_bytes())
    assert {one["type"] for one in record["plan"]["operations"]} <= {"dense", "map", "reduce"}
    assert b"\x7fELF" not in artifact.files[0].read_bytes()


def test_a_bound_call_answers_from_and_to_the_same_arrays(
    artifact: Artifact, target: Target
) -> None:
    with opened(artifact, target) as session:
        given = request_for(artifact.inputs, batch=3)
        answer = session.run(given)
        taken = {name: np.zeros_like(array) for name, array in answer.items()}
        call = session.bind(given, taken)
        assert call() is None
        for name, array in answer.items():
            assert np.array_equal(taken[name], array)
        again = request_for(artifact.inputs, batch=3, seed=1)
        for name, array in again.items():
            given[name][...] = array
        call()
        for name, array in session.run(again).items():
            assert np.array_equal(taken[name], array)


def test_a_bound_call_refuses_once_its_session_is_closed(
    artifact: Artifact, target: Target
) -> None:
    with opened(artifact, target) as session:
        given = request_for(artifact.inputs)
        answer = session.run(given)
        taken = {name: np.zeros_like(array) for name, array in answer.items()}
        call = session.bind(given, dict(taken))
    (name,) = taken
    kept = taken[name]
    del session, given, taken
    gc.collect()
    kept[...] = 7
    with pytest.raises(CandidateError, match="closed"):
        call()
    assert (kept == 7).all()


def test_a_bound_call_keeps_its_arrays(artifact: Artifact, target: Target) -> None:
    with opened(artifact, target) as session:
        given = request_for(artifact.inputs)
        answer = session.run(given)
        taken = {name: np.zeros_like(array) for name, array in answer.items()}
        call = session.bind(given, dict(taken))
        (name,) = taken
        kept = taken[name]
        del given, taken
        gc.collect()
        call()
        assert np.array_equal(kept, answer[name])


def test_arrays_of_another_size_than_the_plans_are_not_bound(
    artifact: Artifact, target: Target
) -> None:
    with opened(artifact, target) as session:
        given = request_for(artifact.inputs, batch=2)
        taken = session.run(given)
        short = {name: array[:1] for name, array in taken.items()}
        (name,) = taken
        with pytest.raises(CandidateError) as caught:
            session.bind(given, short)
    assert str(caught.value) == (
        f"the compiled model has {taken[name].size} numbers of float32 in {name!r}, and the array given for it has "
        f"{short[name].size} of float32, in the shape {list(short[name].shape)}: give arrays with the shapes and types of the "
        "model's inputs and outputs, and as many rows each"
    )


@pytest.mark.parametrize("change", [lambda x: x[:, :-1], lambda x: x.astype(np.float64), bytes])
def test_an_array_of_another_size_is_refused_before_it_is_read(
    change: Callable[[Any], Any], artifact: Artifact, target: Target
) -> None:
    request = request_for(artifact.inputs)
    (name,) = request
    with opened(artifact, target) as session:
        changed = change(request[name])
        if isinstance(changed, bytes):
            changed = np.zeros(1, np.uint8)
        with pytest.raises(CandidateError) as caught:
            session.run({name: np.ascontiguousarray(changed)})
    assert_one_line(caught.value)


@pytest.mark.parametrize("which", ["the facts", "the tables", "the shared object", "all"])
def test_what_is_damaged_in_the_cache_is_made_anew(
    which: str, artifact: Artifact, target: Target, tmp_path: Path
) -> None:
    folder = CacheFolder(tmp_path / "cache")
    kept = CompileCache(folder)
    with CompiledC().open_cached(artifact, target, kept) as session:
        answer = session.run(request_for(artifact.inputs))
    entries = list(folder.path.iterdir())
    assert len(entries) == 3
    for entry in entries:
        whole = bytearray(entry.read_bytes())
        if which in (_holds(bytes(whole)), "all"):
            whole[len(whole) // 2] ^= 1
            entry.write_bytes(whole)
    again = CompileCache(folder)
    with CompiledC().open_cached(artifact, target, again) as session:
        for name, array in session.run(request_for(artifact.inputs)).items():
            assert np.array_equal(array, answer[name])
    assert again.kept == (3 if which in ("the shared object", "all") else 2)
    with CompiledC().open_cached(artifact, target, last := CompileCache(folder)):
        assert (last.found, last.kept) == (3, 0)


def test_what_a_version_kept_that_writes_entries_in_another_way_stays_its_own(
    artifact: Artifact,
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    untold(monkeypatch)
    folder = CacheFolder(tmp_path / "cache")
    monkeypatch.setenv("HASTEN_CACHE", str(folder.path))  # for what is known of the compiler
    with monkeypatch.context() as older:
        older.setattr(cache_folder, "FORMAT", 1)
        c_compiler._find.cache_clear()
        with CompiledC().open_cached(artifact, target, CompileCache(folder)):
            pass
    theirs = {entry: b"in another way" + entry.read_bytes() for entry in folder.path.iterdir()}
    assert len(theirs) == 4
    for entry, content in theirs.items():
        entry.write_bytes(content)
    c_compiler._find.cache_clear()
    for found in (0, 3):
        with CompiledC().open_cached(artifact, target, ours := CompileCache(folder)):
            assert ours.found == found
    assert not [record for record in caplog.records if record.name == "hasten.cache"]
    assert all(entry.read_bytes() == content for entry, content in theirs.items())


def _holds(entry: bytes) -> str:
    """Return what an entry of the cache holds."""
    return (
        "the shared object"
        if b"ELF" in entry
        else "the facts"
        if b'"plan"' in entry
        else "the tables"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        {"arena_bytes": -1},
        {"arena_bytes": 1 << 40},
        {"arena_bytes": True},
        {"threads": 0},
        {"threads": "1"},
        {"tables_bytes": 1},
        {"library": "a"},
        {"plan": {}},
    ],
)
def test_what_another_program_kept_is_made_anew(
    content: bytes | dict[str, Any], artifact: Artifact, target: Target, tmp_path: Path
) -> None:
    folder = CacheFolder(tmp_path / "cache")
    with CompiledC().open_cached(artifact, target, CompileCache(folder)) as session:
        answer = session.run(request_for(artifact.inputs))
    (entry,) = (one for one in folder.path.iterdir() if _holds(one.read_bytes()) == "the facts")
    if isinstance(content, dict):
        with folder.entry(entry.name) as kept:
            assert kept is not None
            content = json.dumps(json.loads(kept.content) | content).encode()
    folder.put(entry.name, content)
    again = CompileCache(folder)
    with CompiledC().open_cached(artifact, target, again) as session:
        for name, array in session.run(request_for(artifact.inputs)).items():
            assert np.array_equal(array, answer[name])
    assert again.kept == 2


def test_a_second_opening_writes_no_c(
    artifact: Artifact, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CacheFolder(tmp_path / "cache")
    with CompiledC().open_cached(artifact, target, CompileCache(folder)) as session:
        answer = session.run(request_for(artifact.inputs))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("C was written again")

    monkeypatch.setattr("hasten.engines.compiled.engine.write", never)
    again = CompileCache(folder)
    with CompiledC().open_cached(artifact, target, again) as session:
        for name, array in session.run(request_for(artifact.inputs)).items():
            assert np.array_equal(array, answer[name])
    assert again.found > 0
    assert again.kept == 0


def test_sessions_of_a_run_compile_once(
    artifact: Artifact, target: Target, compiler_that: Callable[[str], None], tmp_path: Path
) -> None:
    compiler_that(f'echo >> {tmp_path}/compiled; exec cc "$@"')
    for _ in range(2):
        with opened(artifact, target):
            pass
    assert len((tmp_path / "compiled").read_text().splitlines()) == 1


def test_without_a_compiler_the_engine_is_missing_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(c_compiler.VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"no C compiler here: install one .*pip install"
    ) as caught:
        CompiledC.version()
    assert_one_line(caught.value)
    assert CompiledC.tools() == {}
    assert without_program("host") == [f"the engine compiled isn't tried: {caught.value}"]
    c_compiler._find.cache_clear()


def test_a_compiler_that_is_named_and_does_not_work_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(c_compiler.VARIABLE, "/nowhere/cc")
    with pytest.raises(
        InputError, match="HASTEN_CC='/nowhere/cc' doesn't name a working C compiler"
    ):
        CompiledC.version()


@pytest.fixture
def broken_cc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder alone in the path, with a `cc` that knows its version, but has no assembler."""
    program = tmp_path / "bin" / "cc"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo "cc (Debian) 12.2.0"; exit; fi\n'
        "echo \"cc: fatal error: cannot execute 'as': No such file or directory\"; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv(c_compiler.VARIABLE, raising=False)
    return program.parent


def test_a_compiler_that_only_knows_its_version_is_passed_over(broken_cc: Path) -> None:
    (broken_cc / "gcc").write_text(f"#!/bin/sh\nPATH='{PROGRAMS}' exec cc \"$@\"\n")
    (broken_cc / "gcc").chmod(0o755)
    compiler = Compiler.find()
    assert compiler.command == ("gcc",)
    assert compiler.compile("int x;").content[:4] == b"\x7fELF"


def test_where_no_compiler_works_the_first_says_why(
    broken_cc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        CompiledC.version()
    assert str(caught.value) == (
        "there is no C compiler here that works (the C compiler (cc-12.2.0) failed: cc: fatal error: cannot execute "
        "'as': No such file or directory): install one (apt-get install gcc), or pip install 'hasten[compiler]', "
        "which installs one"
    )
    monkeypatch.setenv(c_compiler.VARIABLE, "cc")
    with pytest.raises(InputError, match=r"HASTEN_CC='cc' doesn't .*: unset it \(.*'as': No such"):
        CompiledC.version()


def test_a_compiler_leaves_nothing_behind_and_needs_no_home(
    tmp_path: Path, compiler_that: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """zig's needs a folder for what it keeps: it fails without a home, or in one that can't be written to."""
    compiler_that(
        'for folder in "$TMPDIR" "$ZIG_GLOBAL_CACHE_DIR" "$ZIG_LOCAL_CACHE_DIR"; do\n'
        f'  echo here > "$folder/left" && echo "$folder" >> {tmp_path}/folders\ndone; exec cc "$@"'
    )
    monkeypatch.delenv("HOME")
    Compiler.find().compile("int x;")
    folders = (tmp_path / "folders").read_text().splitlines()
    assert len(folders) == 3
    assert not any(Path(one).exists() for one in folders)


def test_the_compiler_from_pypi_answers_as_the_systems_without_a_home(
    artifact: Artifact, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang", reason="needs the extra compiler")
    given = request_for(artifact.inputs, batch=3)
    with opened(artifact, target) as session:
        expected = session.run(given)
    for variable in ("HOME", "XDG_CACHE_HOME", c_compiler.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    assert Compiler.find().command == (sys.executable, "-P", "-m", "ziglang", "cc")
    with opened(artifact, target) as session:
        for name, array in session.run(given).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-7)


def test_that_a_compiler_works_is_tried_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "some-cc"
    monkeypatch.setenv(c_compiler.VARIABLE, str(program))
    for version, again, tries in (("1.2.3", False, 1), ("1.2.3", True, 1), ("1.2.4", False, 2)):
        if not again:
            program.write_text(
                f'#!/bin/sh\nif [ "$1" = --version ]; then echo "some-cc {version}"; exit; fi\n'
                f'echo >> {tmp_path}/tried; exec cc "$@"\n'
            )
            program.chmod(0o755)
        c_compiler._find.cache_clear()  # as a new process begins
        assert Compiler.find().version == f"some-cc-{version}"
        assert len((tmp_path / "tried").read_text().splitlines()) == tries


def test_a_compiler_that_fails_fails_the_candidate_with_its_first_line(
    artifact: Artifact, target: Target, compiler_that: Callable[[str], None]
) -> None:
    compiler_that("echo 'model.c: in function'; echo 'model.c:3: error: no such thing'; exit 1")
    with (
        pytest.raises(CandidateError, match=r"some-cc-1.2.3\) failed: .*error: no such thing"),
        opened(artifact, target),
    ):
        pass


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, compiler_that: Callable[[str], None]
) -> None:
    compiler_that(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    for limit_s in (0.5, 5.0, 50.0):  # on a busy host it may be ended before it started anything
        with pytest.raises(
            CandidateError, match=rf"some-cc-1.2.3\) didn't end within {limit_s:g} s"
        ):
            Compiler.find().compile("int x;", limit_s=limit_s)
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith("\n"):
            break
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "status")

    def runs() -> bool:
        try:
            return "zombie" not in child.read_text()
        except OSError:
            return False

    until = time.monotonic() + 60  # a busy host takes its time to end a process that was killed
    while runs() and time.monotonic() < until:
        time.sleep(0.01)
    assert not runs()


def test_each_compiler_vectorizes() -> None:
    assert "-O3" in Compiler(("cc",), "clang-19.1.7").flags
    assert {"-O2", "-ftree-vectorize"} < set(Compiler(("cc",), "gcc-14.2.0").flags)


def test_no_room_for_temporary_files_fails_the_candidate(
    artifact: Artifact, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Compiler.find()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(CandidateError, match="can't be run"), opened(artifact, target):
        pass


def test_a_library_loads_without_temporary_files(
    artifact: Artifact, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Compiler.find().compile(write(*_plan_of(artifact), target).text).content
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(CandidateError, match="can't be loaded"):
            Library(b"no library")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    Library(content)


def _plan_of(artifact: Artifact) -> tuple[Plan, bytes]:
    return Plan.read(artifact.path), artifact.files[0].read_bytes()


def test_what_a_compiler_makes_that_is_no_library_is_one_line(
    artifact: Artifact, target: Target, compiler_that: Callable[[str], None]
) -> None:
    compiler_that('while [ "$1" != -o ]; do shift; done; echo hello > $2')
    with pytest.raises(CandidateError, match="can't be loaded") as caught, opened(artifact, target):
        pass
    assert_one_line(caught.value)


def test_a_model_with_much_arithmetic_is_left_to_the_runtimes(
    target: Target, tmp_path: Path
) -> None:
    model = load(models.linear_classifier(tmp_path))
    with pytest.raises(CandidateError, match=r"takes up to .* million calculations") as caught:
        replace(CompiledC(), most_work=10).build(model, target, tmp_path)
    assert_one_line(caught.value)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a newer format": lambda r: r.update(format=99),
    "no plan": lambda r: r.update(plan=None),
    "a tensor that isn't there": lambda r: r["plan"].update(inputs=["t99"]),
    "an input that is a constant": lambda r: r["plan"].update(
        inputs=[next(n for n, t in r["plan"]["tensors"].items() if t["offset"] is not None)]
    ),
    "a step that reads what nothing wrote": lambda r: (
        r["plan"]["tensors"].update(t77={**r["plan"]["tensors"]["t0"], "offset": None}),
        r["plan"]["operations"][0].update(input="t77"),
    ),
    "no steps": lambda r: r["plan"].update(operations=[]),
    "a constant beyond the weights": lambda r: [
        t.update(offset=1 << 20) for t in r["plan"]["tensors"].values() if t["offset"] is not None
    ],
    "a constant before the weights": lambda r: [
        t.update(offset=-64) for t in r["plan"]["tensors"].values() if t["offset"] is not None
    ],
    "too much memory": lambda r: [
        t.update(size=1 << 29) for t in r["plan"]["tensors"].values() if t["offset"] is None
    ],
    "an unknown element type": lambda r: [
        t.update(dtype="float16") for t in r["plan"]["tensors"].values()
    ],
    "another size of the matrix": lambda r: r["plan"]["operations"][0].update(inner=1000),
    "negative sizes": lambda r: r["plan"]["operations"][0].update(inner=-1, outer=-1),
    "an unknown operation": lambda r: r["plan"]["operations"][0].update(type="null"),
    "code in a name": lambda r: r["plan"]["operations"][0].update(input='t0); system("x'),
    "another shape of the answer": lambda r: r["plan"].update(shapes=[[1, 7]]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused_before_anything_is_compiled(
    damage: str, artifact: Artifact, target: Target, compiler_that: Callable[[str], None]
) -> None:
    compiler_that("echo compiled; exit 1")
    record = json.loads(artifact.path.read_bytes())
    DAMAGES[damage](record)
    artifact.path.write_text(json.dumps(record))
    with pytest.raises(CandidateError, match="can't open the model") as caught:
        with opened(artifact, target):
            pass
    assert_one_line(caught.value)
    assert "some-cc" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 40])
def test_files_that_are_cut_short_are_refused(cut: int, artifact: Artifact, target: Target) -> None:
    for file in (artifact.path, *artifact.files):
        whole = file.read_bytes()
        file.write_bytes(whole[:cut])
        with pytest.raises(CandidateError, match="can't open the model"), opened(artifact, target):
            pass
        file.write_bytes(whole)
