"""A server under load for long: does its memory stay flat, is any request lost, do swaps show?

    python benchmarks/soak.py BUNDLE [--minutes 10] [--rate 200] [--swap-every 60]

Requests come at random times over HTTP, one test of a minute after another; the bundle is loaded anew every
so often while they do. Memory is what the serving process has resident, read once a second.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own pieces

from tests.support.servers import ServerProcess

from hasten.evaluation import loadtest

_PATIENCE_S = 60.0
_AFTER_NS = 200_000_000
"""A swap is felt so long: and its time and the requests' are told to about that."""


@dataclass
class Soak:
    """What it came to.

    Attributes:
        resident_bytes: Resident memory of the serving process, read once a second.
        outcomes: Number of requests by outcome.
        due_ns: Times on the monotonic clock at which the rightly answered requests were due.
        latency_ns: Time from each of `due_ns` to its answer.
        swaps: Times at which a new load of the bundle was asked for and was done.
        failed: Reason why the bundle could no longer be loaded anew; empty where it always could.
    """

    resident_bytes: list[int] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    due_ns: list[int] = field(default_factory=list)
    latency_ns: list[int] = field(default_factory=list)
    swaps: list[tuple[int, int]] = field(default_factory=list)
    failed: str = ""

    @property
    def growth_bytes(self) -> float:
        """Of the last fifth over the second: the first is its warming up."""
        fifth = max(1, len(self.resident_bytes) // 5)
        second, last = self.resident_bytes[fifth : 2 * fifth], self.resident_bytes[-fifth:]
        return float(np.median(last) - np.median(second))

    @property
    def beside_swaps(self) -> np.ndarray:
        """Which of the answers were due while the bundle was being loaded, or just after."""
        due_ns = np.array(self.due_ns)
        found = np.zeros(len(due_ns), bool)
        for begin_ns, end_ns in self.swaps:
            found |= (begin_ns <= due_ns) & (due_ns <= end_ns + _AFTER_NS)
        return found


def soak(
    bundle: Path, seconds: float, rate_per_s: float, swap_every_s: float, swaps: int = 0
) -> Soak:
    """Serve a bundle, and put it under load for some seconds, and until it was swapped so often."""
    result = Soak()
    with ServerProcess(f"soaked={bundle}", "--allow-control") as server:
        ended = threading.Event()
        watchers = [
            threading.Thread(target=_watch_memory, args=(server, result, ended)),
            threading.Thread(target=_swap, args=(server, result, swap_every_s, ended)),
        ]
        for watcher in watchers:
            watcher.start()
        end_s = time.monotonic() + seconds
        try:
            while (left_s := end_s - time.monotonic()) > 0 or (
                len(result.swaps) < swaps and not result.failed
            ):
                _test(server, result, rate_per_s, min(60.0, max(left_s, 1.0)))
        finally:
            ended.set()
            for watcher in watchers:
                watcher.join()
    return result


def _test(server: ServerProcess, result: Soak, rate_per_s: float, seconds: float) -> None:
    test = loadtest.run(
        f"http://{server.host}",
        "soaked",
        rate_per_s,
        max(seconds, 0.5),
        warmup_s=0.2,
        bounds=loadtest.Bounds(grace_s=_PATIENCE_S),
    )
    for outcome in test.outcomes:
        name = f"{outcome.kind} {outcome.status or ''} {outcome.message}".strip()
        result.outcomes[name] = result.outcomes.get(name, 0) + outcome.count
    begin_ns = time.monotonic_ns() - test.elapsed_ns
    result.due_ns += [begin_ns + due for due in test.due_ns]
    result.latency_ns += test.latency_ns


def _watch_memory(server: ServerProcess, result: Soak, ended: threading.Event) -> None:
    status = Path(f"/proc/{server.serving_pid()}/status")
    while not ended.wait(1.0):
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        result.resident_bytes.append(1024 * int(line.split()[1]))


def _swap(server: ServerProcess, result: Soak, every_s: float, ended: threading.Event) -> None:
    """Have the bundle loaded anew: opened, warmed, compared, and put in its own place."""
    while not ended.wait(every_s):
        begin_ns = time.monotonic_ns()
        client = http.client.HTTPConnection(server.host, timeout=_PATIENCE_S)
        try:
            client.request("POST", "/v2/repository/models/soaked/load")
            response = client.getresponse()
            said = response.read()
        except (OSError, http.client.HTTPException) as error:
            result.failed = repr(error)
            return
        finally:
            client.close()
        if response.status != 200:
            result.failed = said.decode(errors="replace")
            return
        result.swaps.append((begin_ns, time.monotonic_ns()))


def main() -> None:
    """Print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--swap-every", type=float, default=60.0)
    given = parser.parse_args()
    result = soak(given.bundle, 60 * given.minutes, given.rate, given.swap_every)
    memory = np.array(result.resident_bytes) / 2**20
    print(
        f"memory: {memory[0]:.1f} MiB at first, {memory[-1]:.1f} at last, {memory.max():.1f} at most"
    )
    print(f"growth, last fifth over second: {result.growth_bytes / 2**20:+.2f} MiB")
    latency_ns, swapping = np.array(result.latency_ns), result.beside_swaps
    for name, of in (("while swapping", swapping), ("else", ~swapping)):
        if of.any():
            p50, p99, most = np.quantile(latency_ns[of], (0.5, 0.99, 1)) / 1e6
            print(
                f"{name}: {of.sum():,} answers, p50 {p50:.3g} ms, p99 {p99:.3g} ms, most {most:.3g}"
            )
    for minute in range(int(given.minutes)):
        of = (np.array(result.due_ns) - result.due_ns[0]) // 60_000_000_000 == minute
        if of.any():
            p99 = np.quantile(latency_ns[of], 0.99) / 1e6
            print(f"minute {minute + 1}: p99 {p99:.3g} ms")
    spans = [f"{(end - begin) / 1e9:.1f}" for begin, end in result.swaps]
    print(f"{len(spans)} swaps, which took {', '.join(spans)} s")
    print("; ".join(f"{count:,} {name}" for name, count in result.outcomes.items()))
    if result.failed:
        sys.exit(f"a swap failed: {result.failed}")


if __name__ == "__main__":
    main()
