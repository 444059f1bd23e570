"""Model servers side by side on loopback: the same model, the same client, in turns.

    python benchmarks/servers.py --setup [SERVER ...]
    python benchmarks/servers.py [SERVER ...] [--bundle BUNDLE] [--rounds N] [--json results.json]

The first makes an environment for each peer; the second times whatever is there, and says what isn't
and why. All servers are up throughout, and one is asked at a time, in rounds of random order: ratios
are of rounds. Every answer is checked. Each peer answers by `hasten.load(bundle)`, so that the
model's own time is the same everywhere.

Two models: 1,000 float32 that come back as they are, beside an echo on bare uvicorn, the floor; and
what `--bundle` names, as an EfficientNet-Lite0, beside the model alone in this process, and beside the
floor once more, which takes the same bytes and gives as many back. That one is
also asked at a fixed rate, with latency from when a request was due: every server at 80% of what
hasten answers at most, and hasten at twice that, with deadlines.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_suffix("")))
import numpy as np
from catalogue import FLOOR, HASTEN, SERVERS, Server, Way, set_up
from findings import (
    MANY,
    OVERLOAD,
    Found,
    Overload,
    client_line,
    closed_table,
    open_table,
    overload_table,
    server_line,
)
from formats import SHARED
from processes import Running, idle_share, started
from subjects import Subject, identity_bundle
from turns import Block, Client, alone, take_turns

from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.measure.environment import environment

ALONE = "the model alone"
IDLE_S, SETTLE_S = 3.0, 3.0
SHARE = 0.8
"""Of what hasten answers at most: the rate for all."""
TOLERANCE = 0.02
"""Of the largest number of an answer: int8 kernels differ by so much between batch sizes."""
_TIGHT = 5
"""Times the p50 with one client: a deadline that leaves little room for batches."""
_MODEL_BLOCK = 4
"""A block with a model in it is longer by that than one without."""


@dataclass(frozen=True)
class Settings:
    """How long and how often.

    Attributes:
        rounds: Number of rounds with closed loops.
        block_s: Seconds of one closed loop against a server that runs no model.
        open_rounds: Number of rounds with open loops.
        open_s: Seconds of one open loop.
        deadline_ms: Tight deadline under overload; 0 for five times the median latency with one
            client.
    """

    rounds: int
    block_s: float
    open_rounds: int
    open_s: float
    deadline_ms: float


@dataclass(frozen=True)
class Contestant:
    """A server that is up, asked one way."""

    running: Running
    way: Way
    requests: Path

    @property
    def name(self) -> str:
        return f"{self.running.server.name} / {self.way.format}"

    def job(self, subject: Subject, **settings: Any) -> dict[str, Any]:
        """Return what the client is told."""
        return {
            "port": self.running.place.port,
            "format": self.way.format,
            "folder": str(self.requests),
            "tolerance": subject.tolerance if self.running.server.serves else 0.0,
            **settings,
        }


class Comparison:
    """Servers beside one another, serving one subject.

    Args:
        subject: The model that is served.
        running: Running servers by name.
        folder: Empty folder for the requests.
        leanest: Whether each server is asked in its leanest way only.
        settings: Lengths and numbers of the loops.
        found: Findings, filled as the loops end.
    """

    def __init__(
        self,
        subject: Subject,
        running: Mapping[str, Running],
        folder: Path,
        leanest: bool,
        settings: Settings,
        found: Found,
    ) -> None:
        self._subject, self._folder, self._settings, self._found = subject, folder, settings, found
        self._client = Client()
        self._contestants = [
            Contestant(one, way, subject.lay_out(one.server, way, folder / name / way.format))
            for name, one in running.items()
            for place, way in enumerate(one.server.ways)
            if not leanest or place == 0 or way.format == SHARED
        ]
        for each in self._contestants:
            if each.way.format == SHARED:
                subject.register(each.running.place.port)
        self._block_s = settings.block_s * (_MODEL_BLOCK if leanest else 1)

    def closed(self) -> None:
        """Ask with one client and with many, in turns."""
        ask = {each.name: self._closed(each) for each in self._contestants}
        if self._found.base == ALONE:
            ask[ALONE] = alone(self._subject.alone, self._block_s)
        self._found.rounds = take_turns(ask, self._settings.rounds, MANY, say)

    def _closed(self, contestant: Contestant) -> Callable[[int], Block]:
        def block(clients: int) -> Block:
            settings = {"clients": clients, "warmup_s": self._block_s / 4}
            job = contestant.job(self._subject, duration_s=self._block_s, **settings)
            return Block.of(self._client.run(**job))

        return block

    def open(self) -> None:
        """Ask everyone at a rate that hasten keeps up with, or where it isn't there the fastest."""
        rounds = {each.name: self._found.rounds[each.name] for each in self._contestants}
        rates = {
            name: one.rate.estimate
            for name, one in rounds.items()
            if not one.failed and SERVERS[name.partition(" / ")[0]].serves
        }
        if not rates:
            return
        leanest = f"{HASTEN} / {SERVERS[HASTEN].ways[0].format}"
        if leanest not in rates:
            say("hasten isn't there: the rate is of the fastest that is")
        self._found.rate_per_s = SHARE * rates.get(leanest, max(rates.values()))
        order, rng = [each for each in self._contestants if each.name in rates], random.Random(0)
        for place in range(self._settings.open_rounds):
            rng.shuffle(order)
            for each in order:
                block = self._open(each, self._found.rate_per_s, place)
                self._found.open.setdefault(each.name, []).append(block)
        for each in self._contestants:
            if each.running.server.name == HASTEN and each.name in rates:
                self._overload(each)

    def _open(self, contestant: Contestant, rate_per_s: float, seed: int) -> Block:
        settings = {"rate_per_s": rate_per_s, "duration_s": self._settings.open_s, "seed": seed}
        found = self._client.run(**contestant.job(self._subject, clients=MANY, **settings))
        contestant.running.rest()
        return Block.of(found)

    def _overload(self, contestant: Contestant) -> None:
        """Ask for twice what can be answered, with a deadline on each request.

        What can be answered is found anew before and after each time: machines change. One deadline
        is tight; with the other there is as long as the 16 clients of those closed loops wait.
        """
        rounds = self._found.rounds[contestant.name]
        many = [block.p99_ns for block in rounds.many.values() if block.p99_ns is not None]
        tight_ns = 1e6 * self._settings.deadline_ms or _TIGHT * rounds.p50.estimate
        for deadline_ns in (tight_ns, float(np.median(many))):
            folder = self._folder / f"overload-{contestant.way.format}-{deadline_ns:.0f}"
            server, way = contestant.running.server, contestant.way
            requests = self._subject.lay_out(server, way, folder, round(deadline_ns / 1e3))
            hurried = Contestant(contestant.running, way, requests)
            overload = Overload(contestant.name, deadline_ns)
            overload.memory_bytes.append(contestant.running.memory_bytes())
            ask = self._closed(contestant)
            before = ask(MANY)
            for place in range(self._settings.open_rounds):
                job = hurried.job(
                    self._subject,
                    clients=MANY,
                    rate_per_s=OVERLOAD * before.rate_per_s,
                    duration_s=self._settings.open_s,
                    seed=place,
                )
                found = self._client.run(**job)
                within = sum(ns <= deadline_ns for ns in found.get("latency_ns", ()))
                after = ask(MANY)
                overload.blocks.append(Block.of(found))
                overload.goodput_per_s.append(within / self._settings.open_s)
                overload.capacity_per_s.append((before.rate_per_s + after.rate_per_s) / 2)
                before = after
            overload.memory_bytes.append(contestant.running.memory_bytes())
            self._found.overload.append(overload)

    def close(self) -> None:
        """End the client."""
        self._client.close()


