"""Attack hasten's surfaces with inputs made from good ones, and keep each input that does harm.

    python -m fuzz [--seconds 600] [--only http --only packed] [--seed 0]
    python -m fuzz findings/http-0123456789abcdef       # check kept inputs again
    python -m fuzz --guided --only packed               # by coverage, where the package atheris is installed

An input does harm where the code under test crashes, hangs, raises what isn't one of hasten's own errors, gives an
answer that isn't one of the protocol, takes too much time or memory, or makes another client of a server wait.
Each such input is written to a file that is named by its surface and its hash, with the reason beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from fuzz import isolated, served
from fuzz.corpus import harmful
from fuzz.guided import guided
from fuzz.isolated import Outcome
from fuzz.surface import SURFACES, Finding, Surface, input_of, surface_of

_BATCH = 128
"""Inputs that are made and checked at a time."""
_KEPT = 3
"""Findings of one cause that are kept."""


class Attacks:
    """Surfaces under attack, with one server for all that need one.

    Args:
        folder: Folder for all that is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._running: served.Running | None = None

    def outcomes(self, surface: Surface, inputs: Iterator[Sequence[bytes]]) -> Iterator[Outcome]:
        """Check inputs, some at a time, and yield what came of them."""
        attack = partial(isolated.attack, surface)
        if isinstance(surface, served.Served):
            if self._running is None:
                self._running = self._stack.enter_context(served.Running(self._folder))
            surface.running = self._running
            attack = partial(served.attack, surface)
        yield from map(attack, inputs)

    def __enter__(self) -> Attacks:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def batches(
    surface: Surface, seed: int, seconds: float, count: int | None = None
) -> Iterator[list[bytes]]:
    """Yield what did harm once, then inputs that are made for a few seconds, or so many."""
    if known := harmful(surface):
        yield known
    seeds, end_s, place = surface.seeds(), time.monotonic() + seconds, 0
    while time.monotonic() < end_s and (count is None or place < count):
        stop = place + _BATCH if count is None else min(place + _BATCH, count)
        yield [input_of(surface, seeds, seed, number) for number in range(place, stop)]
        place = stop


def line(surface: Surface, outcome: Outcome, seconds: float) -> str:
    """Say in a line what came of a surface's inputs."""
    counts = ", ".join(f"{count:,} {word}" for word, count in outcome.counts.most_common(8))
    total, mib = sum(outcome.counts.values()), outcome.most_kib / 1024
    most = f"{1000 * outcome.most_s:.0f} ms of a processor for one input"
    if surface.served:
        most = f"{1000 * outcome.most_s:.0f} ms until another client was answered"
    return (
        f"{surface.name}: {total:,} inputs in {seconds:.0f} s, {len(outcome.findings):,} findings ({counts}); at most "
        f"{most}, and {mib:.1f} MiB"
    )


def keep(findings: Sequence[Finding], folder: Path) -> None:
    """Write the first findings of each cause to files, and print them."""
    seen = Counter[str]()
    for finding in findings:
        seen[finding.cause] += 1
        if seen[finding.cause] > _KEPT:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / finding.file).write_bytes(finding.data)
        (folder / f"{finding.file}.txt").write_text(f"{finding.kind}\n{finding.why}\n")
        print(
            f"  {finding.kind}: {folder / finding.file}: {' | '.join(finding.why.strip().splitlines()[-2:])}"
        )
    for cause, count in seen.items():
        if count > _KEPT:
            print(f"  {count:,} in all of {cause}")


def guide(names: Sequence[str], seconds: float, seed: int, findings: Path) -> None:
    """Let coverage guide the changes of one surface, to the end of this process."""
    with tempfile.TemporaryDirectory() as place:
        surface = surface_of(names[0], Path(place))
        if len(names) > 1 or surface.served:
            sys.exit("coverage guides one surface of files: say which by --only, as --only packed")
        guided(surface, seconds, seed, findings)


def main() -> None:
    """Read the command line, attack, and end with 1 where something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="kept inputs to check again")
    parser.add_argument("--seconds", type=float, default=60, help="time for all surfaces together")
    parser.add_argument(
        "--only", action="append", choices=SURFACES, help="a surface; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0, help="other inputs for each")
    parser.add_argument(
        "--guided", action="store_true", help="let coverage guide; one surface of files"
    )
    parser.add_argument("--count", type=int, help="most inputs for each surface")
    parser.add_argument(
        "--findings", type=Path, default=Path("findings"), help="folder to keep inputs in"
    )
    given = parser.parse_args()
    os.nice(5)
    names = given.only or list(SURFACES)
    if given.files:
        names = sorted({file.name.partition("-")[0] for file in given.files})
    if given.guided:
        guide(names, given.seconds, given.seed, given.findings)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as place, Attacks(Path(place)) as attacks:
        for name in names:
            surface = surface_of(name, Path(place))
            inputs: Iterator[Sequence[bytes]]
            inputs = batches(surface, given.seed, given.seconds / len(names), given.count)
            if given.files:
                surface.seeds()
                own = [file for file in given.files if file.name.startswith(f"{name}-")]
                inputs = iter([[file.read_bytes()] for file in own])
            began_s, total = time.monotonic(), Outcome()
            for outcome in attacks.outcomes(surface, inputs):
                total.add(outcome)
            print(line(surface, total, time.monotonic() - began_s), flush=True)
            keep(total.findings, given.findings)
            found += total.findings
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
