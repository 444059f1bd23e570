"""A real server under load while much goes wrong at once: is each answer right, or a clear refusal?

    python benchmarks/chaos.py [--seconds 600] [--seed 0] [--model photos]

`hasten serve` answers over HTTP, over gRPC and, where HAProxy is installed, behind it, as many requests as
80% of what it was measured to answer just before. Beside that it is killed, its supervisor is, the disk is full,
memory runs out, it is stopped, its wall clock jumps, clients read slowly or send half a request, and its model is
swapped; in a random order that the seed repeats. A wrong answer, none
within a minute, a status that refuses nothing, a connection that is closed though nothing was killed, and a
server that doesn't come back are wrong: each is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_suffix("")))

from clock import Clock
from door import Door, installed
from faults import Event, Scene, Storm, faults, until
from known import Known, handwriting, photos
from load import Way, capacity_per_s, offer
from unit import BACK_S, Unit
from verdict import Verdict, judge

from hasten.errors import InputError

MODELS = {"photos": photos, "digits": handwriting}
SHARE = 0.8
"""Of what the server can do: what it is asked."""
PROXY = "kill the proxy: HAProxy isn't installed; the system has it, and so has pip install 'hasten[ray]'"
_MEASURED_S = 5.0
_CALM_SHARE = 0.1
"""Of the whole time: without faults, to compare with."""
_GAP_S = 2.5
"""Mean time from one fault to the next: most of them overlap."""


@dataclass
class Chaos:
    """What came of a run.

    Attributes:
        calm: Counts and latencies of the load without faults.
        faulty: Counts and latencies of the load beside faults.
        events: Faults that were done.
        left_out: Faults that can't be done here, and why.
        capacity_per_s: Requests per second that the server could answer.
        wrongs: Sentences that say what the server did wrong once all faults were over.
        log: Lines of the server's log, and one for each fault.
    """

    calm: Verdict
    faulty: Verdict
    events: list[Event]
    left_out: list[str]
    capacity_per_s: float
    wrongs: list[str] = field(default_factory=list)
    log: str = ""

    @property
    def all_wrongs(self) -> list[str]:
        """Everything that was wrong, a line each."""
        counted = [*self.calm.wrongs.items(), *self.faulty.wrongs.items()]
        return [f"{count:,} times: {wrong}" for wrong, count in counted] + self.wrongs


def run(
    model: Callable[[Path], Known],
    folder: Path,
    seconds: float,
    seed: int,
    gap_s: float = _GAP_S,
    without: Collection[str] = (),
) -> Chaos:
    """Serve a model, put it under load without and with faults, and judge what came.

    Args:
        model: Function that makes the model in a new folder.
        folder: Empty folder.
        seconds: Time of the load, a tenth of it without faults.
        seed: Seed of the faults and of the requests.
        gap_s: Mean time from one fault to the next.
        without: Names of faults that aren't done.
    """
    known, left_out, clock = model(folder / "model"), [], None
    try:
        clock = Clock(folder / "clock")
    except InputError as error:
        left_out.append(f"clock jump: {error}")
    with contextlib.ExitStack() as stack:
        (folder / "unit").mkdir()
        env = clock.env if clock is not None else {}
        unit = stack.enter_context(Unit(known.generations[0], folder / "unit", env))
        ways = [Way("HTTP", "http", unit.http_port), Way("gRPC", "grpc", unit.grpc_port)]
        door = None
        if installed():
            door = stack.enter_context(Door(unit, folder / "door"))
            ways.append(Way("HTTP behind HAProxy", "http", door.http_port))
        else:
            left_out.append(PROXY)
        capacity = capacity_per_s(ways, known, _MEASURED_S)
        rate = SHARE * capacity
        calm_s = _CALM_SHARE * seconds
        calm = offer(ways, known, rate, calm_s, seed)
        done = {
            name: do
            for name, do in faults(Scene(unit, known, door, clock)).items()
            if name not in without
        }
        storm = Storm(done, seconds - calm_s, gap_s, seed)
        faulty = offer(ways, known, rate, seconds - calm_s, seed, storm.start)
        storm.join()
        names = [way.name for way in ways]
        result = Chaos(
            judge(dict(zip(names, calm, strict=True)), [], calm_s),
            judge(dict(zip(names, faulty, strict=True)), storm.events, seconds - calm_s),
            storm.events,
            left_out,
            capacity,
        )
        result.wrongs = _end(unit, door, known, ways, seed)
        result.log = _log(unit, storm.events)
    return result


def _log(unit: Unit, events: list[Event]) -> str:
    """Return what the server wrote to its log, and the faults with their times, in order."""
    lines = unit.errors.splitlines()
    for event in events:
        began_s = time.time() - (time.monotonic_ns() - event.begin_ns) / 1e9
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began_s))
        took_s = (event.end_ns - event.begin_ns) / 1e9
        lines.append(
            json.dumps(
                {
                    "time": f"{text}.{int(began_s % 1 * 1000):03}Z",
                    "fault": event.name,
                    "took_s": took_s,
                    "said": event.said,
                    "failed": event.failed,
                }
            )
        )
    return "\n".join(lines) + "\n"


def _end(unit: Unit, door: Door | None, known: Known, ways: list[Way], seed: int) -> list[str]:
    """Ask once more after all faults, and end the server; say what is wrong."""
    if not unit.comes_back():
        return ["after all faults the server wasn't ready"]
    if door is not None and not until(door.ready, BACK_S):
        return ["after all faults HAProxy didn't hand on requests"]
    after = judge(
        {
            way.name: traffic
            for way, traffic in zip(ways, offer(ways, known, 30, 2, seed), strict=True)
        },
        [],
        2.0,
    )
    wrongs = [
        f"after all faults: {count:,} times: {wrong}" for wrong, count in after.wrongs.items()
    ]
    if not after.latency_ns:
        wrongs.append("after all faults no request was answered rightly")
    if code := unit.end():
        wrongs.append(f"the server was asked to end, and its exit code is {code}")
    return wrongs


def report(result: Chaos) -> None:
    """Print what came of a run."""
    for line in result.left_out:
        print(f"left out: {line}")
    print(f"the server could answer {result.capacity_per_s:,.4g} a second; {SHARE:.0%} was asked")
    for name, verdict in (("without faults", result.calm), ("with faults", result.faulty)):
        p50, p99 = verdict.quantile_ms(0.5), verdict.quantile_ms(0.99)
        print(
            f"{name}: {verdict.answered_per_s:,.4g} right answers a second, "
            f"p50 {p50:.3g} ms, p99 {p99:.3g} ms"
        )
    for name, counts in sorted(result.faulty.counts.items()):
        done = [event for event in result.events if event.name == name]
        said = ", ".join(sorted({event.said for event in done if event.said}))
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
        times = f", {len(done)} times" if done else ""
        print(f"beside {name}{times}{said and f' ({said})'}: {kinds}")


def main() -> None:
    """Run, print, and say by the exit code whether anything was wrong."""
    summary, *_ = str(__doc__).split("\n\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--seconds", type=float, default=600.0, help="Of load, a tenth of it calm.")
    parser.add_argument("--seed", type=int, default=0, help="Of the faults and of the requests.")
    parser.add_argument("--model", choices=sorted(MODELS), default="photos")
    parser.add_argument("--log", type=Path, help="Where the server's own log goes.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(MODELS[given.model], Path(folder), given.seconds, given.seed)
    report(result)
    if given.log is not None:
        given.log.write_text(result.log)
    if result.all_wrongs:
        sys.exit("\n".join(["wrong:", *result.all_wrongs]))
    print("each answer was right or a clear refusal, and the server came back each time")


if __name__ == "__main__":
    main()
