"""All checks of each kind of device, by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hasten.evaluation.deep import memory, runtimes
from hasten.evaluation.deep.finding import Check


def cuda() -> Iterator[tuple[str, Check]]:
    """Yield the checks of an NVIDIA GPU."""
    yield "device", Check(memory.identity)
    yield "clocks", Check(memory.clocks)
    yield "pinned memory", Check(memory.pinned)
    yield "copies", Check(memory.copies)
    yield "graph", Check(memory.graph)
    yield "threads", Check(memory.threads)
    for engine in runtimes.ENGINES:
        yield f"answers ({engine.words()})", Check(partial(runtimes.answers, engine), 90)
    for engine in runtimes.IN_THREADS:
        yield f"threads ({engine.words()})", Check(partial(runtimes.threads, engine), 120)
    yield "A/A", Check(runtimes.race, 90)
