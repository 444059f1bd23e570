"""Operations of bytes and words equal numpy's integers on emulated ARM processors, on one thread and on several.

The emulator shows that answers are right. It says nothing about time.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.sanitized_kernels import Drawn, compiled_and_run, drawn, everything_shared
from tests.engines.test_compiled_bytes import Made
from tests.engines.test_compiled_words import MadeOfWords
from tests.support.plans import planned

from hasten.core.target import Target
from hasten.engines.compiled.granted import granted
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.operators.int8.numbers16 import Rounding16
from hasten.engines.compiled.source import write
from hasten.engines.compiled.writer import multiplies

_LIBRARIES = Path("/usr/aarch64-linux-gnu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="no ziglang: no compiler"),
    pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no qemu-aarch64 (qemu-user)"),
    pytest.mark.skipif(not _LIBRARIES.exists(), reason="no C library for ARM (libc6-arm64-cross)"),
]
# Debian's C library runs what is compiled: a static one would be compiled first, which takes a minute.
_ZIG = (sys.executable, "-P", "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu")
_FLAGS = ("-std=gnu11", "-O2", "-w", "-fno-math-errno", "-fno-sanitize=all")
_CPUINFO = r"""
#include <stdio.h>
int main(void) {
  FILE *file = fopen("/proc/cpuinfo", "r");
  for (int c; (c = getc(file)) != EOF;) putchar(c);
  return 0;
}
"""
_SPELLED = {"": (), "dots": ("sdot",), "matrices": ("sdot", "usmmla")}
PROCESSORS = {"cortex-a53": "", "cortex-a76": "dots", "max": "matrices"}
"""Processors that are emulated, and what of each multiplies bytes; a Raspberry Pi 5 has the second one."""
_EMULATED = ("qemu-aarch64", "-L", str(_LIBRARIES), "-cpu")
processors = pytest.mark.parametrize("processor", PROCESSORS)


@functools.cache
def _cpuinfo() -> bytes:
    """Return a program that prints /proc/cpuinfo."""
    words = [*_ZIG, *_FLAGS, "-x", "c", "-o", "/dev/stdout", "-"]
    return subprocess.run(words, input=_CPUINFO.encode(), stdout=-1, check=True).stdout


def target_of(processor: str, folder: Path) -> Target:
    """Return what hasten finds on an emulated processor."""
    program = folder / "cpuinfo_program"
    program.write_bytes(_cpuinfo())
    program.chmod(0o700)
    words = [*_EMULATED, processor, str(program)]
    told = subprocess.run(words, stdout=-1, check=True).stdout
    (folder / "cpuinfo").write_bytes(told)
    return granted(Target.host(proc=folder), "gcc-12.2.0")


def check(one: Drawn, processor: str, folder: Path, *, guard: int = 1) -> None:
    """Run a plan as hasten writes it for an emulated processor, and compare its answers with numpy's.

    Args:
        one: The plan, its inputs and its answers.
        processor: Name of the processor.
        folder: Folder for files.
        guard: 1 if memory that nobody may touch lies behind each array, 0 if before it.
    """
    target = target_of(processor, folder)
    assert multiplies(target.isa) == PROCESSORS[processor]
    with everything_shared():
        written = write(one.plan, one.weights, target, one.threads)
    under = (*_EMULATED, processor)
    command = (*_ZIG, *_FLAGS, f"-DGUARD={guard}")
    assert not compiled_and_run(one, written, written.text, command, folder, under)


@processors
@pytest.mark.parametrize(("seed", "threads"), [(0, 1), (1, 3), (2, 3), (3, 1)])
def test_operations_equal_integers_within_their_memory(
    seed: int, threads: int, processor: str, tmp_path: Path
) -> None:
    check(replace(drawn(seed), threads=threads), processor, tmp_path, guard=seed % 2)


def _extreme(made: MadeOfWords, weight: int, wide: bool, least: bool, **shape: object) -> Conv8:
    """Return a convolution of one number and one weight, whose largest sum just fits in 32 bits.

    Args:
        made: Where its constants and its input are kept.
        weight: The weight.
        wide: Whether input and result are words, not bytes.
        least: Whether the smallest number stands for 0 and the largest one is read, or the other way.
        shape: Shape of the convolution.
    """
    conv = made.conv16("words", "words", **shape) if wide else made.conv("plain", **shape)
    zero, far = conv.zeros if least else conv.zeros[::-1]
    largest = (far - zero) * weight * conv.taps
    bias = np.copysign((1 << 31) - 1, largest) - largest
    made.constants[conv.weight][...] = weight
    made.constants[conv.bias][...] = bias.astype(np.int32)
    made.constants[conv.scale][...] = 2.0 ** (-16 if wide else -24)
    made.given[conv.input][...] = far
    if isinstance(conv, Conv16):
        return replace(conv, zero=zero, words=Rounding16(0))
    return replace(conv, zero=zero, rounding=Rounding(128, 0, 255))


@processors
@pytest.mark.parametrize(("weight", "threads"), [(-128, 1), (127, 3)])
def test_the_largest_sums_equal_those_of_integers(
    weight: int, threads: int, processor: str, tmp_path: Path
) -> None:
    made = MadeOfWords(5)
    around = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
    shapes: list[dict[str, Any]] = [
        {"channels": (9, 40), "size": (6, 5), "strides": (2, 1), **around},
        {"channels": (24, 24), "groups": 24, "size": (7, 9), **around},
        {"channels": (40, 40), "groups": 40, "size": (9, 9), "strides": (2, 2), **around},
        {"channels": (12, 12), "groups": 2, "size": (5, 4), **around},
    ]
    made.operations = [
        _extreme(made, weight, wide, least, **shape)
        for wide, channels in ((False, 2050), (True, 255))
        for shape in ({"channels": (channels, 18), "size": (3, 7)}, *shapes)
        for least in (True, False)
    ]
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    known = made.constants | made.given
    for operation in made.operations:
        operation.calculate(known)
    wanted = {name: known[name].ravel() for name in plan.outputs}
    assert {0, 255} & {int(one) for array in wanted.values() for one in array}
    assert {-32768, 32767} & {int(one) for array in wanted.values() for one in array}
    check(Drawn(plan, weights, made.given, wanted, 1, threads), processor, tmp_path)


@processors
def test_c_spells_the_instructions_that_a_processor_has(processor: str, tmp_path: Path) -> None:
    made = Made(1)
    channels = {"size": (4, 4), "kernel": (3, 3), "channels": (32, 32)}
    made.operations = [made.conv("plain", **channels), made.conv("plain", groups=32, **channels)]
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    text = write(plan, weights, target_of(processor, tmp_path)).text
    (tmp_path / "m.c").write_text(text[: text.index("/* Calls from Python")] + "void *kept = run;")
    words = [*_ZIG, *_FLAGS, "-S", "-o", "m.s", "m.c"]
    subprocess.run(words, cwd=tmp_path, check=True)
    assembly = (tmp_path / "m.s").read_text()
    found = {name for name in ("sdot", "usmmla") if f"{name}\tv" in assembly}
    assert found == set(_SPELLED[PROCESSORS[processor]])
