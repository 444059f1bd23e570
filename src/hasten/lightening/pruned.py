"""Prune the model: remove channels and blocks in steps, and train it again after each."""

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
from hasten.lightening.training.examples import Batch, Examples, teachable
from hasten.lightening.ways import Stage, Way
from hasten.measure.candidate import Single
from hasten.measure.workbench import Bench
from hasten.passes.base import Skipped
from hasten.reporting.rows import latency

STAGES = (Stage(0.2, 0.5), Stage(0.2, 0.5), Stage(0.6))
"""Each stage's share of the time and of the highest rate; the last, after two cuts, is longest."""
BATCHES, SMALL = 12, 8
"""Number and size of the batches that rate channels; many small ones tell more than few large."""
MERGED = (1, 2, 4, 8, 16)
"""Numbers of tokens that each block of a vision transformer may merge."""
_MERGED_SHARE = 0.5
"""Exponent of the largest speedup by merging tokens; beyond it, losing channels hurts less."""
_TRIES = 4
_NEAR, _UNDER = 0.9, 0.97
"""Shares of the target latency: the least that is accepted, and the one that is aimed at."""
_PROFILED = 24
"""Number of requests whose layers are timed."""


@dataclass(frozen=True)
class PrunedNetwork(Way):
    """Remove channels and blocks from the user's own network.

    Attributes:
        costs: Latencies of the network's layers on this machine.
        merged: Number of tokens that each block of a vision transformer merges; 0 for none.
        now_ns: Latency of the network with merged tokens, in nanoseconds.
        way: Candidate by which the network is timed.
        name: Name for people.
    """

    costs: Costs = field(repr=False)
    merged: int
    now_ns: float
    way: Single
    name: str = "pruned"

    @classmethod
    def of(cls, task: Task, original: Prospect) -> PrunedNetwork:
        """Time the network's layers, and check that pruning can reach the budget.

        Raises:
            CandidateError: pruning can't reach the budget; names the lowest latency that it can.
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
        """Choose what a step removes, such that the rest has the target latency when measured."""
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
        """Return the plan whose measured latency is nearest to the target from below.

        Raises:
            CandidateError: no plan's latency is below the target.
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
                f"pruning reached {latency(min(took for took, _ in measured))}, not the target of "
                f"{latency(target_ns)}"
            )
        return max(under, key=lambda one: one[0])[1]


def _found_out(task: Task, original: Prospect, way: Single) -> dict[str, Any]:
    """Return the network's layer latencies, or the reason why pruning can't reach the budget."""
    try:
        return _looked_into(task, original, way)
    except CandidateError as why:
        return {"failure": str(why)}


def _looked_into(task: Task, original: Prospect, way: Single) -> dict[str, Any]:
    """Return the network's layer latencies, if pruning can reach the budget.

    Raises:
        CandidateError: pruning can't reach the budget.
        InputError: the network can't be traced.
    """
    task.tell("prune", "timing layers", 0, 1)
    module = task.network.frozen().module
    merged, now_ns = _merged(task, module, way, original.latency_ns)
    if now_ns <= task.budget_ns:
        merged, now_ns = 0, original.latency_ns  # losing channels hurts less than so many tokens
    if merged:
        module = apply(module, PruningPlan(merged=merged))
    costs = _costs(task, module, original, now_ns)
    # Pruned in a single step, since a whole small network corrects the layers' latencies too.
    once = Prunable(module, _sample(task), _losses(task)).to(costs, task.budget_ns)
    took_ns = measured_ns(task, once.module, way)
    both = [(layers(m, _sample(task)), ns) for m, ns in ((module, now_ns), (once.module, took_ns))]
    costs = costs.corrected(both)
    kept = {f.name: getattr(costs, f.name) for f in fields(costs) if f.init and f.repr}
    return {"costs": kept, "merged": merged, "now_ns": now_ns}


def measured_ns(task: Task, module: torch.nn.Module, way: Single | None = None) -> float:
    """Return a network's latency in nanoseconds, by one candidate or by the fastest of all.

    The weights' values don't matter. The candidate that is fastest for the whole network needn't
    be the fastest for a small part of it.
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
        if found.calm:  # else the host was busy, and the network may be faster
            break
    return found.latency_ns


def _merged(task: Task, module: torch.nn.Module, way: Single, now_ns: float) -> tuple[int, float]:
    """Return how many tokens a vision transformer should merge per block, and its latency then."""
    try:
        tokens.merging(module, 0)
    except InputError:
        return 0, now_ns
    target_ns = now_ns * (task.budget_ns / now_ns) ** _MERGED_SHARE
    found = tokens.fastest(module, lambda m: measured_ns(task, m, way), MERGED, target_ns)
    if found is None:
        task.notes.append("merging tokens didn't make the model faster on this machine")
        return 0, now_ns
    return found


def _costs(task: Task, module: torch.nn.Module, original: Prospect, now_ns: float) -> Costs:
    """Time the layers on the fastest engine, or on the first one that has a profiler."""
    engines: list[Engine] = [original.engine]
    engines += [next(iter(kind.variants(task.target))) for kind in engine_kinds(task.engines)]
    engine = next((one for one in engines if type(one).has_profiler()), None)
    if engine is None:
        raise CandidateError("no engine has a profiler that times each layer")
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
    """Return the latency of each layer inside the network and of the rest; nothing if unknown."""
    try:
        model = task.export(module, folder)
        bench = task.workbench(model, folder / "inside")
        opened = bench.open(way)
        opened.worker.kill()
        steps = bench.profile(way.engine, opened.artifact, task.calibration, requests=_PROFILED)
        return in_network(found, model.path, steps)
    except (CandidateError, InputError, Skipped) as why:
        task.notes.append(f"layers were timed separately, not inside the network: {why}")
        return {}, 0.0


def _sample(task: Task) -> tuple[torch.Tensor, ...]:
    """Return one sample as arguments of the network."""
    device = task.network.device
    return tuple(torch.from_numpy(task.sample[n][None]).to(device) for n in task.network.inputs)


def _batches(task: Task) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield some training data as arguments of the network."""
    examples = Examples(task.data, min(SMALL, len(task.data)), seed=task.seed)
    for step in range(min(BATCHES, examples.steps)):
        inputs = examples.at(step, task.network.device).inputs
        yield tuple(inputs[name] for name in task.network.inputs)


def _losses(task: Task) -> Losses:
    """Return the function that rates how much the parts of a network matter.

    The loss by the teacher's answers is no use, since the network still equals its teacher and that
    loss is at its minimum. Labels serve instead; without them, how far the answers would move, or
    a detector's inner layers.
    """
    objective = task.objective
    labelled = task.data.labels is not None and teachable(task.data.labels)
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
    """Return a network's answers, or its last layers' outputs where answers have no gradient."""
    inputs = dict(zip(task.network.inputs, batch, strict=True))
    network = replace(task.network, module=module, low_precision=False)
    if not task.objective.feature_weight:
        return network(inputs)
    with evaluating(task.network.module):
        names = features.shared_layers(network, task.network, inputs)[-2:]
    with features.watched(module, names) as seen:
        network(inputs)
    return seen()
