"""Measure what a lighter network loses in int8, and train it to lose less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from hasten.core.model import Model
from hasten.engines.base import Engine
from hasten.engines.installed import engine_kinds
from hasten.errors import CandidateError
from hasten.lightening.task import Task
from hasten.lightening.training import quantization_aware
from hasten.lightening.ways import Lighter, Stage, Way
from hasten.measure.candidate import Single
from hasten.measure.workbench import Workbench
from hasten.passes.base import Pass, Skipped
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization

LOST = 1 / 3
"""Share of the accepted drop above which an int8 loss is worth training against."""
_PASSES: tuple[type[Pass], ...] = (StaticQuantization, NncfQuantization)


def int8_score(task: Task, lighter: Lighter) -> float | None:
    """Return the best mean score of a network's int8 forms on the held-out samples.

    The forms are each quantizer's first variant, on the first engine that runs its output.

    Args:
        task: Task of the lighter network.
        lighter: Network to quantize.

    Returns:
        Mean score; None if no quantizer or no engine supports the network.
    """
    model = lighter.model
    bench = task.workbench(model, model.path.parent / "int8")
    scores = []
    for number, candidate in enumerate(forms := _forms(task, model)):
        task.tell("int8", f"{lighter.way.name} in int8", number, len(forms))
        try:
            scores.append(_score(task, bench, candidate))
        except (CandidateError, Skipped) as why:
            task.notes.append(f"{lighter.way.name} in int8 ({candidate.label}): {why}")
    return max(scores, default=None)


def _forms(task: Task, model: Model) -> list[Single]:
    """Return each quantizer's first variant on the first engine that runs its output."""
    engines: list[Engine] = [
        engine
        for kind in engine_kinds(task.engines)
        for engine in list(kind.variants(task.target))[:1]
    ]
    found = []
    for kind in _PASSES:
        step = next(iter(kind.variants(model, task.target)), None)
        able = [e for e in engines if step and step.gives in e.formats and not e.float_only]
        if step is not None and able:
            found.append(Single((step,), able[0]))
    return found


def _score(task: Task, bench: Workbench, candidate: Single) -> float:
    opened = bench.open(candidate)
    try:
        return task.score(bench.predict(opened, task.held_out, infinite=False))
    finally:
        opened.worker.kill()


@dataclass(frozen=True)
class QuantizationAware(Way):
    """Train an already trained network to answer as it will in int8.

    Attributes:
        of: Trained network to start from.
    """

    quantized: ClassVar[bool] = True

    of: Lighter

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the network with a remark that it was trained for int8."""
        return f"{self.of.way.name}, trained for int8"

    @property
    def taught(self) -> bool:  # type: ignore[override]
        """Whether the user's own network taught the network before."""
        return self.of.way.taught

    @property
    def stages(self) -> Sequence[Stage]:
        return (Stage(0.25, rate=0.05),)

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        network = replace(task.network, module=self.of.way.deployed(self.of.module))
        usual = next(StaticQuantization.variants(self.of.model, task.target))
        return quantization_aware.prepare(network, task.calibration, usual).module

    def export(self, task: Task, module: torch.nn.Module, folder: Path) -> Model:
        network = replace(task.network, module=module, low_precision=False)
        return quantization_aware.export(network, task.sample, folder)