def compare(
    subject: Subject, servers: Sequence[Server], base: str, settings: Settings, folder: Path
) -> Found:
    """Start the servers, take turns, and end them."""
    found, leanest = Found(base), base == ALONE
    places, requests = folder / "servers", folder / "requests"
    places.mkdir(parents=True)

    def first(server: Server) -> bytes:
        return subject.request(server, server.ways[0])

    with started(servers, subject.name, subject.bundle, places, first) as (running, left_out):
        found.left_out = left_out
        for name, why in left_out.items():
            say(f"{name} is left out: {why}")
        time.sleep(SETTLE_S)
        found.idle = idle_share(running.values(), IDLE_S)
        found.memory_bytes = {name: one.memory_bytes() for name, one in running.items()}
        found.versions = {name: one.server.version() for name, one in running.items()}
        comparison = Comparison(subject, running, requests, leanest, settings, found)
        try:
            comparison.closed()
            if leanest:
                comparison.open()
        finally:
            comparison.close()
    return found


def say(text: str) -> None:
    """Tell at once, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def report(subject: Subject, found: Found) -> None:
    """Print a subject's tables."""
    versions = ", ".join(dict.fromkeys(found.versions.values()))
    print(f"\n## {subject.name}\n\n{closed_table(found)}\n\n{versions}.", flush=True)
    print(client_line(found), server_line(found), flush=True)
    if found.open:
        print(f"\nAt {found.rate_per_s:.0f} requests/s, by chance in time:\n\n{open_table(found)}")
    if found.overload:
        print(
            f"\nAt twice what it answers, with a deadline:\n\n{overload_table(found)}", flush=True
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    summary, *_ = str(__doc__).split("\n\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=", ".join(SERVERS))
    parser.add_argument("--setup", action="store_true", help="Make the servers' environments.")
    parser.add_argument("--bundle", type=Path, help="A second model, as an EfficientNet-Lite0.")
    parser.add_argument("--rounds", type=int, default=20, help="Of the closed loops, at least 2.")
    parser.add_argument("--seconds", type=float, default=0.5, help="Of each block of them.")
    parser.add_argument("--open-rounds", type=int, default=3)
    parser.add_argument("--open-seconds", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="Where the raw results go.")
    arguments = parser.parse_args()
    if unknown := set(arguments.servers) - SERVERS.keys():
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    if arguments.rounds < 2:
        parser.error(f"a ratio of rounds needs 2 of them; got --rounds {arguments.rounds}")
    return arguments


def main() -> None:
    arguments = parse()
    names = arguments.servers or list(SERVERS)
    if arguments.setup:
        failed = set_up(names)
        for name, why in failed.items():
            say(f"{name} can't be installed: {why}")
        return
    settings = Settings(
        arguments.rounds,
        arguments.seconds,
        arguments.open_rounds,
        arguments.open_seconds,
        arguments.deadline_ms,
    )
    target = Target.host()
    results: dict[str, Any] = {
        "settings": asdict(settings),
        "target": to_record(target),
        "environment": to_record(environment(target)),
        "subjects": {},
    }
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        subjects = [(Subject("identity", identity_bundle(folder / "identity.hasten"), 0.0), FLOOR)]
        if arguments.bundle:
            subjects.append(
                (Subject(arguments.bundle.stem, arguments.bundle.resolve(), TOLERANCE), ALONE)
            )
        for subject, base in subjects:
            taking = [
                SERVERS[name]
                for name in names
                if base == FLOOR or name == FLOOR or SERVERS[name].serves
            ]
            found = compare(subject, taking, base, settings, folder / subject.name)
            report(subject, found)
            subject.close()
            results["subjects"][subject.name] = asdict(found)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
