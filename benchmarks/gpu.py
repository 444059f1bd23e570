"""Every engine on this host's NVIDIA GPU beside torch.compile: paired ratios from one race of turns.

    python benchmarks/gpu.py [MODEL ...]

The baseline is torch.compile(mode="reduce-overhead") in float32, without TF32; it runs twice. Prints a Markdown
table for each model: how many times as fast each version is by the host's clock, with its 95% interval; its p50; how
long a request is on the device's stream by its own clock, after the race; and how many copies the session makes of its
inputs and outputs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.requests import first_samples
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.source import load_model
from hasten.measure.candidate import Single
from hasten.measure.intervals import quantile
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.race import AGAIN, BASELINE, Standings, race
from hasten.measure.workbench import Workbench
from hasten.passes.base import Pass, Skipped
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.tensorrt_quantization import TensorrtQuantization

SUBJECTS = ("mobilenet_v2", "resnet50_224px", "transformer")
COMPILED = TorchCuda()
ROUNDS = 30
HEADER = ("version", "over torch.compile", "p50", "on the stream", "copies")


@dataclass(frozen=True)
class Comparison:
    """One model's race.

    Attributes:
        standings: Raw rounds of the race.
        properties: Version -> what its engine says of it.
        failed: Version -> why it isn't in the race.
    """

    standings: Standings
    properties: dict[str, Mapping[str, str]]
    failed: dict[str, str]


def versions(model: Model, target: Target) -> dict[str, Single]:
    """Return what to time, by name: every engine's settings, and what passes make where they are of use."""
    kinds = engine_kinds(tried_on("cuda"))
    engines: list[Engine] = [engine for kind in kinds for engine in kind.variants(target)]
    for engine in list(engines):
        engines += engine.tunings(target)
    steps: list[tuple[Pass, ...]] = [()]
    steps += [(step,) for step in (HalfPrecision(), *TensorrtQuantization.variants(model, target))]
    found = {BASELINE: Single((), COMPILED), AGAIN: Single((), COMPILED)}
    for engine in dict.fromkeys(engines):
        for passes in steps if not engine.float_only else [()]:
            candidate = Single(passes, engine)
            if candidate != found[BASELINE] and (engine.exact or not passes):
                found[candidate.label] = candidate
    return found


def with_program(module: Any, data: Dataset, folder: Path) -> Model:
    """Export a module as ONNX, and beside it as the program that torch runs."""
    import torch

    sample = {name: array[0] for name, array in data.inputs([0]).items()}
    model = load_model(module, lambda _: sample, folder).settled_by(sample)
    example = tuple(torch.from_numpy(sample[spec.name][None]) for spec in model.inputs)
    torch.export.save(torch.export.export(module, example), folder / "module.pt2")
    return replace(model, program=folder / "module.pt2")


def compare(
    model: Model, data: Dataset, target: Target, folder: Path, pace: Pace, count: int
) -> Comparison:
    """Open every version in a process of its own, and let them take turns.

    Args:
        model: ONNX model that has its PyTorch program beside it.
        data: Samples for calibration and for the timed requests.
        target: The GPU.
        folder: Empty folder to work in.
        pace: Lengths of the turns.
        count: Number of rounds.
    """
    samples = write_spool(first_samples(data), folder / "samples")
    bench = Workbench(
        folder,
        target,
        memory_bytes=target.memory_bytes // 2,
        model=model,
        calibration=samples,
        calibration_hash="benchmark",
    )
    properties, failed = {}, {}
    with ExitStack() as closing:
        workers = {}
        for name, candidate in versions(model, target).items():
            try:
                opened = bench.open(candidate)
            except (CandidateError, Skipped) as why:
                failed[name] = str(why)
                continue
            closing.callback(opened.worker.kill)
            workers[name], properties[name] = opened.worker, opened.properties
            opened.worker.sleep()
        if missing := [failed[name] for name in (BASELINE, AGAIN) if name in failed]:
            raise CandidateError(f"torch.compile itself failed: {missing[0]}")
        standings = race(
            "gpu",
            workers,
            samples,
            Journal(folder / "journal.jsonl"),
            threads=1,
            count=count,
            pace=pace,
            seed=0,
        )
        for name, worker in workers.items():  # those that still stand, now that they are warm
            properties[name] = {**properties[name], **worker.ask("device_times", limit_s=60)}
    return Comparison(standings, properties, failed | standings.failed)


def rows(found: Comparison) -> list[str]:
    """Return the table's rows, the baseline's own first."""
    cells: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER)]
    for name, said in found.properties.items():
        if name == BASELINE or not found.standings.stands(name):
            continue
        ratio = found.standings.ratio(name)
        times = f"{1 / ratio.estimate:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
        p50_ms = quantile(found.standings.rounds[name], 0.5).value_ns / 1e6
        device = f"{float(said['stream_ns']) / 1e6:.3f} ms" if "stream_ns" in said else "-"
        copies = f"{said.get('copies_to_device', '-')} in, {said.get('copies_to_host', '-')} out"
        label = "torch.compile again" if name == AGAIN else name
        cells.append((label, times, f"{p50_ms:.3f} ms", device, copies))
    cells += [(name, why, "-", "-", "-") for name, why in found.failed.items()]
    return ["| " + " | ".join(row) + " |" for row in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=SUBJECTS, metavar="MODEL")
    arguments = parser.parse_args()
    target = find_target("cuda").with_threads(1)
    if target.kind != "attached":
        print("no NVIDIA GPU here: nothing to time")
        return
    from models import CACHE, MODELS

    for name in arguments.models:
        subject = MODELS[name]
        module, data = subject.module(CACHE), subject.data()
        with tempfile.TemporaryDirectory() as work:
            exported, place = Path(work) / "exported", Path(work) / "compared"
            exported.mkdir()
            place.mkdir()
            model = with_program(module, data, exported)
            found = compare(model, data, target, place, Pace(limit_s=120), ROUNDS)
        print(f"\n{name}\n", *rows(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
