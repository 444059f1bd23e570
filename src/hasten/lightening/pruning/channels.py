"""Prune to a latency: remove the channels and blocks that hurt least per millisecond saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hasten.errors import InputError
from hasten.lightening.pruning.blocks import candidates, hurts
from hasten.lightening.pruning.costs import Costs
from hasten.lightening.pruning.importance import Losses, importance
from hasten.lightening.pruning.layers import Layer, Sample, layers
from hasten.lightening.pruning.plan import PruningPlan, apply
from hasten.lightening.pruning.shrinking import Look, Shrinking
from hasten.lightening.pruning.skip import Skip
from hasten.lightening.pruning.structure import groups

_LIKELY = 12
"""Largest number of blocks that are rated again after one was skipped."""
LEAST = 0.25
"""Least share of a group's channels that must stay."""


@dataclass(frozen=True)
class Pruned:
    """Pruned module, with the plan that made it.

    Attributes:
        module: Pruned module in the original's mode, neither fine-tuned nor with recalibrated
            normalizations.
        plan: Plan that makes the pruned module from the original.
        kept: Output channels before and after pruning, by layer; only layers that changed.
        before_ns: Estimated latency of the original, in nanoseconds.
        predicted_ns: Estimated latency of the pruned module, in nanoseconds.
        macs_before: Multiply-adds of one sample in the original.
        macs_after: Multiply-adds of one sample in the pruned module.
    """

    module: nn.Module
    plan: PruningPlan
    kept: dict[str, tuple[int, int]]
    before_ns: float
    predicted_ns: float
    macs_before: int
    macs_after: int


def schedule(now_ns: float, target_ns: float, steps: int) -> tuple[float, ...]:
    """Return the latencies to prune to in turn, in a geometric sequence that ends at the target.

    Raises:
        InputError: there are no steps, or the target isn't below the current latency.
    """
    if steps < 1 or not 0 < target_ns < now_ns:
        raise InputError(
            f"pruning needs at least 1 step and a target below {now_ns / 1e6:.3f} ms: got "
            f"{target_ns / 1e6:.3f} ms in {steps} steps"
        )
    return tuple(now_ns * (target_ns / now_ns) ** (i / steps) for i in range(1, steps + 1))


class Prunable:
    """Module that can be pruned to several latencies; its ratings are computed once.

    Channels of the outputs stay, and so do all that can't be proven removable; see
    `structure.groups`.

    Args:
        module: Module to prune, which may have been pruned before; it isn't changed.
        sample: Sample that the module can run, of the shape at which costs are measured.
        losses: Losses that rate channels and blocks; see `importance.importance`.
        keep: Paths of layers that must keep all output channels; blocks that contain one stay.
        blocks: Whether to remove whole blocks too.

    Raises:
        InputError: the module can't run the sample, can't be traced, or a loss has no gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        sample: Sample,
        losses: Losses,
        *,
        keep: Sequence[str] = (),
        blocks: bool = True,
    ) -> None:
        self._module, self._sample, self._losses = module, sample, losses
        self._keep, self._with_blocks = keep, blocks
        self._looks: dict[tuple[str, ...], Look] = {}
        self._looks[()] = self._look(copy.deepcopy(module))

    def to(self, costs: Costs, target_ns: float, *, least: float = LEAST) -> Pruned:
        """Return a copy pruned to a latency by removing what hurts least for the time it saves.

        When a block is removed, the choice of channels starts again without it.

        Args:
            costs: Costs of the module's layers, or of those of the module that it was pruned from.
            target_ns: Latency to reach by these costs, in nanoseconds.
            least: Least share of each group's channels that must stay, relative to the widths that
                the costs were measured at.

        Raises:
            CandidateError: the target can't be reached; names the lowest latency that can.

        Source: importance lost per latency saved, from a table of measured latencies: Shen et al.,
        HALP, arXiv:2110.10811; Yang et al., NetAdapt, arXiv:1804.03230.
        """
        original = self._looks[()].layers
        macs = sum(layer.shape.macs for layer in original)
        before_ns = costs.predicted_ns(original)
        skipped: tuple[str, ...] = ()
        while True:
            look = self._looks[skipped]
            shrinking = Shrinking(look, costs, least)
            block = shrinking.run(target_ns, (before_ns, macs))
            if block is None:
                break
            before, skipped = look, (*skipped, block)
            if skipped not in self._looks:
                now = apply(before.module, PruningPlan((block,)))
                self._looks[skipped] = self._look(now, before)
        plan = PruningPlan(skipped, shrinking.cuts())
        smaller = apply(self._module, plan)
        after = layers(smaller, self._sample)
        return Pruned(
            smaller,
            plan,
            _changes(original, after),
            before_ns,
            costs.predicted_ns(after),
            macs,
            sum(layer.shape.macs for layer in after),
        )

    def _look(self, module: nn.Module, before: Look | None = None) -> Look:
        """Rate a module's channels and blocks; after a skip, only blocks that hurt least before."""
        found = groups(
            module, self._sample, self._keep, proven=tuple(before.groups) if before else ()
        )
        matters = importance(module, self._losses, found)
        blocks: tuple[str, ...] = ()
        if self._with_blocks and before is None:
            blocks = _free(candidates(module, self._sample), self._keep)
        elif before is not None:
            there = {name for name, part in module.named_modules() if not isinstance(part, Skip)}
            likely = sorted(before.blocks, key=before.blocks.__getitem__)
            blocks = tuple(name for name in likely if name in there)[:_LIKELY]
        return Look(
            module,
            layers(module, self._sample),
            {group: matters[group.root] for group in found},
            hurts(module, self._losses, blocks),
        )


def _changes(before: Sequence[Layer], after: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """Return changed layers' output channels before and after; 0 for a layer of a removed block."""
    now = {layer.name: layer.shape.outputs for layer in after}
    pairs = {layer.name: (layer.shape.outputs, now.get(layer.name, 0)) for layer in before}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _free(blocks: Sequence[str], keep: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks that contain no layer to keep."""
    return tuple(
        block for block in blocks if not any(f"{name}.".startswith(f"{block}.") for name in keep)
    )
