"""Operations of bytes equal numpy's integers on an emulated ARM processor, on one thread and on several."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz.sanitized_kernels import compiled_and_run, drawn, everything_shared

from hasten.core.target import Target
from hasten.engines.compiled.source import write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="no ziglang: no compiler"),
    pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no qemu-aarch64 (qemu-user)"),
]
_FLAGS = ("-std=gnu11", "-O2", "-w", "-fno-math-errno", "-fno-sanitize=all", "-DGUARD=1")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_operations_equal_integers_within_their_memory(
    seed: int, threads: int, tmp_path: Path
) -> None:
    one = replace(drawn(seed), threads=threads)
    with everything_shared():
        written = write(one.plan, one.weights, replace(Target.host(), isa=()), threads)
    command = (
        sys.executable,
        "-P",
        "-m",
        "ziglang",
        "cc",
        "-target",
        "aarch64-linux-musl",
        "-static",
    )
    told = compiled_and_run(
        one, written, written.text, (*command, *_FLAGS), tmp_path, ("qemu-aarch64",)
    )
    assert not told
