"""hasten's choice against the best untuned engine and ONNX Runtime's defaults, model by model.

    python benchmarks/speedups.py [MODEL ...] [--out results.json]

Prints a Markdown table. Ratios are paired and within one run; "latency only" marks models whose
weights are random, so that their accuracy says nothing. Also: how long the search took, and the
most memory that it and its workers held at once (PSS).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

from models import MODELS

import hasten
from hasten.cli.screen import PlainScreen
from hasten.records import to_record
from hasten.result import Result


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


def run(name: str, out: Path) -> tuple[Result, float, int, bool]:
    """Optimize one model; return the result, the seconds, the peak memory, whether weights are real."""
    module, data, real = MODELS[name][1]()
    begin = time.monotonic()
    with PeakMemory() as memory, PlainScreen() as listen:
        result = hasten.optimize(
            module,
            data,
            max_drop=0.03 if real else 0.999,
            metric="agreement" if real else "embedding",
            out=out / f"{name}.hasten",
            listen=listen,
        )
    return result, time.monotonic() - begin, memory.peak_bytes, real


def line(name: str, result: Result, seconds: float, peak: int, real: bool) -> str:
    """One row of the table."""
    winner, untuned = result.winner, result.rows[1]
    ratio = winner.ratio
    cells = [
        name if real else f"{name} (latency only)",
        winner.label,
        f"{winner.speedup:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})",
        f"{untuned.speedup:.2f}x",
        f"{MODELS[name][0]}x",
        f"{100 * result.spread:.1f}%",
        str(result.threads),
        result.why if real else "-",
        f"{seconds:.0f} s",
        f"{peak / 2**30:.2f} GiB",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, help="Raw results as JSON.")
    arguments = parser.parse_args()
    head = "| model | winner | over ONNX Runtime's defaults | fastest exact | best recipe | A/A | threads | certificate | search | memory |"
    print(head, "|---|---|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            outcome = run(name, Path(folder))
            print(line(name, *outcome), flush=True)
            records[name] = to_record(outcome[0])
    if arguments.out:
        arguments.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
