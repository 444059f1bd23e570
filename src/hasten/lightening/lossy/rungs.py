"""Smaller and smaller forms of one network, each trained from the one before it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hasten.core.model import Model
from hasten.errors import CandidateError, InputError
from hasten.lightening.lossy.trainable import Trainable, check_alike
from hasten.lightening.lossy.weights import Compressible, kept_at
from hasten.lightening.task import Task
from hasten.lightening.training.loop import BeforeStep
from hasten.lightening.training.network import Network
from hasten.lightening.ways import Lighter, Stage, Way, train_way

LEAST_ELEMENTS = 256
"""Elements of a tensor from which on pruning and sharing it are worth it: a bias stays as it is."""
_FAR = 2.0
"""Drop from the best form on held-out samples, in limits, after which no smaller form is worth training."""
_PRUNING_ENDS = 0.6
_PRUNINGS = 50
"""Largest number of times that weights are pruned during a training."""


def compressible(given: Trainable) -> Compressible:
    """Return a network whose large weights can be pruned and shared.

    Raises:
        InputError: no weight is large enough to be worth it.
    """
    parameters = dict(given.network.module.named_parameters())
    large = [
        link.parameter
        for link in given.links
        if parameters[link.parameter].ndim > 1
        and parameters[link.parameter].numel() >= LEAST_ELEMENTS
    ]
    if not large:
        raise InputError(
            f"no weight of the model has {LEAST_ELEMENTS} elements that training can change: "
            "pack the bundle without loss"
        )
    return Compressible(copy.deepcopy(given.network.module).eval(), large)


@dataclass(frozen=True)
class Shrunk(Way):
    """Prune a network while it learns, then let its weights share values, and train those.

    Attributes:
        kept: Share of the large weights' elements to keep.
        bits: Bits of a shared value's number: a tensor has at most 2**bits values.
        given: Network and model file to start from and to write to.
        start: Network to prune further.
    """

    kept: float
    bits: int
    given: Trainable
    start: Compressible

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the form for people."""
        return f"{100 * self.kept:.3g}% of the weights, {2**self.bits} values"

    @property
    def stages(self) -> Sequence[Stage]:
        return (
            Stage(0.6, rate=0.5, epochs=0.6, settled=_PRUNING_ENDS),
            Stage(0.4, rate=0.25, epochs=0.4),
        )

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        if number == 0:
            return self.start.apart()
        assert isinstance(before, Compressible)
        before.prune(self.kept)
        return before.shared(self.bits)

    def before_step(self, number: int, module: torch.nn.Module) -> BeforeStep:
        """Return what prunes during the first stage, more and more slowly."""
        if number > 0 or not isinstance(module, Compressible):
            return lambda share: None
        first, pruned_at = self.start.left, -1.0

        def prune(share: float) -> None:
            nonlocal pruned_at
            done = min(share, _PRUNING_ENDS)
            if done > pruned_at and (done - pruned_at >= 1 / _PRUNINGS or done == _PRUNING_ENDS):
                module.prune(kept_at(done, first, self.kept, _PRUNING_ENDS))
                pruned_at = done

        return prune

    def export(self, task: Task, module: torch.nn.Module, folder: Path) -> Model:
        """Write the original's file with the trained values, and check its answers."""
        assert isinstance(module, Compressible)
        values = {**dict(module.network.named_parameters()), **module.values()}
        made = self.given.write(values, folder)
        network = Network(
            module,
            self.given.network.inputs,
            low_precision=False,
            outputs=self.given.network.outputs,
        )
        rows = {name: array[None] for name, array in task.sample.items()}
        check_alike(network, made, rows, "the trained network")
        return made


def shrunk(task: Task, given: Trainable, kept: Sequence[float], bits: int) -> list[Lighter]:
    """Train smaller and smaller forms of a network, until one loses far more than the best of them.

    The network itself is no measure: it has often seen the samples that are held out from this training.

    Args:
        task: Task, whose network is the teacher.
        given: The teacher as it can be trained, and its file.
        kept: Shares of the weights to keep, falling.
        bits: Bits of a shared value's number.

    Raises:
        InputError: no form could be trained, or nothing in the network is worth it.
    """
    start = compressible(given)
    done: list[Lighter] = []
    for share in kept:
        way = Shrunk(share, bits, given, start)
        try:
            lighter = train_way(task, way, lambda at, score: None)
        except CandidateError as why:
            task.notes.append(f"{way.name}: {str(why).removeprefix(f'{way.name}: ')}")
            break
        done.append(lighter)
        if lighter.note:
            task.notes.append(f"{way.name}: {lighter.note}")
        assert isinstance(lighter.module, Compressible)
        start = lighter.module
        best = max(one.training.score for one in done)
        if best - lighter.training.score > _FAR * task.max_drop:
            break
    if not done:
        raise InputError(f"no smaller form could be trained: {'; '.join(task.notes)}")
    return done
