"""What a lighter network loses in int8, and the way that teaches it to lose less."""

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
"""Of the most that may be lost: where int8 costs more, it is worth training for."""
_PASSES: tuple[type[Pass], ...] = (StaticQuantization, NncfQuantization)


def int8_score(task: Task, lighter: Lighter) -> float | None:
    """Return the mean score of the best of a network's int8 forms on what was held out.

    By each quantizer's likeliest settings, on the first engine that runs what it makes.

    Args:
        task: What it is to do.
        lighter: The network.

    Returns:
        None where no quantizer or no engine takes it.
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
    """Return each quantizer's likeliest variant on the first engine that takes it."""
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
        return task.score(bench.predict(opened, task.held_out))
    finally:
        opened.worker.kill()


@dataclass(frozen=True)
class QuantizationAware(Way):
    """Teach a network that is trained already to answer as it will in int8.

    Attributes:
        of: What it is taught.
    """

    quantized: ClassVar[bool] = True

    of: Lighter

    @property
    def name(self) -> str:  # type: ignore[override]
        """As the network's, and what it was taught."""
        return f"{self.of.way.name}, trained for int8"

    @property
    def taught(self) -> bool:  # type: ignore[override]
        """As the network was."""
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
