"""The compiler of the package ziglang makes the same bytes, where there is no other compiler."""

from __future__ import annotations

import itertools
import platform
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engines.test_compiled_bytes import ENDS, ODD, SHAPES, Made
from tests.support.plans import PROCESSORS, WITH_AMX, planned

from hasten.core.c_compiler import VARIABLE, Compiler
from hasten.core.target import Target
from hasten.engines.compiled import source
from hasten.engines.compiled.source import write

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    pytest.importorskip("ziglang")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    found = Compiler.find()
    assert found.command[-2:] == ("ziglang", "cc")
    assert found.version.startswith("clang")
    return found


@pytest.mark.parametrize("name", ["widest", "sse2", "portable"])
def test_operations_of_bytes_equal_integers(name: str) -> None:
    made = Made(2)
    ends = itertools.cycle(ENDS)
    made.operations = [made.conv(next(ends), **shape) for shape in [*SHAPES, *ODD]]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


def test_threads_and_rows_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(3)
    made.operations = [made.conv("residual", **shape) for shape in (*SHAPES[:6], *ODD[:3])]
    made.check(rows=3, threads=3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize(
    ("march", "isa"),
    [
        ("sapphirerapids", " ".join(WITH_AMX.isa)),
        ("icelake_server", "avx2 fma avx512f avx512bw avx512vbmi avx512_vnni"),
        ("cascadelake", "avx2 fma avx512f avx512bw avx512_vnni"),
        ("skylake_avx512", "avx2 fma avx512f avx512bw"),
        ("alderlake", "avx2 fma avx_vnni"),
    ],
)
def test_c_for_a_processor_that_isnt_here_compiles(
    compiler: Compiler, march: str, isa: str, tmp_path: Path
) -> None:
    made = Made(1)
    usual = {"kernel": (3, 3), "pads": (1, 1, 1, 1), "size": (3, 5)}
    made.operations = [
        made.conv("all", channels=(channels, channels), groups=channels, **usual)
        for channels in (144, 24)
    ]
    made.operations.append(made.conv("all", channels=(64, 48), **usual))
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    target = replace(Target.host(), isa=tuple(isa.split()))
    (tmp_path / "model.c").write_text(write(plan, weights, target).text)
    flags = [f"-march={march}" if flag == "-march=native" else flag for flag in compiler.flags]
    command = [*compiler.command, *flags, "-o", "model.so", "model.c"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
