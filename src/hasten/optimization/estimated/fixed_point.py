"""The search for an FPGA: programs of fewer and fewer bits, then designs of the best few."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

from hasten.core.progress import UNKNOWN
from hasten.engines.fpga.engine import Fpga
from hasten.engines.fpga.fixed_point import FixedPointProgram, cost, layers
from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.trials import Estimation, rank
from hasten.optimization.job import Job
from hasten.passes.base import Pass
from hasten.passes.fixed_point import FixedPoint, LayerWidth

WIDTHS = (12, 10, 8, 7, 6, 5, 4, 3)
_LEAST = 2
_REFINED = 24
"""Largest number of programs to try on the way to fewer bits in single layers."""
_CUTS = (3.0, 4.0, 6.0, 8.0, 12.0)
"""Numbers of additions to chain within a clock cycle, besides the 2 of every first design."""
_ROUTING_GROWS = 2.5
"""Power of a design's adders by which the time to place and route grows.

3.5 times as many adders took over 15 times as long.
"""
_SMALLER = 0.9
"""Largest share of the adders of a design that couldn't be routed that is worth another attempt."""


@dataclasses.dataclass
class FixedPointSearch:
    """Searches for programs and designs for an FPGA.

    Attributes:
        job: The run at work.
        trials: Trials, which make and judge the candidates.
        trained: Passes that supply programs of networks trained for fewer and fewer bits.
    """

    job: Job
    trials: Estimation
    trained: Sequence[Pass]
    _routed: dict[float, float] = dataclasses.field(default_factory=dict, init=False)
    """Adders of a design that was placed and routed in this process -> seconds that took."""
    _told: set[str] = dataclasses.field(default_factory=set, init=False)
    """Keys of the programs whose outcome was told."""

    def explore(self) -> None:
        """Train for few bits, narrow the whole network, then single layers, and make designs."""
        self._train()
        self._narrow_all()
        self._narrow_layers()
        self._designs()

    @property
    def _late(self) -> bool:
        return self.job.late

    def _judge(self, step: Pass) -> Trial:
        candidate = Single((step,), FixedPointProgram())
        if candidate.key in self._told:
            return self.trials.done[candidate.key]
        count = len(self.trials.done)
        self.job.tell("widths", candidate.label, count, UNKNOWN)
        trial = self.trials.judge(candidate)
        self._told.add(candidate.key)
        said = f"{candidate.label}: {self.trials.outcome(trial)}"
        if trial.properties and not trial.failure:
            said += f", about {cost(trial.properties):,.0f} adders"
        self.job.tell("widths", candidate.label, count + 1, UNKNOWN, said)
        return trial

    def _train(self) -> None:
        """Train for fewer and fewer bits, until two attempts in a row lose too much."""
        failures = 0
        for step in self.trained:
            if self._late or failures > 1:
                return
            trial = self._judge(step)
            if trial.failure or trial.skipped:
                return
            failures = 0 if self.trials.able(trial) else failures + 1

    def _narrow_all(self) -> None:
        """Narrow all numbers alike, until two attempts in a row lose too much."""
        failures = 0
        for bits in WIDTHS:
            if self._late or failures > 1:
                return
            trial = self._judge(FixedPoint(bits, bits, bits))
            if trial.skipped or (trial.failure and not trial.artifact):
                return
            failures = 0 if self.trials.able(trial) else failures + 1

    def _narrow_layers(self) -> None:
        """Take bits from single layers, where they cost least accuracy.

        The start is the narrowest program under the limit whose numbers all have one width. A
        resumed run takes the same steps, with the trials in the journal.
        """
        best = self._fewest_for_all()
        left = _REFINED
        while best is not None and left > 0 and not self._late:
            step = best.candidate.passes[-1]
            assert isinstance(step, FixedPoint)
            better = None
            for other in _fewer(step, layers(best.properties or {})):
                if left <= 0 or self._late:
                    break
                known = len(self._told)
                trial = self._judge(other)
                left -= len(self._told) - known
                if self.trials.able(trial) and _cost(trial) < _cost(best):
                    better = trial
                    break
            if better is None:
                return
            best = better

    def _fewest_for_all(self) -> Trial | None:
        """Return the cheapest program under the limit whose numbers all have the same width."""
        alike = {FixedPoint(bits, bits, bits) for bits in WIDTHS}
        able = [t for t in self._programs() if t.candidate.passes[-1] in alike]
        return min(able, key=_cost, default=None)

    def _programs(self) -> list[Trial]:
        """Return the programs under the limit."""
        return [
            trial
            for trial in self.trials.done.values()
            if isinstance(trial.candidate.engine, FixedPointProgram) and self.trials.able(trial)
        ]

    def _front(self) -> list[Trial]:
        """Return the programs that no other beats in both size and safety, smallest first."""
        kept: list[Trial] = []
        for trial in sorted(self._programs(), key=_cost):
            if not kept or self.trials.risk(trial) < self.trials.risk(kept[-1]):
                kept.append(trial)
        return kept

    def _designs(self) -> None:
        """Place and route the programs worth it, then try other pipelines of the likely winner."""
        front = self._front()
        made: dict[int, Trial] = {}
        costs = [_cost(trial) for trial in front]
        for wanted in worth_designs(
            [self.trials.risk(t) for t in front], self.trials.promise.max_drop
        ):
            for place in in_place_of(costs, wanted):
                if place in made or self._late:
                    break
                if self._too_long(costs[place]):
                    self._tell_skipped(front[place])
                    continue
                made[place] = self._design(front[place], Fpga())
                if made[place].estimate is not None:
                    break
        routed = [place for place, trial in made.items() if trial.estimate is not None]
        if routed:
            self._cut_otherwise(front[routed[0]], made[routed[0]])

    def _too_long(self, cost: float) -> bool:
        """Whether routing a design would probably exceed the time limit, by those so far."""
        return any(
            seconds * (cost / known) ** _ROUTING_GROWS > self.trials.bench.limit_s
            for known, seconds in self._routed.items()
            if cost > known > 0
        )

    def _tell_skipped(self, program: Trial) -> None:
        label, count = program.candidate.label, len(self.trials.done)
        limit = f"{self.trials.bench.limit_s:.0f} s"
        said = (
            f"{label}: no design was made, because routing it would probably take longer than "
            f"{limit} (trial_limit_s=)"
        )
        self.job.tell("design", label, count, UNKNOWN, said)

    def _cut_otherwise(self, program: Trial, design: Trial) -> None:
        """Chain more additions until it gets slower twice in a row; if none helps, chain one."""
        best, misses = rank(design), 0
        for cut in _CUTS:
            if misses > 1 or self._late:
                break
            other = rank(self._design(program, Fpga(cut)))
            misses = 0 if other < best else misses + 1
            best = min(best, other)
        if best == rank(design) and not self._late:
            self._design(program, Fpga(1.0))

    def _design(self, program: Trial, engine: Fpga) -> Trial:
        candidate = Single(program.candidate.passes, engine)
        count = len(self.trials.done)
        self.job.tell("design", candidate.label, count, UNKNOWN)
        begin = time.monotonic()
        trial = self.trials.estimate(self.trials.made_as(program, candidate))
        self._routed[_cost(program)] = time.monotonic() - begin
        said = f"{candidate.label}: {self.trials.outcome(trial)}"
        if trial.estimate is not None:
            said = f"{candidate.label}: {rank(trial):.1f} ns, place-and-route"
        self.job.tell("design", candidate.label, count + 1, UNKNOWN, said)
        return trial


