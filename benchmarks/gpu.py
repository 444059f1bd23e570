"""What hasten makes of a model on this host's NVIDIA GPU, beside the bare runtimes, in turns.

    python benchmarks/gpu.py [MODEL ...] [--batches 1 8 32] [--out gpu-results]

First hasten optimizes each model and certifies the result on the model's data. Then each size of batch is a cell: what
hasten chose is raced against torch eager, torch.compile (the baseline, twice), ONNX Runtime on CUDA and TensorRT, in
f32 and in f16. A cell or a runtime that fails is a line with its reason. What is done is kept in the folder, so that a
benchmark that was stopped goes on where it was; its table is table.md there.

--device host runs everything over this host in a GPU's place, and shows no time.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_cells import HASTEN, Line, batched, cell, keep, kept

from hasten import optimize
from hasten.bundle import engine_of, read
from hasten.bundle.covered import certified_sizes
from hasten.core.devices import find_target
from hasten.core.records import from_record
from hasten.core.target import Target
from hasten.errors import HastenError, InputError
from hasten.inputs.data.dataset import Dataset
from hasten.measure.candidate import Single
from hasten.measure.latency import Pace
from hasten.passes.base import Pass

SUBJECTS = (
    "mobilenet_v2",
    "resnet50_224px",
    "efficientnet_b0_224px",
    "transformer",
    "yolov3_tiny",
)
BATCHES = (1, 8, 32)
ROUNDS = 30
TIMED = Pace(warmup_ns=200_000_000, block_ns=100_000_000, limit_s=180)
"""A warm-up of 0.2 s before each turn, since a GPU's clocks fall while others have theirs."""
UNTIMED = Pace(warmup_ns=1, block_ns=1, at_least=1, at_most=1, limit_s=180)
HEADER = ("runtime", "over the baseline", "p50", "p99", "on the stream", "off", "")


@dataclass(frozen=True)
class Chosen:
    """What hasten chose for a model.

    Attributes:
        candidate: Passes and engine of the winner.
        label: Label of the winner, for people.
        status: "certified", "exact" or "uncertified", with the reason.
        sizes: Sizes of batch that the certificate covers.
    """

    candidate: Single
    label: str
    status: str
    sizes: tuple[int, ...]

    def covers(self, batch: int) -> str:
        """Say what the certificate is worth at a size of batch."""
        held = self.status.startswith("certified") and batch not in self.sizes
        covered = f", in batches of {', '.join(map(str, self.sizes))}" if held else ""
        return f"{self.label}; {self.status}{covered}"


def choose(module: Any, data: Dataset, folder: Path, **options: Any) -> Chosen:
    """Optimize a model, or read what an earlier call made of it.

    Args:
        module: The torch module.
        data: Samples that judge it.
        folder: Folder of the bundle.
        **options: Options of `hasten.optimize`.

    Raises:
        HastenError: the model can't be optimized.
    """
    if not (folder / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        optimize(module, data, out=folder, **options)
    manifest = read(folder)
    winner = manifest.winner
    passes = tuple(from_record(Pass, record) for record in winner.passes)
    candidate = Single(passes, engine_of(winner, 1))
    status = f"{manifest.status} ({manifest.why})" if manifest.why else manifest.status
    return Chosen(candidate, winner.label, status, certified_sizes(manifest))


def table(title: str, lines: Sequence[Line], chosen: str, *, timed: bool) -> list[str]:
    """Return a cell as Markdown.

    Args:
        title: Title of the cell.
        lines: Figures of each runtime, or the reason why it has none.
        chosen: Engine that hasten chose, or the reason why it chose none.
        timed: Whether times are shown.
    """
    cells: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER)]
    for line in lines:
        note = line.why or (chosen if line.name == HASTEN else "")
        cells.append((line.name, *_figures(line, timed=timed), note))
    if HASTEN not in {line.name for line in lines}:
        cells.append((HASTEN, *["-"] * (len(HEADER) - 2), chosen))
    rows = ["| " + " | ".join(one.replace("|", "/") for one in row) + " |" for row in cells]
    return [f"### {title}", "", *rows, ""]


