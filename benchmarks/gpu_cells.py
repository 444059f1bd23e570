"""One cell of the GPU benchmark: a model at one batch size on every runtime, in turns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.records import write_json
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import settle
from hasten.engines.base import Engine
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.models.source import load_model
from hasten.measure.candidate import Single
from hasten.measure.intervals import quantile
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.process import Worker
from hasten.measure.race import AGAIN, BASELINE, Standings, race
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.passes.base import Skipped
from hasten.passes.half_precision import HalfPrecision

HASTEN = "hasten"
COMPILED = "torch.compile"
NATIVE: tuple[Engine, ...] = (Tensorrt(), TensorrtRtx())
REQUESTS = 8
"""Number of different requests in a cell, which take turns."""


@dataclass(frozen=True)
class Line:
    """One runtime in a cell.

    Attributes:
        name: Name of the runtime, with what runs on it.
        why: Reason why it has no figures; "" where it has.
        p50_ns: Median latency of a request by the host's clock, in nanoseconds.
        p99_ns: 99th percentile of the latencies, in nanoseconds.
        times: How many times as fast as the baseline: estimate and ends of the 95% interval.
        device_ns: Time of a request on the device's stream by its clock, after the race, in nanoseconds;
            None if there is no clock.
        off: Distance of its answers from the eager ones, as a share of their root mean square.
        said: Facts that its engine states, by name.
    """

    name: str
    why: str = ""
    p50_ns: float | None = None
    p99_ns: float | None = None
    times: tuple[float, float, float] | None = None
    device_ns: float | None = None
    off: float | None = None
    said: dict[str, str] = field(default_factory=dict)


def entrants(chosen: Single | None) -> dict[str, Single]:
    """Return what runs in a cell, by name; torch.compile runs twice, to show the noise.

    Args:
        chosen: Engine and passes that hasten chose for the model; None where it chose none.
    """
    half = (HalfPrecision(),)
    found = {
        BASELINE: Single((), TorchCuda()),
        AGAIN: Single((), TorchCuda()),
        "torch eager": Single((), TorchCuda("eager")),
        "torch eager, f16": Single((), TorchCuda("eager", "f16")),
        "torch.compile, f16": Single((), TorchCuda(precision="f16")),
        "ONNX Runtime CUDA": Single((), OnnxRuntimeCuda()),
        "ONNX Runtime CUDA, f16": Single(half, OnnxRuntimeCuda()),
    }
    for engine in NATIVE:
        found[engine.words()] = Single((), engine)
        found[f"{engine.words()}, f16"] = Single(half, engine)
    return found if chosen is None else {**found, HASTEN: chosen}


def batched(module: Any, data: Dataset, batch: int, folder: Path) -> tuple[Model, Dataset]:
    """Export a module for requests of one size of batch, as ONNX and as torch's program.

    Returns:
        The model, and requests for it as samples.
    """
    import torch

    first = data.inputs([0])
    model = load_model(module, lambda _: {name: rows[0] for name, rows in first.items()}, folder)
    names = [spec.name for spec in model.inputs]
    picked = [np.arange(k * batch, (k + 1) * batch) % len(data) for k in range(REQUESTS)]
    rows = [data.inputs(list(map(int, places))) for places in picked]
    stacked = {name: np.stack([one[name] for one in rows]) for name in names}
    request = tuple(replace(spec, shape=stacked[spec.name].shape[1:]) for spec in model.inputs)
    settle(model.path, request, "the exported model can't be settled")
    example = tuple(torch.from_numpy(stacked[name][0]) for name in names)
    torch.export.save(torch.export.export(module, example), folder / "module.pt2")
    outputs = tuple(
        replace(spec, shape=(batch, *spec.shape[1:]))
        if spec.shape and isinstance(spec.shape[0], str)
        else spec
        for spec in model.outputs
    )
    settled = replace(model, inputs=request, outputs=outputs, request=request)
    return replace(settled, program=folder / "module.pt2"), ArrayDataset(stacked)


def cell(
    model: Model,
    requests: Dataset,
    chosen: Single | None,
    target: Target,
    folder: Path,
    pace: Pace,
    count: int,
) -> list[Line]:
    """Race all runtimes on a model; a race that was stopped goes on with the rounds that it has.

    Where torch.compile doesn't run, torch eager is the baseline in its place.

    Args:
        model: Model, for requests of one size.
        requests: Requests, as samples.
        chosen: Engine and passes that hasten chose for the model; None where it chose none.
        target: The GPU, or one that isn't here, in whose place this host answers.
        folder: Folder to work in.
        pace: Lengths of the turns.
        count: Number of rounds.

    Raises:
        HastenError: no baseline runs, or the race can't be run.
    """
    shutil.rmtree(folder / "samples", ignore_errors=True)
    samples = write_spool(requests, folder / "samples")
    bench = Workbench(
        folder,
        target,
        memory_bytes=target.memory_bytes // 2,
        model=model,
        calibration=samples,
        calibration_hash=f"benchmark of {model.request}",
    )
    with ExitStack() as closing:
        entered = _Entered(bench, samples, closing)
        for name, candidate in entrants(chosen).items():
            entered.enter(name, candidate)
        if {BASELINE, AGAIN} & entered.failed.keys():
            entered.failed[COMPILED] = entered.failed.get(BASELINE) or entered.failed[AGAIN]
            for name in (BASELINE, AGAIN):
                entered.enter(name, Single((), TorchCuda("eager")))
        if why := entered.failed.get(BASELINE) or entered.failed.get(AGAIN):
            raise CandidateError(f"there is no baseline: {why}")
        standings = race(
            "cell",
            {name: one.worker for name, one in entered.opened.items()},
            samples,
            Journal(folder / "journal.jsonl"),
            threads=1,
            count=count,
            pace=pace,
            seed=0,
        )
        return list(entered.lines(standings))


class _Entered:
    """Runtimes that a cell opened, each in a process of its own, and why others aren't among them."""

    def __init__(self, bench: Workbench, samples: Spool, closing: ExitStack) -> None:
        self._bench, self._samples, self._closing = bench, samples, closing
        self.opened: dict[str, OpenWorker] = {}
        self.failed: dict[str, str] = {}
        self._answers: dict[str, Tensors] = {}

    def enter(self, name: str, candidate: Single) -> None:
        """Open a candidate, and have it answer once."""
        self.failed.pop(name, None)
        if (before := self.opened.pop(name, None)) is not None:
            before.worker.kill()
        try:
            if self._bench.target.kind == "attached":
                candidate.engine.version()
            opened = self._bench.open(candidate)
            self._closing.callback(opened.worker.kill)
            self._answers[name] = self._bench.predict_one(opened, self._samples)
            opened.worker.sleep()
            self.opened[name] = opened
        except (HastenError, Skipped) as why:
            self.failed[name] = str(why)

    def lines(self, standings: Standings) -> Iterator[Line]:
        """Yield a line for each runtime, those without figures last; they are asked for the device's time."""
        failed = self.failed | standings.failed
        right = self._answers.get("torch eager", self._answers[BASELINE])
        names = {BASELINE: COMPILED, AGAIN: f"{COMPILED} again"}
        if COMPILED in failed:
            names = {BASELINE: "torch eager (baseline)", AGAIN: "torch eager (baseline) again"}
        for name, opened in self.opened.items():
            if name in failed or not standings.stands(name):
                failed.setdefault(name, "it failed in the race")
                continue
            rounds, ratio = standings.rounds[name], standings.ratio(name)
            yield Line(
                names.get(name, name),
                "",
                quantile(rounds, 0.5).value_ns,
                quantile(rounds, 0.99).value_ns,
                (1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low),
                _device_ns(opened.worker),
                _off(self._answers[name], right),
                opened.properties,
            )
        yield from (Line(names.get(name, name), why) for name, why in failed.items())


