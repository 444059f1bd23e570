"""What hasten makes of a model on this host's NVIDIA GPU, beside other runtimes, in turns.

    python benchmarks/gpu.py [MODEL ...] [--batches 1 8 32] [--out gpu-results]

First hasten optimizes each model and certifies the result on data. Then each size of batch is a cell: the
bundle, as `hasten.load` opens it, is raced against torch eager, torch.compile (the baseline, twice), ONNX Runtime on
CUDA and TensorRT, in f32, with TF32 and in f16. These run on hasten's own engines; three bare lines are torch and
ONNX Runtime as their users call them. A cell or a runtime that fails is a line with its reason. What is done is
kept in the folder, so that a benchmark that was stopped goes on where it was; its table is table.md there.

Columns: "host" is the time from a request's launch to the end of the host's wait, and "added" is what a request takes
beyond that (p50 - host). "on the stream" is its time on the device's stream. "off" is how far its answer is from
torch eager's, as a share of that.

--device host runs everything over this host in a GPU's place, and shows no time.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_cells import HASTEN, Line, batched, cell, keep, kept
from gpu_engines import REQUESTS, Bundled

from hasten import optimize
from hasten.bundle import read
from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.errors import HastenError, InputError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.metrics.embedding import Embedding
from hasten.measure.candidate import Single
from hasten.measure.latency import Pace

if TYPE_CHECKING:
    from models import Subject

SUBJECTS = (
    "mobilenet_v2",
    "resnet50_224px",
    "efficientnet_b0_224px",
    "minilm",
    "yolov3_tiny",
)
BATCHES = (1, 8, 32)
TELLING = 32
"""Number of samples that set the last layer of a random network."""
ROUNDS = 30
TIMED = Pace(warmup_ns=200_000_000, block_ns=100_000_000, limit_s=180)
"""A warm-up of 0.2 s before each turn, since a GPU's clocks fall while others have theirs."""
UNTIMED = Pace(warmup_ns=1, block_ns=1, at_least=1, at_most=1, limit_s=180)
HEADER = ("runtime", "over the baseline", "p50", "p99", "host", "added", "on the stream", "off", "")


@dataclass(frozen=True)
class Chosen:
    """What hasten made of a model.

    Attributes:
        folder: Folder of the bundle.
        label: Label of the winner, for people.
        status: "certified", "exact" or "uncertified", with the reason.
    """

    folder: Path
    label: str
    status: str

    @property
    def candidate(self) -> Single:
        """The bundle itself, as `hasten.load` opens it."""
        return Single((), Bundled(str(self.folder.absolute())))

    def __str__(self) -> str:
        return f"{self.label}; {self.status}"


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
    status = f"{manifest.status} ({manifest.why})" if manifest.why else manifest.status
    return Chosen(folder, manifest.winner.label, status)


def judged(subject: Subject, photographs: Callable[[], Dataset]) -> Subject:
    """Return a subject whose certificate says something, also if its weights are random.

    Then its answers to photographs are compared with the original's, whatever they say.

    Args:
        subject: Subject of the benchmarks.
        photographs: Function that returns photographs as a network of random weights takes them.
    """
    if subject.real:
        return subject

    def module(folder: Path) -> Any:
        return told_apart(subject.module(folder), photographs())

    return replace(subject, module=module, data=photographs, metric=Embedding(0.98), max_drop=0.01)


def told_apart(module: Any, data: Dataset) -> Any:
    """Set the last layer of a random network so that answers have mean 0 and variance 1 over some samples.

    As it is drawn, its answers to any two photographs have nearly the same direction, so that a
    metric of the direction would accept another photograph's answer.

    Raises:
        InputError: the network has no layer that makes classes.
    """
    import torch

    if not hasattr(module, "get_classifier"):
        raise InputError("its weights are random and it has no classes, so nothing can judge it")
    last = module.get_classifier()
    (samples,) = data.inputs(range(TELLING)).values()
    with torch.no_grad():
        answers = module(torch.from_numpy(samples))
        scale = answers.std(0).mean()
        last.bias.sub_(answers.mean(0)).div_(scale)
        last.weight.div_(scale)
    return module


def table(title: str, lines: Sequence[Line], chosen: str, *, timed: bool) -> list[str]:
    """Return a cell as Markdown.

    Args:
        title: Title of the cell.
        lines: Figures of each runtime, or the reason why it has none.
        chosen: Label of the model that hasten chose, or the reason why it chose none.
        timed: Whether times are shown.
    """
    cells: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER)]
    for line in lines:
        note = line.why or (_asked(chosen, line) if line.name == HASTEN else "")
        cells.append((line.name, *_figures(line, timed=timed), note))
    if HASTEN not in {line.name for line in lines}:
        cells.append((HASTEN, *["-"] * (len(HEADER) - 2), chosen))
    rows = ["| " + " | ".join(one.replace("|", "/") for one in row) + " |" for row in cells]
    return [f"### {title}", "", *rows, ""]


def _asked(chosen: str, line: Line) -> str:
    """Say how the bundle answers a batch, where it takes it in parts."""
    return f"{chosen}; in parts: {line.said[REQUESTS]}" if REQUESTS in line.said else chosen


def _figures(line: Line, *, timed: bool) -> tuple[str, ...]:
    if line.times is None or line.off is None:
        return ("-",) * 7
    off = f"{line.off:.1e}"
    if not timed:
        return (*["untimed"] * 6, off)
    times, low, high = line.times
    over = f"{times:.2f}x ({low:.2f} to {high:.2f})"
    added = "-" if line.added_ns is None else f"{line.added_ns / 1e3:.0f} us"
    host, stream = _ms(line.host_ns), _ms(line.device_ns)
    return (over, _ms(line.p50_ns), _ms(line.p99_ns), host, added, stream, off)


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
        if chosen is None and kept(place) is None:
            # Apart, so that the cell and its journal don't stand for one that has hasten's choice.
            place = folder / f"batch-{batch}-without-choice"
        lines = kept(place)
        if lines is None:
            place.mkdir(exist_ok=True)
            try:
                lines = _cell(module, data, batch, chosen, target, place, pace, count)
            except HastenError as error:
                told += [f"### {title}", "", f"not measured: {error}", ""]
                continue
            keep(place, lines)
        said = why if chosen is None else str(chosen)
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
    parser.add_argument("--samples", type=int, help="judge by so many only; by default by all")
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
    subject = judged(MODELS[name], MODELS["mobilenet_v2"].data)
    on_gpu = target.kind == "attached"
    module, data = subject.module(CACHE), subject.data()
    if asked.samples is not None:
        data = Subset(data, np.arange(min(asked.samples, len(data))))

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
