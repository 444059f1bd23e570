"""Blocks of requests in rounds of random order, by one client, and what they come to."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from catalogue import FLOOR, environment_python

from hasten.measure.intervals import Ratio, paired_ratio


@dataclass(frozen=True)
class Block:
    """What one block of requests came to.

    Attributes:
        p50_ns: Median latency of the right answers; None where there are none.
        p99_ns: 99th percentile of the right answers' latency; None where there are none.
        rate_per_s: Right answers per second.
        right: Number of right answers.
        failed: Reason why the block doesn't count; empty where it does.
        statuses: Number of answers by HTTP status; 0 stands for a server that hung up.
        unanswered: Number of requests of an open loop that got no answer.
        client_cpu: Share of one processor that the client itself used.
        most_late_ns: By how much an open loop's client itself was late at most.
    """

    p50_ns: float | None = None
    p99_ns: float | None = None
    rate_per_s: float = 0.0
    right: int = 0
    failed: str = ""
    statuses: Mapping[str, int] = field(default_factory=dict)
    unanswered: int = 0
    client_cpu: float = 0.0
    most_late_ns: int = 0

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Read what the client says."""
        if "error" in found:
            return cls(failed=found["error"])
        latency_ns, failed = found["latency_ns"], ""
        if found["wrong"]:
            failed = f"{found['wrong']} wrong answers, as {found['first_failure']!r:.200}"
        elif not latency_ns:
            failed = (
                f"no right answer; statuses {found['statuses']}: {found['first_failure']!r:.200}"
            )
        p50_ns, p99_ns = np.quantile(latency_ns, (0.5, 0.99)) if latency_ns else (None, None)
        return cls(
            None if p50_ns is None else float(p50_ns),
            None if p99_ns is None else float(p99_ns),
            found["right"] / found["elapsed_s"],
            found["right"],
            failed,
            found["statuses"],
            found["unanswered"],
            found["client_cpu"],
            found.get("most_late_ns", 0),
        )


class Client:
    """The client's process, the same for all; ended by `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [environment_python(FLOOR), Path(__file__).with_name("client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, **job: Any) -> dict[str, Any]:
        """Carry out a job, as `client.Job` has it; return what the client says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the client ended; what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        with self._process:  # closes its pipes, which ends it, and waits
            pass


@dataclass
class Rounds:
    """The blocks of one contestant by round.

    Attributes:
        one: Blocks with one client, by round.
        many: Blocks with many clients, by round.
        failed: Reason why the contestant fell out; empty where it didn't.
    """

    one: dict[int, Block] = field(default_factory=dict)
    many: dict[int, Block] = field(default_factory=dict)
    failed: str = ""

    @property
    def p50(self) -> Ratio:
        """Its p50 with one client, in nanoseconds, between rounds."""
        return _level(_latencies(self.one))

    @property
    def rate(self) -> Ratio:
        """Its answers per second with many clients, between rounds."""
        return _level(_rates(self.many))

    def p50_over(self, other: Rounds) -> Ratio:
        """Its p50 with one client over another's, round by round."""
        return paired_ratio(_latencies(self.one), _latencies(other.one), "mean")

    def rate_over(self, other: Rounds) -> Ratio:
        """Its answers per second with many clients over another's, round by round."""
        return paired_ratio(_rates(self.many), _rates(other.many), "mean")


def _latencies(blocks: Mapping[int, Block]) -> dict[int, list[float]]:
    return {place: [block.p50_ns] for place, block in blocks.items() if block.p50_ns is not None}


def _rates(blocks: Mapping[int, Block]) -> dict[int, list[float]]:
    return {place: [block.rate_per_s] for place, block in blocks.items() if block.rate_per_s}


def _level(rounds: Mapping[int, list[float]]) -> Ratio:
    """The middle of a quantity with its interval between rounds: its ratio to 1."""
    return paired_ratio(rounds, {place: [1] for place in rounds}, "mean")


def take_turns(
    ask: Mapping[str, Callable[[int], Block]],
    rounds: int,
    many: int,
    say: Callable[[str], None],
    seed: int = 0,
) -> dict[str, Rounds]:
    """Ask everyone in rounds of random order; who gives a wrong answer, or none, falls out.

    Args:
        ask: Functions by contestant, each from a number of clients to a block.
        rounds: Number of rounds, at least 2.
        many: Clients of the second block.
        say: Function that is told of each contestant that falls out.
        seed: Seed of the contestants' order.
    """
    found = {name: Rounds() for name in ask}
    order, rng = list(ask), random.Random(seed)
    for place in range(rounds):
        rng.shuffle(order)
        for name in [name for name in order if not found[name].failed]:
            mine = found[name]
            for clients, blocks in ((1, mine.one), (many, mine.many)):
                if mine.failed:
                    break
                blocks[place] = ask[name](clients)
                mine.failed = blocks[place].failed
            if mine.failed:
                say(f"{name} falls out: {mine.failed}")
    return found


def alone(answer: Callable[[int], object], seconds: float) -> Callable[[int], Block]:
    """Return what asks a model in this process: one request after another, whoever asks."""

    def block(clients: int) -> Block:
        latency_ns: list[int] = []
        begin_ns = time.perf_counter_ns()
        end_ns = begin_ns + round(1e9 * seconds)
        while (start_ns := time.perf_counter_ns()) < end_ns or not latency_ns:
            answer(len(latency_ns))
            latency_ns.append(time.perf_counter_ns() - start_ns)
        elapsed_s = (time.perf_counter_ns() - begin_ns) / 1e9
        p50_ns, p99_ns = (float(value) for value in np.quantile(latency_ns, (0.5, 0.99)))
        return Block(p50_ns, p99_ns, len(latency_ns) / elapsed_s, len(latency_ns))

    return block


def record(rounds: Rounds) -> dict[str, Any]:
    """Return what a report keeps of them."""
    return dataclasses.asdict(rounds)
