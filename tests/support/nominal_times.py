"""Latencies that the load of the machine has no part in: engines take as long as their settings say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from unittest.mock import patch
from weakref import WeakKeyDictionary

from tests.support.faults import SLOW_NS, STALL_NS, hurried

from hasten.core.records import to_record
from hasten.core.workers import Worker

Asked: TypeAlias = Mapping[str, Any]
"""What a worker was asked to open: its engine and its artifact, as records."""
BASE_NS = 10_000
"""Time of a request of an engine that is busy with nothing else."""
_PATIENCE_S = 3600.0
_known: list[Callable[[Asked], Sequence[int]]] = []
"""What tells the latencies of engines, innermost last."""


def busy_on_purpose(asked: Asked) -> Sequence[int]:
    """Return the latencies that an engine's settings say, to be repeated; none of any other engine."""
    engine = asked["engine"]
    if "busy_ns" not in engine:
        return ()
    slow_ns = SLOW_NS if engine["fault"] == "slow" else 0
    own_ns = BASE_NS + (int(engine["busy_ns"]) or slow_ns)
    stall_every = int(engine["stall_every"])
    if not stall_every:
        return (own_ns,)
    return (own_ns,) * (stall_every - 1) + (own_ns + STALL_NS,)


@contextlib.contextmanager
def nominal_times(
    latencies_of: Callable[[Asked], Sequence[int]] = busy_on_purpose,
) -> Iterator[None]:
    """Let engines that are busy on purpose take exactly as long as that.

    Workers answer every request, and die or hang, as ever: only what a clock said is replaced. On a
    machine with other work, a clock may say that the slower of two engines was the faster. No engine
    is busy while it predicts, which no run times, or is timed where its latencies are known.

    Args:
        latencies_of: Latencies of what a worker has open, in nanoseconds, which are repeated as often
            as there are requests; none where the worker's own are to be kept.
    """
    opened: WeakKeyDictionary[Worker, Asked] = WeakKeyDictionary()
    ask = Worker.ask

    def told(self: Worker, do: str, *, limit_s: float, **command: Any) -> Any:
        if do == "open":
            opened[self] = to_record(command)
        known = latencies_of(opened[self]) if do == "time" and self in opened else ()
        with hurried(self.pid) if known or do == "predict" else contextlib.nullcontext():
            reply = ask(self, do, limit_s=limit_s, **command)
        if not known:
            return reply
        return [nearly(known[i % len(known)], command["first"]) for i in range(len(reply))]

    _known.append(latencies_of)
    try:
        with patch.object(Worker, "ask", told):
            yield
    finally:
        _known.remove(latencies_of)


def nominal(asked: Asked) -> Sequence[int]:
    """Return the latencies of an engine in the block of `nominal_times` at work; none of any other engine."""
    return next(filter(None, (latencies_of(asked) for latencies_of in reversed(_known))), ())


def nearly(latency_ns: int, first: int) -> int:
    """Return a latency in the round that begins at a request; rounds differ by 2%, for all entrants alike."""
    return latency_ns * (98 + first % 5) // 100


@contextlib.contextmanager
def only_hanging_engines_are_limited() -> Iterator[None]:
    """Let the limit of a trial end engines that hang on purpose, and no other.

    A busy machine may hold up any process for seconds.
    """
    hanging: WeakKeyDictionary[Worker, bool] = WeakKeyDictionary()
    ask = Worker.ask

    def patient(self: Worker, do: str, *, limit_s: float, **command: Any) -> Any:
        limited = do == "time" and self in hanging
        reply = ask(self, do, limit_s=limit_s if limited else _PATIENCE_S, **command)
        if do == "open" and to_record(command["engine"]).get("fault") == "hang":
            hanging[self] = True
        return reply

    with patch.object(Worker, "ask", patient):
        yield
