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


def granted(target: Target) -> Target:
    """Return a target without AMX where the system denies it, as old kernels and some sandboxes do."""
    if "amx_int8" not in target.isa or amx_granted():
        return target
    return replace(target, isa=tuple(name for name in target.isa if not name.startswith("amx")))


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
