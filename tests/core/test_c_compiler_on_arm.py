"""C for ARM processors needs no library of the compiler's."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from hasten.core.c_compiler import Compiler

_CROSS = "aarch64-linux-gnu-gcc"
_SWAPS = """
int swap(int *at, int old, int now) { return __atomic_compare_exchange_n(at, &old, now, 0, 2, 2); }
"""


@pytest.mark.parametrize(
    ("machine", "version", "inline"),
    [
        ("aarch64", "gcc-12.2.0", True),
        ("aarch64", "clang-19.1.7", True),
        ("aarch64", "gcc-9.4.0", False),  # which doesn't know the flag
        ("aarch64", "tcc-unknown", False),
        ("x86_64", "gcc-12.2.0", False),
    ],
)
def test_atomic_operations_are_written_out_on_arm(
    machine: str, version: str, monkeypatch: pytest.MonkeyPatch, *, inline: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert ("-mno-outline-atomics" in Compiler(("cc",), version).flags) == inline


@pytest.mark.skipif(not shutil.which(_CROSS), reason=f"no {_CROSS}")
def test_a_shared_object_for_a_raspberry_pi_4_calls_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    flags = Compiler((_CROSS,), "gcc-12.2.0").flags
    here = ["-mcpu=cortex-a72" if flag == "-march=native" else flag for flag in flags]
    (tmp_path / "m.c").write_text(_SWAPS)
    command = [_CROSS, *here, "-o", "m.so", "m.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert b"__aarch64" not in (tmp_path / "m.so").read_bytes()
