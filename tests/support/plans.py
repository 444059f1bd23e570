"""Plans of a few operations, compiled and run on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tests.support.guarded import guarded

from hasten.core.c_compiler import Compiler
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.library import Library, aligned
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.source import write
from hasten.engines.compiled.tensors import Tensor, Weights

_AVX512 = ("avx2", "fma", "avx512f", "avx512bw")
_ICE_LAKE = (*_AVX512, "avx512vbmi", "avx512_vnni")
WITH_AMX = replace(Target.host(), isa=(*_ICE_LAKE, "amx_tile", "amx_int8"))
"""A processor that multiplies matrices of bytes."""
PROCESSORS: dict[str, tuple[Target, bool]] = {
    "widest": (Target.host(), True),
    "sse2": (replace(Target.host(), isa=()), True),
    "portable": (replace(Target.host(), isa=()), False),
    "avx-vnni": (replace(Target.host(), isa=("avx2", "fma", "avx_vnni")), False),
    "avx512-vnni": (replace(Target.host(), isa=_ICE_LAKE), False),
    "avx512-vnni-without-vbmi": (replace(Target.host(), isa=(*_AVX512, "avx512_vnni")), False),
    "avx512-without-vnni": (replace(Target.host(), isa=_AVX512), False),
    "arm-dotprod": (replace(Target.host(), isa=("asimddp",)), False),
    "arm-i8mm": (replace(Target.host(), isa=("asimddp", "i8mm")), False),
}
"""Processors, and whether their instructions can be run here; else C without them lays all out as for them."""


@dataclass(frozen=True)
class _Hasty(Compiler):
    """A compiler that optimizes nothing, for code that runs once."""

    @property
    def flags(self) -> tuple[str, ...]:
        return (*super().flags, "-O0")


def planned(
    operations: Sequence[Operation],
    constants: Mapping[str, Array],
    given: Mapping[str, Array],
    made: Mapping[str, tuple[str, int]],
    *,
    outputs: Sequence[str] = (),
    by_row: bool = False,
) -> tuple[Plan, bytes]:
    """Return a plan, checked, and its weights.

    Args:
        operations: Steps in order.
        constants: Constants by name.
        given: Inputs by name, for one row.
        made: Element type and size of each tensor that a step writes.
        outputs: Names of what is asked for; all that is made by default.
        by_row: Whether rows are answered each by itself.
    """
    weights = Weights(bytearray())
    tensors = {name: weights.add(array) for name, array in constants.items()}
    tensors |= {name: Tensor(str(array.dtype), array.size) for name, array in given.items()}
    tensors |= {name: Tensor(dtype, size) for name, (dtype, size) in made.items()}
    asked = tuple(outputs or made)
    shapes = tuple((1, made[name][1]) for name in asked)
    plan = Plan(tensors, tuple(operations), tuple(given), asked, shapes, by_row)
    plan.check(len(weights.content))
    return plan, bytes(weights.content)


def answers(
    plan: Plan,
    weights: bytes,
    given: Mapping[str, Array],
    *,
    rows: int = 1,
    target: Target | None = None,
    threads: int = 1,
    spelled: bool = True,
) -> dict[str, Array]:
    """Return what a plan's C gives for arrays: all its outputs by name, with all rows flat.

    The process dies where the C reads or writes behind what is given or asked for.

    Args:
        plan: The plan.
        weights: Its constants.
        given: Inputs by name, contiguous.
        rows: Number of rows of each.
        target: Processor to write C for; this one by default.
        threads: Threads that share the call, where operations are worth it.
        spelled: Whether the C may spell instructions; without, any processor's can be run here.
    """
    source = write(plan, weights, target or Target.host(), threads)
    text = source.text
    if not spelled:
        for name in ("X86", "ARM", "AVX", "AVX512"):
            text = text.replace(f"#define {name} 1", f"#define {name} 0")
        text = text.replace("defined(__AMX_INT8__)", "0")
        # Each function by itself compiles in a tenth of the time.
        apart = "#define INLINE static __attribute__((noinline))\n"
        text = text.replace("#define INLINE static inline\n", apart)
    compiler = Compiler.find()
    if not spelled and target is not None and target.isa:
        compiler = _Hasty(compiler.command, compiler.version)  # no such C ever ships
    library = Library.load(compiler.compile(text).content)
    tables = aligned(len(source.tables))
    tables[:] = np.frombuffer(source.tables, np.uint8)
    outputs: dict[str, Any] = {
        name: guarded(
            np.full(plan.tensor(name).bytes * rows, 165, np.uint8).view(plan.tensor(name).dtype)
        )
        for name in plan.outputs
    }
    given = {name: guarded(array) for name, array in given.items()}
    team = library.team(source.threads) if source.threads > 1 else None
    answer = library.answering(tables, source.arena_bytes, team)
    answer(*(given[name] for name in plan.inputs), *outputs.values())
    return outputs
