"""Kernel that copies memory of a device, to see that kernels run there at all."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import Any

from hasten.engines.cuda.runtime import Device, Work
from hasten.errors import CandidateError, InputError

PTX = """
.version 6.3
.target sm_75
.address_size 64

.visible .entry copy_words(.param .u64 to, .param .u64 source, .param .u32 count)
{
    .reg .pred %outside;
    .reg .b32 %r<6>;
    .reg .b64 %a<6>;

    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r1, %r2, %r3;
    ld.param.u32 %r5, [count];
    setp.ge.u32 %outside, %r4, %r5;
    @%outside bra DONE;
    ld.param.u64 %a1, [to];
    ld.param.u64 %a2, [source];
    cvta.to.global.u64 %a1, %a1;
    cvta.to.global.u64 %a2, %a2;
    mul.wide.u32 %a3, %r4, 4;
    add.u64 %a4, %a1, %a3;
    add.u64 %a5, %a2, %a3;
    ld.global.b32 %r5, [%a5];
    st.global.b32 [%a4], %r5;
DONE:
    ret;
}
"""
"""The kernel in NVIDIA's intermediate code, which the driver compiles for any device from Turing on.

Source: PTX ISA; target sm_75 came with version 6.3.
"""
_BLOCK = 256


def copy_kernel(device: Device, to: int, source: int, words: int, closing: ExitStack) -> Work:
    """Return a function that enqueues a kernel, which copies 32-bit words within the device's memory.

    On this host in a device's place, the processor copies them at once.

    Args:
        device: Device that has the memory.
        to: Address to copy to.
        source: Address to copy from.
        words: Number of words.
        closing: Stack that unloads the kernel.

    Raises:
        InputError: the driver's bindings aren't installed.
        CandidateError: the driver can't load the kernel.
    """
    if device.kind != "cuda":
        return lambda: void(ctypes.memmove(to, source, 4 * words))
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise InputError(
            f"CUDA's bindings aren't installed ({error}): pip install 'hasten[gpu]'"
        ) from error
    module = _call(driver, "load a kernel", driver.cuModuleLoadData(PTX.encode() + b"\0"))
    closing.callback(driver.cuModuleUnload, module)
    kernel = _call(driver, "find a kernel", driver.cuModuleGetFunction(module, b"copy_words"))
    blocks = -(-words // _BLOCK)
    given = ((to, source, words), (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32))

    def launch() -> None:
        stream = device.stream
        result = driver.cuLaunchKernel(kernel, blocks, 1, 1, _BLOCK, 1, 1, 0, stream, given, 0)
        _call(driver, "launch a kernel", result)

    return launch


def void(_: Any) -> None:
    """Drop a result."""


def _call(driver: Any, what: str, result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        said = driver.cuGetErrorString(code)[1]
        text = said.decode() if isinstance(said, bytes) else str(said)
        raise CandidateError(f"CUDA can't {what}: {text}")
    return values[0] if values else None
