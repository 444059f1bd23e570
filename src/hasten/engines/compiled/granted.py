"""Which instruction sets the compiler can spell, and the system lets this process use."""

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

_LEAST_COMPILER = {"amx_int8": 11, "i8mm": 11, "asimddp": 8}
"""First version of gcc, and of clang, by which C for an instruction set compiles."""


def granted(target: Target, compiler: str) -> Target:
    """Return a target without what the compiler can't spell, and without AMX where the system denies it.

    Old kernels and some sandboxes deny AMX. The instruction sets of ARM need no permission.

    Args:
        target: Processor.
        compiler: Kind and version of the compiler: "gcc-12.2.0".
    """
    denied = {name for name, least in _LEAST_COMPILER.items() if not _spells(compiler, least)}
    if "amx_int8" in target.isa and ("amx_int8" in denied or not amx_granted()):
        denied |= {name for name in target.isa if name.startswith("amx")}
    if denied.isdisjoint(target.isa):
        return target
    return replace(target, isa=tuple(name for name in target.isa if name not in denied))


def _spells(compiler: str, least: int) -> bool:
    kind, _, version = compiler.partition("-")
    major = version.partition(".")[0]
    return kind in ("gcc", "clang") and major.isdigit() and int(major) >= least


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
