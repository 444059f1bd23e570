"""Cycles of a program, from the estimates that XLA's compiler for TPUs attaches to instructions.

The compiler chooses between ways to compute something by its own estimate, and keeps it in the
optimized HLO: `"estimated_cycles"` in an instruction's `backend_config`. Copies that run in the
background (copy-start and copy-done) have none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = .*?\s([a-z][a-z0-9\-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|async_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_EITHER = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_MOVES = frozenset({"bitcast", "copy", "copy-done", "copy-start"})
_CALLS = frozenset({"async-start", "call"})


@dataclass(frozen=True)
class Cycles:
    """Estimated cycles of a program.

    Attributes:
        total: Sum over what runs, with loops counted as often as they run, and the longest branch
            taken.
        estimated: Number of instructions with an estimate.
        endless: Number of loops that run an unknown number of times; each is counted once.
        by_node: Cycles in the total by the node that an instruction was made for, "" where it isn't
            known.
    """

    total: int
    estimated: int
    endless: int
    by_node: Mapping[str, int]


@dataclass(frozen=True)
class _Instruction:
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def cycles(self) -> int | None:
        found = _CYCLES.search(self.text)
        return int(found.group(1)) if found else None

    @property
    def node(self) -> str:
        """Scope in which an instruction was traced: "conv" of "jit(f)/conv/dot_general"."""
        found = re.search(r'op_name="jit\([^)]*\)/([^/";]+)/', self.text)
        return found.group(1) if found else ""

    def named(self, what: str) -> str:
        """Return the name of the computation in a role, such as "body"; "" if there is none."""
        found = re.search(rf"\b{what}=%?([\w.\-]+)", self.text)
        return found.group(1) if found else ""


_Computation = Mapping[str, _Instruction]


def estimated_cycles(hlo: str) -> Cycles:
    """Add up the estimates of a compiled program.

    Args:
        hlo: Text of the optimized HLO, as the compiled program prints it.

    Raises:
        ValueError: the HLO has no entry computation.
    """
    computations, entry = _parsed(hlo)
    if not entry:
        raise ValueError("no entry computation in the HLO")
    return _cycles_of(entry, computations)


def _cycles_of(name: str, computations: Mapping[str, _Computation]) -> Cycles:
    """Add up the cycles of one computation, and of those that it runs."""
    parts = []
    computation = computations.get(name, {})
    for instruction in computation.values():
        own = instruction.cycles
        if own is not None:
            parts.append(Cycles(own, 1, 0, {instruction.node: own}))
        elif instruction.opcode == "while":
            count = _trips(instruction, computation, computations)
            runs = (instruction.named("body"), instruction.named("condition"))
            loop = [_cycles_of(part, computations) for part in runs]
            if count is None:
                loop.append(Cycles(0, 0, 1, {}))
            parts.append(_sum(loop, 1 if count is None else count))
        elif instruction.opcode == "conditional":
            branches = [_cycles_of(part, computations) for part in _branches(instruction)]
            parts.append(max(branches, key=lambda one: one.total))
        elif instruction.opcode in _CALLS:
            called = _CALLED.findall(instruction.text)
            parts += [_cycles_of(part, computations) for part in called]
    return _sum(parts)


def _sum(parts: Sequence[Cycles], times: int = 1) -> Cycles:
    by_node: Counter[str] = Counter()
    for part in parts:
        by_node.update({node: times * cycles for node, cycles in part.by_node.items()})
    return Cycles(
        times * sum(part.total for part in parts),
        sum(part.estimated for part in parts),
        sum(part.endless for part in parts),
        dict(by_node),
    )


def _parsed(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if begin := _COMPUTATION.match(line):
            current = computations.setdefault(begin.group(2), {})
            entry = begin.group(2) if begin.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            root, name, opcode, rest = found.groups()
            operands = tuple(_OPERAND.findall(rest.partition(")")[0]))
            current[name] = _Instruction(opcode, operands, line, bool(root))
    return computations, entry


def _branches(instruction: _Instruction) -> list[str]:
    listed = _BRANCHES.search(instruction.text)
    if listed:
        return [name.strip().lstrip("%") for name in listed.group(1).split(",")]
    return _EITHER.findall(instruction.text)


def _trips(
    loop: _Instruction, around: _Computation, computations: Mapping[str, _Computation]
) -> int | None:
    """Return how often a loop runs that counts up by 1 between constants; None for other loops."""
    condition = computations.get(loop.named("condition"), {})
    body = computations.get(loop.named("body"), {})
    test = _root(condition)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.text:
        return None
    counter, end = (_followed(name, condition) for name in test.operands)
    stop, index = _constant(end), _index(counter)
    begin = _followed(loop.operands[0], around)
    step = _root(body)
    if stop is None or index is None or begin is None or step is None:
        return None
    if begin.opcode != "tuple" or step.opcode != "tuple":
        return None
    start = _constant(_followed(begin.operands[index], around))
    added = _followed(step.operands[index], body)
    if start is None or added is None or added.opcode != "add":
        return None
    parts = [_followed(name, body) for name in added.operands]
    if sorted(map(str, (_index(one) for one in parts))) != sorted([str(index), "None"]):
        return None
    if 1 not in [_constant(one) for one in parts]:
        return None
    return max(0, stop - start)


def _root(computation: _Computation) -> _Instruction | None:
    return next((one for one in computation.values() if one.root), None)


def _followed(name: str, computation: _Computation) -> _Instruction | None:
    """Return the instruction behind an operand, skipping those that only move it."""
    found = computation.get(name)
    while found is not None and found.opcode in _MOVES and found.operands:
        found = computation.get(found.operands[0])
    return found


def _constant(instruction: _Instruction | None) -> int | None:
    found = re.search(r"\bconstant\((-?\d+)\)", instruction.text) if instruction else None
    return int(found.group(1)) if found else None


def _index(instruction: _Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    found = re.search(r"\bindex=(\d+)", instruction.text)
    return int(found.group(1)) if found else None
