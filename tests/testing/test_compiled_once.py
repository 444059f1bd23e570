"""What the C compiler made is kept for later suites, and the folder doesn't grow without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.compiled_once import compiled_once, forget_the_oldest

from hasten.core.c_compiler import Compiler
from hasten.errors import InputError


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


def test_what_was_used_least_recently_is_forgotten_first(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    forget_the_oldest(tmp_path, 25)
    assert {file.name for file in tmp_path.iterdir()} == {"newest", "newer"}
