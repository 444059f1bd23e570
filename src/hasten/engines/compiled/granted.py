"""Whether the system lets this process use AMX."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import replace
from functools import cache

from hasten.core.target import Target

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Numbers of the system call on x86-64, of what it is asked, and of the registers' data.

Source: Linux, Documentation/arch/x86/xstate.rst.
"""

_LEAST_COMPILER = 11
"""First version of gcc, and of clang, that knows AMX."""


def granted(target: Target, compiler: str) -> Target:
    """Return a target without AMX where the compiler can't spell it, or the system denies it.

    Old kernels and some sandboxes deny it.

    Args:
        target: Processor.
        compiler: Kind and version of the compiler: "gcc-12.2.0".
    """
    if "amx_int8" not in target.isa or (_spells(compiler) and amx_granted()):
        return target
    return replace(target, isa=tuple(name for name in target.isa if not name.startswith("amx")))


def _spells(compiler: str) -> bool:
    kind, _, version = compiler.partition("-")
    major = version.partition(".")[0]
    return kind in ("gcc", "clang") and major.isdigit() and int(major) >= _LEAST_COMPILER


@cache
def amx_granted() -> bool:
    """Ask the system to let this process and its threads use AMX; return whether it does.

    Without that, the first instruction ends the process.
    """
    if platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return bool(call(_ARCH_PRCTL, _REQUEST_PERMISSION, ctypes.c_long(_TILE_DATA)) == 0)
