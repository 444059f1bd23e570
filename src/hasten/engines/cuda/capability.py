"""Facts about this host's GPU by CUDA: its compute capability, and how many processes it lets in."""

from __future__ import annotations

from typing import Any

from hasten.core.target import Target
from hasten.engines.cuda.error_codes import explained
from hasten.engines.cuda.runtime import cuda_runtime
from hasten.errors import InputError

_CLOSED = {2: ("PROHIBITED", "no process"), 3: ("EXCLUSIVE_PROCESS", "one process at a time")}
"""Number of a compute mode in which several processes can't share a GPU -> its name, and whom it allows.

Source: CUDA Runtime API, cudaComputeMode.
"""


def part_of(target: Target, runtime: Any = None) -> str:
    """Return the part of a target's GPU: "sm90" for compute capability 9.0.

    For a GPU of this host CUDA is asked, which makes no context and takes none of its memory.

    Args:
        target: Target of family "cuda".
        runtime: Module `cuda.bindings.runtime`; None to import it.

    Raises:
        InputError: the GPU is here, but CUDA can't use it, or its bindings aren't installed.
    """
    if target.kind != "attached":
        return target.part
    rt = runtime or cuda_runtime()
    kinds = rt.cudaDeviceAttr
    major, minor = (
        _asked(rt, kind)
        for kind in (
            kinds.cudaDevAttrComputeCapabilityMajor,
            kinds.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"sm{major}{minor}"


def check_gpu(target: Target) -> None:
    """Check that CUDA can use the target's GPU, where it is one of this host.

    Raises:
        InputError: it can't; the message has CUDA's own reason.
    """
    part_of(target)


def check_shared(target: Target, runtime: Any = None) -> None:
    """Check that several processes can use the target's GPU at once, where it is one of this host.

    A run that measures needs that, but a server doesn't. Where CUDA can't tell, `check_gpu` has the reason.

    Args:
        target: Any target.
        runtime: Module `cuda.bindings.runtime`; None to import it.

    Raises:
        InputError: its compute mode doesn't allow it; the message says how to change that.
    """
    if target.kind != "attached" or target.family != "cuda":
        return
    try:
        rt = runtime or cuda_runtime()
    except InputError:
        return
    code, mode = rt.cudaDeviceGetAttribute(rt.cudaDeviceAttr.cudaDevAttrComputeMode, 0)
    if int(code) == 0 and int(mode) in _CLOSED:
        name, allowed = _CLOSED[int(mode)]
        raise InputError(
            f"this host's GPU is in compute mode {name}, which allows {allowed}, and a run opens models in "
            "several: allow them with nvidia-smi --compute-mode=DEFAULT"
        )


def known_part(target: Target) -> str:
    """Return the part of a target's GPU; "" where CUDA can't tell, for which `check_gpu` has the reason."""
    try:
        return part_of(target)
    except InputError:
        return ""


def _asked(rt: Any, kind: Any) -> int:
    code, value = rt.cudaDeviceGetAttribute(kind, 0)
    if int(code) == 0:
        return int(value)
    raise InputError(str(explained(rt, "use this host's GPU", code)))
