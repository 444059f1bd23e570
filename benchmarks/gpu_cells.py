"""One cell of the GPU benchmark: a model at one batch size on every runtime, in turns."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gpu_engines import MODULE, BareOnnxRuntime, BareTorch

from hasten.core.model import Model
from hasten.core.records import write_json
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.core.workers import Worker
from hasten.engines.artifacts import settle
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.torch import Mode, TorchCuda
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.plans import PlanEngine
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
from hasten.measure.race import AGAIN, BASELINE, Rules, Standings, race
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.passes.base import Skipped
from hasten.passes.half_precision import HalfPrecision

HASTEN = "hasten"
COMPILED = "torch.compile"
TORCH: dict[str, Mode] = {
    "torch eager": "eager",
    COMPILED: "reduce-overhead",
    f"{COMPILED} by timing": "max-autotune",
}
OTHERS: dict[str, OnnxRuntimeCuda | PlanEngine] = {
    "ONNX Runtime CUDA": OnnxRuntimeCuda(),
    "ONNX Runtime CUDA graph": OnnxRuntimeCuda(cuda_graph=True),
    "TensorRT": Tensorrt(),
    "TensorRT for RTX": TensorrtRtx(),
}
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
        host_ns: Time from the launch of a request to the end of the host's wait, by the host's clock, after
            the race, in nanoseconds; None if there is no device.
        off: Distance of its answers from the eager ones, as a share of their root mean square.
        said: Facts that its engine states, by name.
    """

    name: str
    why: str = ""
    p50_ns: float | None = None
    p99_ns: float | None = None
    times: tuple[float, float, float] | None = None
    device_ns: float | None = None
    host_ns: float | None = None
    off: float | None = None
    said: dict[str, str] = field(default_factory=dict)

    @property
    def added_ns(self) -> float | None:
        """Time of a request that isn't between its launch and the end of the wait; None if unknown."""
        if self.p50_ns is None or self.host_ns is None:
            return None
        return self.p50_ns - self.host_ns


def entrants(chosen: Single | None) -> dict[str, Single]:
    """Return what runs in a cell, by name; torch.compile runs twice, to show the noise.

    Each runtime runs in f32, with TF32 and in f16, and in the ways to launch that hasten's search
    tries: TF32 is on by default in ONNX Runtime, in TensorRT and in torch's convolutions.

    Args:
        chosen: Bundle that hasten made of the model; None where it made none.
    """
    found = {BASELINE: Single((), TorchCuda()), AGAIN: Single((), TorchCuda())}
    if chosen is not None:
        found[HASTEN] = chosen  # before a small GPU's memory is full
    for name, mode in TORCH.items():
        found[name] = Single((), TorchCuda(mode))
        found[f"{name}, TF32"] = Single((), TorchCuda(mode, "tf32"))
        found[f"{name}, f16"] = Single((), TorchCuda(mode, "f16"))
    del found[COMPILED]  # the baseline
    for name, engine in OTHERS.items():
        found[name] = Single((), engine)
        found[f"{name}, TF32"] = Single((), replace(engine, tf32=True))
        found[f"{name}, f16"] = Single((HalfPrecision(),), engine)
    for bare in (BareTorch(), BareTorch(compiled=True), BareOnnxRuntime()):
        found[bare.words()] = Single((), bare)
    return found


def batched(module: Any, data: Dataset, batch: int, folder: Path) -> tuple[Model, Dataset]:
    """Export a module for requests of one size of batch, as ONNX and as torch's program.

    The module itself is kept beside them, if it can be pickled.

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
    try:
        torch.save(module, folder / MODULE)
    except (AttributeError, TypeError, pickle.PicklingError):  # such as a class within a function
        (folder / MODULE).unlink(missing_ok=True)
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
    with _engines_found(), ExitStack() as closing:
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
            Rules(threads=1, count=count, pace=pace, seed=0),
        )
        return list(entered.lines(standings))


@contextmanager
def _engines_found() -> Iterator[None]:
    """Have processes that start meanwhile find the modules of this folder, whose engines they open."""
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


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
                *_device_times_ns(opened.worker),
                _off(self._answers[name], right),
                opened.properties,
            )
        yield from (Line(names.get(name, name), why) for name, why in failed.items())


def _device_times_ns(worker: Worker) -> tuple[float | None, float | None]:
    """Return how long a request is on the device's stream, and how long the host launches and waits.

    Both in nanoseconds; None where there is no device, or it isn't asked.
    """
    with suppress(HastenError):
        told = worker.ask("device_times", limit_s=120)
        stream, host = (told.get(name) for name in ("stream_ns", "host_ns"))
        return stream and float(stream), host and float(host)
    return None, None


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
