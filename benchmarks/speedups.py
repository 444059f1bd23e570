"""hasten's choice beside each toolkit's default int8 and every engine untuned, model by model.

    python benchmarks/speedups.py [MODEL ...] [--out results.json] [--cache FOLDER]

Prints two Markdown tables. In the first each version has its accuracy on the samples that the search
never saw, its speed over ONNX Runtime's fp32 defaults in paired rounds of one race, and its p50 over the
floor: the least time in which this machine could do the model's layers at all. In the second stand the
runs: what was certified, how much faster hasten's choice is than the fastest untuned engine and than
the fastest of all that keeps its accuracy, how long the search took from the module to the bundle, and
the most memory that it and its workers held at once (PSS).

"latency only" marks models whose weights are random, so that their accuracy says nothing. Some models
are trained first, on two cores in a few minutes; their weights stay in the cache folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from comparison import HASTEN, RECIPES, UNTUNED, Comparison, Figures, compare
from memory import PeakMemory
from models import CACHE, MODELS, Subject

import hasten
from hasten.cli.screen import PlainScreen
from hasten.core.records import to_record, type_name
from hasten.inputs.models.source import load_model
from hasten.measure.intervals import Ratio
from hasten.measure.race import BASELINE
from hasten.reporting.result import Result

VERSIONS = ("model", "version", "accuracy", "over ONNX Runtime's defaults", "p50", "over the floor")
RUNS = (
    *(
        "model",
        "hasten's choice",
        "certificate",
        "over untuned",
        "over the best within the limit",
    ),
    *("threads", "A/A", "floor", "search", "memory"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One model's search, and its bundle beside the rivals."""

    result: Result
    compared: Comparison
    seconds: float
    peak_bytes: int


def run(name: str, folder: Path, cache: Path) -> Outcome:
    """Optimize one model, then compare its bundle with what there is without hasten."""
    subject = MODELS[name]
    module, data = subject.module(cache), subject.data()
    bundle = folder / f"{name}.hasten"
    begin = time.monotonic()
    with PeakMemory() as memory, PlainScreen() as listen:
        result = hasten.optimize(
            module,
            data,
            max_drop=subject.max_drop,
            metric=subject.metric,
            training=subject.training(),
            out=bundle,
            listen=listen,
        )
    seconds = time.monotonic() - begin

    def sample(_: Any) -> dict[str, Any]:
        return {key: array[0] for key, array in data.inputs([0]).items()}

    with tempfile.TemporaryDirectory(dir=folder) as work:
        exported, place = Path(work) / "exported", Path(work) / "compared"
        exported.mkdir()
        place.mkdir()
        compared = compare(subject, load_model(module, sample, exported).path, bundle, place)
    return Outcome(result, compared, seconds, memory.peak_bytes)


def version_rows(name: str, subject: Subject, outcome: Outcome) -> list[str]:
    """Return the rows of the first table."""
    labels = {BASELINE: "ONNX Runtime fp32", HASTEN: f"**hasten**: {outcome.result.winner.label}"}
    return [
        _row(
            _named(name, subject),
            labels.get(version, version),
            *_cells(one, type_name(subject.metric)),
        )
        for version, one in outcome.compared.figures.items()
    ]


def _cells(one: Figures, metric: str) -> list[str]:
    accuracy = "-"
    if one.score is not None and one.drop is not None:
        accuracy = f"{100 * one.score:.1f}% {metric} ({-100 * one.drop:+z.1f})"
    if one.ratio is None or one.p50_ns is None:
        return [accuracy, one.failed, "-", "-"]
    over = "-" if one.over_floor is None else f"{one.over_floor:.1f}x"
    return [accuracy, _times(one.ratio), f"{one.p50_ns / 1e6:.2f} ms", over]


def run_row(name: str, subject: Subject, outcome: Outcome) -> str:
    """Return the row of the second table."""
    result, compared = outcome.result, outcome.compared
    limit = subject.max_drop if subject.real else float("inf")
    floor_ns = compared.floor_ns
    return _row(
        _named(name, subject),
        result.winner.label,
        result.why if subject.real else "-",
        _over(compared.over(UNTUNED)),
        _over(compared.over((*UNTUNED, *RECIPES), limit)),
        str(compared.standings.threads),
        f"{100 * compared.standings.spread:.1f}%",
        "-" if floor_ns is None else f"{floor_ns / 1e6:.2f} ms",
        f"{outcome.seconds:.0f} s",
        f"{outcome.peak_bytes / 2**30:.2f} GiB",
    )


def _named(name: str, subject: Subject) -> str:
    return name if subject.real else f"{name} (latency only)"


def _over(best: tuple[str, Ratio] | None) -> str:
    return "-" if best is None else f"{_times(best[1])}, {best[0]}"


def _times(ratio: Ratio) -> str:
    return f"{1 / ratio.estimate:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(columns: tuple[str, ...]) -> str:
    return _row(*columns) + "\n" + _row(*("---" for _ in columns))


def main() -> None:
    os.environ.setdefault("HASTEN_LEDGER", "off")  # each run is timed as a first one
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, help="Raw results as JSON.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="Where trained weights are kept.")
    arguments = parser.parse_args()
    print(_head(VERSIONS), flush=True)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            outcomes[name] = run(name, Path(folder), arguments.cache)
            print("\n".join(version_rows(name, MODELS[name], outcomes[name])), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(to_record(outcomes), indent=1))
    print(f"\n{_head(RUNS)}")
    for name, outcome in outcomes.items():
        print(run_row(name, MODELS[name], outcome))


if __name__ == "__main__":
    main()
