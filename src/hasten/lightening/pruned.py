"""The model itself with fewer channels and blocks: cut in steps, and taught again after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from hasten.core.records import from_record, read_json, write_json
from hasten.engines.base import Engine
from hasten.engines.installed import engine_kinds
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.torch import evaluating
from hasten.lightening.prospects import Prospect, fastest
from hasten.lightening.pruning import tokens
from hasten.lightening.pruning.channels import Prunable, Pruned, schedule
from hasten.lightening.pruning.costs import Costs, Grid, measure
from hasten.lightening.pruning.importance import Losses, sensitivity
from hasten.lightening.pruning.in_network import in_network
from hasten.lightening.pruning.layers import Layer, layers
from hasten.lightening.pruning.normalization import recalibrate
from hasten.lightening.pruning.plan import PruningPlan, apply
from hasten.lightening.task import Task
from hasten.lightening.training import features
from hasten.lightening.training.examples import Batch, Examples
from hasten.lightening.ways import Stage, Way
from hasten.measure.candidate import Single
from hasten.measure.workbench import Bench
from hasten.passes.base import Skipped
from hasten.reporting.rows import latency

STAGES = (Stage(0.2, 0.5), Stage(0.2, 0.5), Stage(0.6))
"""Two thirds of the cuts are made on the way, each followed by a short training."""
BATCHES, SMALL = 12, 8
"""By which it is told what a channel is worth: many small ones tell more than few large ones."""
MERGED = (1, 2, 4, 8, 16)
"""Tokens that each block of a vision transformer may merge."""
_MERGED_SHARE = 0.5
"""Of the way to the budget, at most, by merging tokens: channels hurt less from there on."""
_TRIES = 4
_NEAR, _UNDER = 0.9, 0.97
"""Of the budget: where a pruned network counts as being at it, and what is aimed at."""
_PROFILED = 24
"""Requests whose layers are timed."""


@dataclass(frozen=True)
class PrunedNetwork(Way):
    """The user's own network with less in it.

    Attributes:
        costs: Of its layers on this machine.
        merged: Of a vision transformer, how many tokens each block merges.
        now_ns: What it takes, with them merged.
        way: In what form it is timed.
        name: For people.
    """

    costs: Costs = field(repr=False)
    merged: int
    now_ns: float
    way: Single
    name: str = "pruned"

    @classmethod
    def of(cls, task: Task, original: Prospect) -> PrunedNetwork:
        """See what the network's layers take, and whether the budget can be reached by cutting them.

        Raises:
            CandidateError: it can't, with the least that it comes to.
            InputError: the network can't be traced.
        """
        way = Single(original.passes, original.engine)
        found = task.kept("layers", lambda: _found_out(task, original, way))
        if "failure" in found:
            raise CandidateError(found["failure"])
        grids = {
            name: from_record(Grid, grid) for name, grid in found["costs"].pop("grids").items()
        }
        costs = Costs(grids=grids, **found["costs"])
        return cls(costs, found["merged"], found["now_ns"], way)

    @property
    def stages(self) -> Sequence[Stage]:
        return STAGES

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        module = task.network.frozen().module if before is None else before
        file = folder / "plan.json"
        if not file.exists():
            target_ns = schedule(self.now_ns, task.budget_ns, len(STAGES))[number]
            try:
                write_json(file, self._plan(task, module, target_ns, first=before is None))
            except InputError as why:
                raise CandidateError(str(why)) from why
        smaller = apply(module, from_record(PruningPlan, read_json(file))).requires_grad_(True)
        recalibrate(smaller, _batches(task))
        return smaller

    def _plan(
        self, task: Task, module: torch.nn.Module, target_ns: float, *, first: bool
    ) -> PruningPlan:
        """Choose what goes in a step, such that what is left takes as long as it should when measured."""
        begin = PruningPlan(merged=self.merged if first else 0)
        if begin.merged:
            module = apply(module, begin)
        task.tell("prune", f"to {latency(target_ns)}", 0, 1)
        network = Prunable(module, _sample(task), _losses(task))
        pruned = network.to(self.costs, target_ns)
        if target_ns > task.budget_ns * 1.001:
            return begin.then(pruned.plan)
        plan = self._measured(task, network, pruned, target_ns)
        return begin.then(plan)

    def _measured(
        self, task: Task, network: Prunable, pruned: Pruned, target_ns: float
    ) -> PruningPlan:
        """Return what comes nearest to a latency from below, when measured.

        Raises:
            CandidateError: nothing does.
        """
        measured: list[tuple[float, PruningPlan]] = []
        for attempt in range(_TRIES):
            took_ns = measured_ns(task, pruned.module)
            measured.append((took_ns, pruned.plan))
            task.tell("prune", "measured", attempt + 1, _TRIES, f"pruned to {latency(took_ns)}")
            if _NEAR * target_ns <= took_ns <= target_ns or attempt == _TRIES - 1:
                break
            aim_ns = pruned.predicted_ns * _UNDER * target_ns / took_ns
            try:
                pruned = network.to(self.costs, aim_ns)
            except CandidateError as why:
                task.notes.append(f"pruned: {why}")
                break
        under = [one for one in measured if one[0] <= target_ns]
        if not under:
            raise CandidateError(
                f"pruning came to {latency(min(took for took, _ in measured))} where "
                f"{latency(target_ns)} was asked"
            )
        return max(under, key=lambda one: one[0])[1]


def _found_out(task: Task, original: Prospect, way: Single) -> dict[str, Any]:
    """Find out what the network's layers take, or why it can't be cut down to the budget."""
    try:
        return _looked_into(task, original, way)
    except CandidateError as why:
        return {"failure": str(why)}


def _looked_into(task: Task, original: Prospect, way: Single) -> dict[str, Any]:
    """Find out what the network's layers take, and whether the budget can be reached by cutting them.

    Raises:
        CandidateError: it can't.
        InputError: the network can't be traced.
    """
    task.tell("prune", "timing layers", 0, 1)
    module = task.network.frozen().module
    merged, now_ns = _merged(task, module, way, original.latency_ns)
    if now_ns <= task.budget_ns:
        merged, now_ns = 0, original.latency_ns  # fewer channels hurt less than so many tokens gone
    if merged:
        module = apply(module, PruningPlan(merged=merged))
    costs = _costs(task, module, original, now_ns)
    # Once all at a time: what layers take is corrected by a whole small network, too.
    once = Prunable(module, _sample(task), _losses(task)).to(costs, task.budget_ns)
    took_ns = measured_ns(task, once.module, way)
    both = [(layers(m, _sample(task)), ns) for m, ns in ((module, now_ns), (once.module, took_ns))]
    costs = costs.corrected(both)
    kept = {f.name: getattr(costs, f.name) for f in fields(costs) if f.init and f.repr}
    return {"costs": kept, "merged": merged, "now_ns": now_ns}


def measured_ns(task: Task, module: torch.nn.Module, way: Single | None = None) -> float:
    """Return what a network takes, weights aside: in one form, or in the fastest that there is.

    What was fastest of the whole network needn't be so of a small part of it.
    """
    folder = task.folder / "measured"
    folder.mkdir(exist_ok=True)
    try:
        model = task.export(module, folder)
    except InputError as error:
        raise CandidateError(str(error)) from error
    for _ in range(_TRIES):
        found = fastest(
            {"it": model},
            task.target,
            task.folder / "prospects",
            engines=task.engines,
            only=lambda one: way is None or one == way,
        )["it"]
        if found.calm:  # else the host was busy, and it may be faster
            break
    return found.latency_ns


def _merged(task: Task, module: torch.nn.Module, way: Single, now_ns: float) -> tuple[int, float]:
    """Return how many tokens a vision transformer is to merge in each block, and what it takes then."""
    try:
        tokens.merging(module, 0)
    except InputError:
        return 0, now_ns
    target_ns = now_ns * (task.budget_ns / now_ns) ** _MERGED_SHARE
    found = tokens.fastest(module, lambda m: measured_ns(task, m, way), MERGED, target_ns)
    if found is None:
        task.notes.append("merging tokens made the model no faster here")
        return 0, now_ns
    return found


def _costs(task: Task, module: torch.nn.Module, original: Prospect, now_ns: float) -> Costs:
    """Time the layers on the engine that is fastest, or on the first that tells how long each takes."""
    engines: list[Engine] = [original.engine]
    engines += [next(iter(kind.variants(task.target))) for kind in engine_kinds(task.engines)]
    engine = next((one for one in engines if type(one).has_profiler()), None)
    if engine is None:
        raise CandidateError("no engine tells how long each layer takes")
    folder = task.folder / "costs"
    folder.mkdir(exist_ok=True)
    bench = Bench(folder, task.target, memory_bytes=task.target.memory_bytes // 4)
    found = layers(module, _sample(task))
    precision: Any = "i8" if original.precision == "int8" else "f32"
    costs = measure(found, bench, engine, folder, precision)
    if engine == original.engine:
        way = Single(original.passes, engine)
        costs = costs.scaled(found, *_inside(task, module, way, found, folder))
    return costs.corrected([(found, now_ns)])


def _inside(
    task: Task, module: torch.nn.Module, way: Single, found: Sequence[Layer], folder: Path
) -> tuple[dict[str, float], float]:
    """Return what each layer takes inside the network, and all else; nothing where it can't be told."""
    try:
        model = task.export(module, folder)
        bench = task.workbench(model, folder / "inside")
        opened = bench.open(way)
        opened.worker.kill()
        steps = bench.profile(way.engine, opened.artifact, task.calibration, requests=_PROFILED)
        return in_network(found, model.path, steps)
    except (CandidateError, InputError, Skipped) as why:
        task.notes.append(f"layers were timed alone, not inside the network: {why}")
        return {}, 0.0


