"""Operations of a plan that become one, and those that nothing needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation
from hasten.engines.compiled.tensors import Access, product


def needed_of(operations: Sequence[Operation], needed: set[str]) -> list[Operation]:
    """Return the operations that the outputs depend on."""
    kept = []
    for operation in reversed(operations):
        if needed.intersection(operation.writes):
            kept.append(operation)
            needed.update(operation.reads)
    return kept[::-1]


def fused(
    operations: Sequence[Operation],
    outputs: frozenset[str],
    sources: dict[str, tuple[str, ...]],
    dtypes: Mapping[str, str],
) -> list[Operation]:
    """Join operations with those that make their inputs, where nothing else reads these.

    Args:
        operations: Operations in order.
        outputs: Tensors that are given as answers.
        sources: Names of nodes by the tensor that is written; those of joined operations are joined.
        dtypes: Types of the tensors by name.
    """
    result = list(operations)
    changed = True
    while changed:
        changed = False
        readers: dict[str, list[int]] = {}
        writers: dict[str, list[int]] = {}
        for number, operation in enumerate(result):
            for name in operation.reads:
                readers.setdefault(name, []).append(number)
            for name in operation.writes:
                writers.setdefault(name, []).append(number)
        for number, operation in enumerate(result):
            for name in operation.reads:
                source = writers.get(name, [])
                if name in outputs or len(source) != 1 or readers[name] != [number]:
                    continue
                part = any(len(writers[made]) > 1 for made in operation.writes)
                own = not part and all(dtypes[made] == dtypes[name] for made in operation.writes)
                joined = _joined(result[source[0]], operation, name, own=own)
                if joined is None:
                    continue
                kept = sources[joined.writes[0]]
                sources[joined.writes[0]] = tuple(dict.fromkeys((*sources[name], *kept)))
                if isinstance(result[source[0]], Map) or not isinstance(operation, Map):
                    # It reads what may be written between the two.
                    result[number] = joined
                    del result[source[0]]
                else:
                    result[source[0]] = joined
                    del result[number]
                changed = True
                break
            if changed:
                break
    return result


def _joined(first: Operation, second: Operation, between: str, *, own: bool) -> Operation | None:
    """Return one operation that does both; None where there is none.

    Args:
        first: Operation that makes an input of the other.
        second: Operation that alone reads it.
        between: That input.
        own: Whether the second one's output has the type of that input, and nothing else writes to it, as to the
            parts of a Concat.
    """
    if not isinstance(second, Map):
        precede = getattr(second, "preceded", None)
        return precede(first) if precede and isinstance(first, Map) else first.joined(second)
    place = second.reads.index(between)
    if not second.inputs[place].is_whole(second.shape):
        return None
    if isinstance(first, Map):
        return _joined_maps(first, second, place)
    follow = getattr(first, "followed", None)
    whole = second.output.is_whole(second.shape) and own
    return follow(second) if follow and whole and len(second.inputs) == 1 else None


def _joined_maps(first: Map, second: Map, place: int) -> Map | None:
    if product(first.shape) != product(second.shape) or not first.output.is_whole(first.shape):
        return None
    if len(first.steps) + len(second.steps) > programs.MOST_STEPS // 4:
        return None
    accesses = first.inputs
    if first.shape != second.shape:
        if not all(access.is_whole(first.shape) for access in accesses):
            return None
        accesses = tuple(Access.whole(access.tensor, second.shape) for access in accesses)
    inputs = tuple(dict.fromkeys((*accesses, *_without(second.inputs, place))))
    behind = len(inputs)
    own = [inputs.index(access) for access in accesses]
    own += range(behind, behind + len(first.steps))
    result = own[-1]
    others = [
        result if number == place else inputs.index(access)
        for number, access in enumerate(second.inputs)
    ]
    others += range(result + 1, result + 1 + len(second.steps))
    moved = [
        Step(step.op, tuple(names[arg] for arg in step.args), step.dtype, step.value)
        for steps, names in ((first.steps, own), (second.steps, others))
        for step in steps
    ]
    return Map(tuple(moved), inputs, second.output, second.shape)


def _without(accesses: tuple[Access, ...], place: int) -> tuple[Access, ...]:
    return accesses[:place] + accesses[place + 1 :]
