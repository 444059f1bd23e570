"""What the C compiler made is kept for later suites, and the folder doesn't grow without end."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest
from tests.support.compiled_once import compiled_once, forget_the_oldest

from hasten.core import c_compiler
from hasten.core.c_compiler import Compiler
from hasten.errors import CandidateError, InputError


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without what the suite itself keeps."""
    monkeypatch.setattr(Compiler, "_compiled", inspect.unwrap(Compiler._compiled))


@pytest.fixture
def compiler() -> Compiler:
    try:
        return Compiler.find()
    except InputError as error:
        pytest.skip(str(error))


def test_a_later_suite_reads_what_an_earlier_one_compiled(
    compiler: Compiler, tmp_path: Path
) -> None:
    lasting = tmp_path / "lasting"
    lasting.mkdir()
    made = []
    for suite in ("first", "second"):
        (tmp_path / suite).mkdir()
        with compiled_once(tmp_path / suite / "compiled", lasting):
            made.append(compiler.compile("int of_the_first;"))
        assert not list((tmp_path / suite / "compiled").iterdir())
    (file,) = lasting.iterdir()
    assert made[0] == made[1]
    file.write_bytes(b"")  # as where the machine lost its power
    with compiled_once(tmp_path / "first" / "compiled", lasting):
        assert compiler.compile("int of_the_first;").content == made[0].content


def test_a_compiler_that_a_test_made_leaves_nothing_to_later_suites(
    compiler: Compiler, tmp_path: Path
) -> None:
    lasting = tmp_path / "lasting"
    lasting.mkdir()
    program = tmp_path / "cc"
    program.write_text(f'#!/bin/sh\nexec {" ".join(compiler.command)} "$@"\n')
    program.chmod(0o755)
    with compiled_once(tmp_path / "compiled", lasting):
        Compiler((str(program),), compiler.version).compile("int of_a_test;")
    assert len(list((tmp_path / "compiled").iterdir())) == 1
    assert not list(lasting.iterdir())


def test_where_the_code_around_the_compiler_is_another_all_is_compiled_anew(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting, changed = tmp_path / "lasting", tmp_path / "c_compiler.py"
    lasting.mkdir()
    with compiled_once(tmp_path / "compiled", lasting):
        compiler.compile("int of_the_first;")
    changed.write_bytes(Path(c_compiler.__file__).read_bytes() + b"# changed\n")
    monkeypatch.setattr(c_compiler, "__file__", str(changed))
    monkeypatch.setattr(c_compiler, "_run", lambda *_: (1, "an error"))  # what the change broke
    with (
        compiled_once(tmp_path / "compiled", lasting),
        pytest.raises(CandidateError, match="an error"),
    ):
        compiler.compile("int of_the_first;")


def test_the_compiler_from_pypi_compiles_in_every_suite_and_without_a_home_too(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting, calls = tmp_path / "lasting", tmp_path / "calls"
    lasting.mkdir()
    run = c_compiler._run

    def counted(words: list[str], folder: str, limit_s: float) -> tuple[int | None, str]:
        with calls.open("a") as file:
            file.write("x")
        return run([*compiler.command, *words[len(zig.command) :]], folder, limit_s)  # is faster

    monkeypatch.setattr(c_compiler, "_run", counted)
    zig = Compiler((sys.executable, "-P", "-m", "ziglang", "cc"), "zig-0.1")
    home = str(tmp_path)
    for suite, where, compiled in (("1", home, 1), ("1", home, 1), ("1", "", 2), ("2", "", 3)):
        monkeypatch.setenv("HOME", where)
        (tmp_path / suite).mkdir(exist_ok=True)
        with compiled_once(tmp_path / suite / "compiled", lasting):
            zig.compile("int of_zig;")
        assert calls.read_text() == "x" * compiled
    assert not list(lasting.iterdir())


def test_what_was_used_least_recently_is_forgotten_first(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    forget_the_oldest(tmp_path, 25)
    assert {file.name for file in tmp_path.iterdir()} == {"newest", "newer"}