def _cost(trial: Trial) -> float:
    return cost(trial.properties or {})


def _fewer(step: FixedPoint, nodes: Sequence[str]) -> Iterator[FixedPoint]:
    """Yield steps with one bit less: first everywhere of one kind, then in a single layer."""
    if step.weight_bits > _LEAST:
        yield dataclasses.replace(step, weight_bits=step.weight_bits - 1, layers=_less(step, 1, 0))
    if step.activation_bits > _LEAST:
        yield dataclasses.replace(
            step, activation_bits=step.activation_bits - 1, layers=_less(step, 0, 1)
        )
    if step.input_bits > _LEAST:
        yield dataclasses.replace(step, input_bits=step.input_bits - 1)
    own = {layer.node: layer for layer in step.layers}
    for node in nodes:
        now = own.get(node, LayerWidth(node, step.weight_bits, step.activation_bits))
        for weights, activations in ((1, 0), (0, 1)):
            less = LayerWidth(node, now.weights - weights, now.activations - activations)
            if min(less.weights, less.activations) >= _LEAST:
                others = {**own, node: less}
                yield dataclasses.replace(
                    step, layers=tuple(others[name] for name in sorted(others))
                )


def _less(step: FixedPoint, weights: int, activations: int) -> tuple[LayerWidth, ...]:
    """Return a step's widths of single layers, with fewer bits as far as the least width allows."""
    return tuple(
        LayerWidth(
            layer.node,
            max(_LEAST, layer.weights - weights),
            max(_LEAST, layer.activations - activations),
        )
        for layer in step.layers
    )


def worth_designs(risks: Sequence[float], max_drop: float) -> list[int]:
    """Choose the programs to make designs of, starting with the one that will probably ship.

    Args:
        risks: Drop that each program would probably be certified for, falling, as the programs
            come smallest first.
        max_drop: Limit on the drop.

    Returns:
        Indices into `risks`: the smallest program that would be certified; one twice as safe (or
        the safest), should that one fail; and the smallest of all, should luck be good.
    """
    if not risks:
        return []
    last = len(risks) - 1
    likely = next((i for i, risk in enumerate(risks) if risk <= max_drop), last)
    safer = next((i for i, risk in enumerate(risks) if risk <= max_drop / 2), last)
    return list(dict.fromkeys((likely, safer, 0)))


def in_place_of(costs: Sequence[float], wanted: int) -> Iterator[int]:
    """Yield a program, then smaller ones to try in turn while designs don't fit or route in time.

    Args:
        costs: Adders of the programs, rising.
        wanted: Index of the program that is wanted.
    """
    yield wanted
    failed = costs[wanted]
    for place in range(wanted - 1, -1, -1):
        if costs[place] <= _SMALLER * failed:
            yield place
            failed = costs[place]
