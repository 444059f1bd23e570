"""Whether a drafted quantization is as fast as the whole: each family of the catalogue, in turns.

python benchmarks/drafts.py [--input 3x64x64]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hasten.architectures.catalogue import Task
from hasten.candidate import Single
from hasten.data.requests import random_requests
from hasten.data.spool import Spool, write_spool
from hasten.errors import CandidateError
from hasten.measure.prospects import ways
from hasten.measure.worker import time_requests
from hasten.model import Model
from hasten.passes.base import Skipped
from hasten.shortlisting.options import options
from hasten.shortlisting.untrained import written
from hasten.target import Target

ROUNDS = 15
WARMUP_NS, BLOCK_NS = 5_000_000, 15_000_000
CLASSES = 43


def medians_ns(model: Model, way: Single, spool: Spool, folder: Path) -> dict[str, list[float]]:
    """Time both forms of a model in turns; return the medians of the rounds."""
    target = Target.host()
    request = {spec.name: spool.inputs([0])[spec.name] for spec in model.request}
    taken: dict[str, list[float]] = {"whole": [], "draft": []}
    with ExitStack() as opened:
        sessions = {}
        for kind in taken:
            workdir, built = folder / kind, folder / f"{kind}-built"
            workdir.mkdir(parents=True)
            built.mkdir()
            step = way.passes[0]
            made = (step if kind == "whole" else step.draft)(model, spool, workdir)
            artifact = way.engine.build(made, target, built)
            sessions[kind] = opened.enter_context(way.engine.open(artifact, target))
        for _ in range(ROUNDS):
            for kind in random.sample(list(sessions), 2):
                times = time_requests(
                    sessions[kind].run,
                    [request],
                    warmup_ns=WARMUP_NS,
                    block_ns=BLOCK_NS,
                    at_least=5,
                    at_most=10_000,
                )
                taken[kind].append(float(np.median(times)))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="3x64x64")
    parser.add_argument("--task", choices=("classify", "detect"), default="classify")
    arguments = parser.parse_args()
    shape = tuple(int(n) for n in arguments.input.split("x"))
    task: Task = arguments.task
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spool: Spool | None = None
        for family, own in options(task, shape).items():
            option = max(own, key=lambda one: (one.width == 1, -one.madds))
            folder = work / family
            folder.mkdir()
            try:
                model = written(option, CLASSES, shape, folder).model
            except CandidateError as error:
                print(f"{option.name}: {error}")
                continue
            spool = spool or write_spool(random_requests(model.request, 0), work / "spool")
            for number, way in enumerate(ways(model, Target.host())):
                if not way.passes:
                    continue
                began = time.monotonic()
                try:
                    taken = medians_ns(model, way, spool, folder / str(number))
                except (CandidateError, Skipped) as error:
                    print(f"{option.name}, {way.label}: {error}")
                    continue
                each = np.array(taken["draft"]) / np.array(taken["whole"])
                ratios.setdefault(way.label, []).append(float(np.median(each)))
                print(
                    f"{option.name}, {way.label}: {np.median(taken['whole']) / 1e6:.3f} ms, drafted "
                    f"{np.median(each):.3f} of it ({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
    for label, found in ratios.items():
        print(
            f"{label}: {min(found):.3f} to {max(found):.3f}, median {np.median(found):.3f}, of {len(found)}"
        )


if __name__ == "__main__":
    main()