def _sample(task: Task) -> tuple[torch.Tensor, ...]:
    """One sample, as the network is called with it."""
    device = task.network.device
    return tuple(torch.from_numpy(task.sample[n][None]).to(device) for n in task.network.inputs)


def _batches(task: Task) -> Iterator[tuple[torch.Tensor, ...]]:
    """Some training data, as the network is called with it."""
    examples = Examples(task.data, min(SMALL, len(task.data)), seed=task.seed)
    for step in range(min(BATCHES, examples.steps)):
        inputs = examples.at(step, task.network.device).inputs
        yield tuple(inputs[name] for name in task.network.inputs)


def _losses(task: Task) -> Losses:
    """What tells what of the network matters.

    What it is taught by is no use: it is its own teacher as yet, and so at the least. Labels tell it;
    without them, how far the answers would move, or of a detector the layers inside.
    """
    objective = task.objective
    labelled = task.data.labels is not None
    if (
        labelled
        and (objective.kind == "classes" or objective.loss)
        and not objective.feature_weight
    ):
        return lambda module: _by_labels(task, module)
    return sensitivity(list(_batches(task)), lambda module, batch: _seen(task, module, batch))


def _by_labels(task: Task, module: torch.nn.Module) -> Iterator[torch.Tensor]:
    network = replace(task.network, module=module, low_precision=False)
    examples = Examples(task.data, min(SMALL, len(task.data)), seed=task.seed)
    for step in range(min(BATCHES, examples.steps)):
        batch: Batch = examples.at(step, network.device)
        yield task.objective.of(batch, network(batch.inputs), None)


def _seen(task: Task, module: torch.nn.Module, batch: Any) -> Any:
    """What a network answers, or what its last layers give where answers take no gradient."""
    inputs = dict(zip(task.network.inputs, batch, strict=True))
    network = replace(task.network, module=module, low_precision=False)
    if not task.objective.feature_weight:
        return network(inputs)
    with evaluating(task.network.module):
        names = features.shared_layers(network, task.network, inputs)[-2:]
    with features.watched(module, names) as seen:
        network(inputs)
    return seen()