def _figures(line: Line, *, timed: bool) -> tuple[str, ...]:
    if line.times is None or line.off is None:
        return ("-",) * 5
    off = f"{line.off:.1e}"
    if not timed:
        return (*["untimed"] * 4, off)
    times, low, high = line.times
    over = f"{times:.2f}x ({low:.2f} to {high:.2f})"
    return (over, _ms(line.p50_ns), _ms(line.p99_ns), _ms(line.device_ns), off)


def _ms(ns: float | None) -> str:
    return "-" if ns is None else f"{ns / 1e6:.3f} ms"


def measure(
    name: str,
    module: Any,
    data: Dataset,
    batches: Sequence[int],
    target: Target,
    folder: Path,
    *,
    pace: Pace,
    count: int,
    choice: Callable[[Path], Chosen],
) -> list[str]:
    """Run all cells of a model, each by itself, and return their tables.

    Args:
        name: Name of the model.
        module: The torch module.
        data: Samples.
        batches: Sizes of batch.
        target: The GPU, or one that isn't here.
        folder: Folder that keeps what is done.
        pace: Lengths of the turns.
        count: Number of rounds.
        choice: Function that has hasten choose, given a folder for the bundle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen: Chosen | None = None
    why = ""
    try:
        chosen = choice(folder / "chosen.hasten")
    except HastenError as error:
        why = f"hasten chose nothing: {error}"
    told = []
    for batch in batches:
        place, title = folder / f"batch-{batch}", f"{name}, batches of {batch}"
        lines = kept(place)
        if lines is None:
            place.mkdir(exist_ok=True)
            try:
                lines = _cell(module, data, batch, chosen, target, place, pace, count)
            except HastenError as error:
                told += [f"### {title}", "", f"not measured: {error}", ""]
                continue
            keep(place, lines)
        said = why if chosen is None else chosen.covers(batch)
        told += table(title, lines, said, timed=target.kind == "attached")
    return told


def _cell(
    module: Any,
    data: Dataset,
    batch: int,
    chosen: Chosen | None,
    target: Target,
    place: Path,
    pace: Pace,
    count: int,
) -> list[Line]:
    exported = place / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    exported.mkdir()
    model, requests = batched(module, data, batch, exported)
    candidate = None if chosen is None else chosen.candidate
    return cell(model, requests, candidate, target, place, pace, count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=SUBJECTS, metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--effort", default="normal", help="quick, normal or thorough")
    parser.add_argument("--device", choices=["cuda", "host"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    asked = parser.parse_args()
    on_gpu = asked.device == "cuda"
    target = find_target("cuda" if on_gpu else "cuda:sm80").with_threads(1)
    if on_gpu and target.kind != "attached":
        print("no NVIDIA GPU here: nothing to time")
        return
    told: list[str] = []
    for name in asked.models:
        try:
            told += subject_cells(name, asked, target)
        except (
            HastenError,
            ImportError,
            OSError,
        ) as why:  # the package with its weights is missing
            told += [f"### {name}", "", f"not measured: {why}", ""]
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "table.md").write_text("\n".join(told))
    print("\n".join(told))


def subject_cells(name: str, asked: argparse.Namespace, target: Target) -> list[str]:
    """Run all cells of one of the benchmarks' models, and return their tables."""
    from models import CACHE, MODELS

    if name not in MODELS:
        raise InputError(f"no model is called {name!r}; choose one of: {', '.join(MODELS)}")
    subject, on_gpu = MODELS[name], target.kind == "attached"
    module, data = subject.module(CACHE), subject.data()

    def choice(folder: Path) -> Chosen:
        settings = {"metric": subject.metric, "max_drop": subject.max_drop, "effort": asked.effort}
        return choose(module, data, folder, target=target.device, **settings)

    return measure(
        name,
        module,
        data,
        asked.batches,
        target,
        asked.out / name,
        pace=TIMED if on_gpu else UNTIMED,
        count=asked.rounds if on_gpu else 2,
        choice=choice,
    )


if __name__ == "__main__":
    main()
