"""Whether a drafted quantization is as fast as the whole: each family of the catalogue, in turns.

    python benchmarks/drafts.py [--input 3x64x64] [--task detect]

Prints what each family takes as a whole, and what share of that its draft takes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hasten.core.model import Model
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.errors import CandidateError
from hasten.inputs.data.requests import random_requests
from hasten.inputs.data.spool import Spool, write_spool
from hasten.lightening.architectures.catalogue import Task
from hasten.lightening.prospects import ways
from hasten.lightening.shortlisting.options import options
from hasten.lightening.shortlisting.untrained import written
from hasten.measure.candidate import Single
from hasten.measure.latency import Pace, rounds
from hasten.passes.base import Skipped

ROUNDS = 15
PACE = Pace(warmup_ns=5_000_000, block_ns=15_000_000, limit_s=60.0)
CLASSES = 43


def shares(model: Model, way: Single, spool: Spool, folder: Path) -> tuple[float, float]:
    """Time both forms of a model in turns, each in a process of its own that sleeps meanwhile.

    Returns:
        The median latency of the whole in ns, and the median of the rounds' ratios.
    """
    target = Target.host()
    with ExitStack() as closing:
        entrants = {}
        for kind in ("whole", "draft"):
            workdir, built = folder / kind, folder / f"{kind}-built"
            workdir.mkdir(parents=True)
            built.mkdir()
            step = way.passes[0]
            made = (step if kind == "whole" else step.draft)(model, spool, workdir)
            artifact = way.engine.build(made, target, built)
            worker = closing.enter_context(Worker(folder / "log", target.memory_bytes // 4))
            worker.ask(
                "open",
                limit_s=60,
                engine=to_record(way.engine),
                artifact=to_record(artifact),
                target=to_record(target),
            )
            worker.sleep()
            entrants[kind] = worker
        turns = rounds(entrants, spool.folder, threads=target.threads, pace=PACE, seed=0)
        each = [
            [float(np.median(turn.latency_ns[kind])) for kind in entrants]
            for turn in itertools.islice(turns, ROUNDS)
        ]
    taken = np.array(each)
    return float(np.median(taken[:, 0])), float(np.median(taken[:, 1] / taken[:, 0]))


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
            option = max(own, key=lambda one: (one.width == 1, one.pixels is None, -one.madds))
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
                try:
                    whole_ns, share = shares(model, way, spool, folder / str(number))
                except (CandidateError, Skipped) as error:
                    print(f"{option.name}, {way.label}: {error}")
                    continue
                ratios.setdefault(way.label, []).append(share)
                print(
                    f"{option.name}, {way.label}: {whole_ns / 1e6:.3f} ms, drafted {share:.3f} of it",
                    flush=True,
                )
    for label, found in ratios.items():
        print(
            f"{label}: {min(found):.3f} to {max(found):.3f}, median {np.median(found):.3f}, of {len(found)}"
        )


if __name__ == "__main__":
    main()
