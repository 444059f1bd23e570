"""What XLA's compiler estimates for each generation of TPUs, in each precision; needs no TPU.

    python benchmarks/tpu.py [mobilenet_v2] [minilm] [--parts v5e v6e]

Prints how far each precision's answers are from torch's on this host's processor, and two tables:
estimated cycles, and what the program takes of the device's memory. Needs the extra tpu and
benchmarks/packages.txt. Cycles of different generations aren't comparable: clocks differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import models
import numpy as np

from hasten.core.devices import FAMILIES, find_target
from hasten.core.model import Model
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Artifact
from hasten.engines.estimates import Estimate
from hasten.engines.tpu.engine import Tpu
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.models.source import load_model
from hasten.passes.jax_program import JaxProgram

CALIBRATED, JUDGED = 64, 64
LIMIT_S = 1800.0


def converted(name: str, folder: Path) -> dict[str, Model]:
    """Convert a model in every precision, and print how far off its answers are."""
    import torch

    subject = models.MODELS[name]
    module, data = subject.module(folder), subject.data()
    known, judged = part(data, 0, CALIBRATED), part(data, CALIBRATED, JUDGED)
    sample = {key: rows[0] for key, rows in known.inputs([0]).items()}
    model = load_model(module, sample, folder, keep_program=True).settled_by(sample)
    results = {}
    for step in JaxProgram.variants(model, find_target("tpu")):
        workdir = folder / step.precision
        workdir.mkdir()
        results[step.precision] = result = step(model, known, workdir)
        with Tpu().open(Artifact(result.path, *specs(result)), Target.host()) as session:
            squares = []
            for i in range(len(judged)):
                inputs = judged.inputs([i])
                with torch.no_grad():
                    want = module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()
                got = session.run(inputs)[result.outputs[0].name]
                squares.append([np.mean((got - want) ** 2), np.mean(want**2)])
        error, size = np.mean(squares, axis=0)
        print(
            f"{name} in {step.precision}: off by {np.sqrt(error / size):.2g} of the answers' size"
        )
    return results


def part(data: Dataset, start: int, count: int) -> Dataset:
    """Return so many samples from a place on."""
    return Subset(data, np.arange(start, start + count))


def specs(model: Model) -> tuple[tuple, tuple, tuple]:  # type: ignore[type-arg]
    """Return what an artifact says of a model."""
    return model.inputs, model.outputs, model.request


def estimated(model: Model, target: Target, folder: Path) -> Estimate:
    """Compile in a process of its own, and ask what the compiler said."""
    folder.mkdir()
    with Worker(folder / "log", target.memory_bytes) as worker:
        built = worker.ask(
            "build",
            limit_s=LIMIT_S,
            engine=to_record(Tpu()),
            model=to_record(model),
            target=to_record(target),
            workdir=str(folder / "built"),
        )
    return Tpu().estimate(from_record(Artifact, built), target, folder)


def table(title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print a table of generations by precision."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {title} | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for part_name, cells in rows.items():
        print(f"| {part_name} | {' | '.join(cells[column] for column in columns)} |", flush=True)


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["mobilenet_v2", "minilm"])
    parser.add_argument("--parts", nargs="+", default=list(FAMILIES["tpu"].parts))
    chosen = parser.parse_args()
    print(Tpu.version())
    for name in chosen.names:
        with tempfile.TemporaryDirectory() as folder:
            cycles: dict[str, dict[str, str]] = {}
            memory: dict[str, dict[str, str]] = {}
            results = converted(name, Path(folder))
            for part_name in chosen.parts:
                target = find_target(f"tpu:{part_name}")
                for precision, model in results.items():
                    workdir = Path(folder) / f"{part_name}-{precision}"
                    try:
                        said = estimated(model, target, workdir)
                    except CandidateError as error:
                        print(f"{part_name}, {precision}: {error}")
                        cells = ("-", "-")
                    else:
                        peak = said.figures["peak_memory_bytes"] / 1e6
                        cells = (f"{said.rank or 0:,.0f}", f"{peak:.1f} MB")
                    cycles.setdefault(part_name, {})[precision] = cells[0]
                    memory.setdefault(part_name, {})[precision] = cells[1]
                    print(f"{part_name} {precision}: {cells[0]} cycles, {cells[1]}", flush=True)
            table(f"{name}: estimated cycles", cycles)
            table(f"{name}: peak memory", memory)


if __name__ == "__main__":
    main()