def _device_ns(worker: Worker) -> float | None:
    """Return how long a request is on the device's stream, in nanoseconds; None where it has no clock."""
    with suppress(HastenError):
        told = worker.ask("device_times", limit_s=120)
        return float(told["stream_ns"]) if "stream_ns" in told else None
    return None


def _off(got: Tensors, right: Tensors) -> float:
    """Return the distance of answers from others: root mean square, as a share of theirs."""
    pairs = [
        (np.asarray(mine, np.float64), np.asarray(other, np.float64))
        for mine, other in zip(got.values(), right.values(), strict=True)
    ]
    return float(
        np.sqrt(sum(_squares(mine - other) for mine, other in pairs))
        / (np.sqrt(sum(_squares(other) for _, other in pairs)) or 1.0)
    )


def _squares(array: Array) -> float:
    return float(np.square(array).sum())


def kept(folder: Path) -> list[Line] | None:
    """Return the lines of a cell that is done; None where it isn't."""
    file = folder / "cell.json"
    if not file.exists():
        return None
    lines = json.loads(file.read_text())
    return [Line(**{**one, "times": one["times"] and tuple(one["times"])}) for one in lines]


def keep(folder: Path, lines: list[Line]) -> None:
    """Write the lines of a cell that is done."""
    write_json(folder / "cell.json", [asdict(line) for line in lines])
