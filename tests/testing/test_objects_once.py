"""What of a simulator's compilation is kept for the next design, and what isn't."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.objects_once import keeping_objects


def test_the_library_is_compiled_once_for_each_call_and_a_design_each_time(tmp_path: Path) -> None:
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {calls}\ncp "$5" "$4"\n')
    compiler.chmod(0o755)
    (tmp_path / "include").mkdir()
    library, design = tmp_path / "include" / "verilated.cpp", tmp_path / "Vnetwork.cpp"
    library.write_text("library")
    design.write_text("design")
    program = keeping_objects(tmp_path / "it's kept")

    def compiled(source: Path, level: str, place: str) -> str:
        folder = tmp_path / place
        folder.mkdir()
        words: list[str | Path] = [program, compiler, level, "-c", "-o", f"{source.stem}.o", source]
        subprocess.run(words, cwd=folder, check=True)
        return (folder / f"{source.stem}.o").read_text()

    assert [compiled(library, "-O1", f"library {n}") for n in range(3)] == ["library"] * 3
    assert len(calls.read_text().splitlines()) == 1
    assert compiled(library, "-O2", "another level") == "library"
    assert len(calls.read_text().splitlines()) == 2
    assert [compiled(design, "-O1", f"design {n}") for n in range(2)] == ["design"] * 2
    assert len(calls.read_text().splitlines()) == 4


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path) -> None:
    program = keeping_objects(tmp_path / "kept")
    source = tmp_path / "include" / "verilated.cpp"
    done = subprocess.run([program, "false", "-c", "-o", "x.o", source], check=False)
    assert done.returncode == 1
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["objects"]
