"""hasten's choice against ONNX Runtime's defaults and every engine untuned, model by model.

    python benchmarks/speedups.py [MODEL ...] [--out results.json]

Prints a Markdown table. Ratios are paired and within one run; "latency only" marks models whose
weights are random, so that their accuracy says nothing. Also: how long the search took, from the
module to the bundle, and the most memory that it and its workers held at once (PSS).

The untuned engines (`untuned.py`) are timed against the finished bundle, each in rounds of its own,
by `hasten.bench`: "over untuned" is the least that the bundle is faster than any of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from models import MODELS

import hasten
from hasten.benchmark import Comparison
from hasten.cli.screen import PlainScreen
from hasten.frontends.source import load_model
from hasten.records import to_record
from hasten.result import Result

UNTUNED = Path(__file__).parent / "untuned.py"


class PeakMemory:
    """The most memory, by PSS, that this process and all below it held while the block ran."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import os

        while not self._stop.wait(1.0):
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss, _tree(os.getpid()))))


def _tree(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    except OSError:
        pass
    return found


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One model's search, and the bundle beside the untuned engines."""

    result: Result
    untuned: dict[str, Comparison]
    seconds: float
    peak_bytes: int
    real: bool


def run(name: str, folder: Path) -> Outcome:
    """Optimize one model, then compare its bundle with every engine untuned."""
    module, data, real = MODELS[name][1]()
    begin = time.monotonic()
    with PeakMemory() as memory, PlainScreen() as listen:
        result = hasten.optimize(
            module,
            data,
            max_drop=0.03 if real else 0.999,
            metric="agreement" if real else "embedding",
            out=folder / f"{name}.hasten",
            listen=listen,
        )
    seconds = time.monotonic() - begin
    return Outcome(result, untuned(module, data, result, folder), seconds, memory.peak_bytes, real)


def untuned(module: Any, data: Any, result: Result, folder: Path) -> dict[str, Comparison]:
    """Time the bundle against every engine's defaults, on as many processors as it has threads."""
    place = folder / "exported"
    place.mkdir()

    def sample(_: Any) -> dict[str, Any]:
        return {key: array[0] for key, array in data.inputs([0]).items()}

    try:
        os.environ["UNTUNED_MODEL"] = str(load_model(module, sample, place).path)
        return {
            engine: hasten.bench(result.bundle, against=f"{UNTUNED}:{engine}", data=data)
            for engine in ("onnxruntime", "openvino")
        }
    finally:
        shutil.rmtree(place)


def line(name: str, outcome: Outcome) -> str:
    """One row of the table."""
    result, winner = outcome.result, outcome.result.winner
    over = {engine: compared.bundle.ratio for engine, compared in outcome.untuned.items()}
    best = max(over, key=lambda engine: over[engine].estimate)
    cells = [
        name if outcome.real else f"{name} (latency only)",
        winner.label,
        _times(winner.ratio),
        f"{_times(over[best])}, {best}",
        f"{MODELS[name][0]}x",
        f"{100 * result.spread:.1f}%",
        str(result.threads),
        result.why if outcome.real else "-",
        f"{outcome.seconds:.0f} s",
        f"{outcome.peak_bytes / 2**30:.2f} GiB",
    ]
    return "| " + " | ".join(cells) + " |"


def _times(ratio: Any) -> str:
    return f"{1 / ratio.estimate:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, help="Raw results as JSON.")
    arguments = parser.parse_args()
    head = "| model | winner | over ONNX Runtime's defaults | over untuned | best recipe | A/A | threads | certificate | search | memory |"
    print(head, "|---|---|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            outcome = run(name, Path(folder))
            print(line(name, outcome), flush=True)
            records[name] = to_record(outcome)
    if arguments.out:
        arguments.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
