"""Pruning to a latency: channels and blocks by what their loss hurts for each millisecond saved."""

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
"""Blocks that are looked at again when one was skipped."""
LEAST = 0.25
"""Of a group's channels, what stays at least."""


@dataclass(frozen=True)
class Pruned:
    """A smaller module, and what was done.

    Attributes:
        module: In the mode that the original was in; not fine-tuned, its normalization not set anew.
        plan: How to make it of the module that was given.
        kept: Layer -> channels that it gave before, and gives now; only those that changed.
        before_ns: What the module took, by the costs.
        predicted_ns: What this takes, by the costs.
        macs_before: Multiplications of one sample before.
        macs_after: And now.
    """

    module: nn.Module
    plan: PruningPlan
    kept: dict[str, tuple[int, int]]
    before_ns: float
    predicted_ns: float
    macs_before: int
    macs_after: int


def schedule(now_ns: float, target_ns: float, steps: int) -> tuple[float, ...]:
    """Return the latencies to prune to one after another, each the same share of the one before.

    Raises:
        InputError: no steps, or the target isn't below what it takes now.
    """
    if steps < 1 or not 0 < target_ns < now_ns:
        raise InputError(
            f"pruning goes down from {now_ns / 1e6:.3f} ms in at least 1 step; asked were "
            f"{target_ns / 1e6:.3f} ms in {steps}"
        )
    return tuple(now_ns * (target_ns / now_ns) ** (i / steps) for i in range(1, steps + 1))


class Prunable:
    """A module that may be pruned to several latencies; what is found out of it is kept.

    What the outputs are made of stays, and so does whatever can't be proven to be removable; see
    `structure.groups`.

    Args:
        module: Untouched. It may have been pruned before.
        sample: What it can run, as costs are measured.
        losses: What hurts; see `importance.importance`.
        keep: Layers that must give all their channels, by path; so no block with one goes.
        blocks: Whether whole blocks may go.

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
        """Take out of a copy what hurts least for the time that it saves, down to a latency.

        When a block goes, all that was chosen so far is chosen anew without it.

        Args:
            costs: Of the layers of the module, or of the one that it was pruned from, by name.
            target_ns: By these costs.
            least: Of each group's channels as the costs know them, the share that stays at least.

        Raises:
            CandidateError: the target can't be reached; it says what the least is.

        Source: importance lost for latency saved, by a table of measured latencies: Shen et al., HALP,
        arXiv:2110.10811; Yang et al., NetAdapt, arXiv:1804.03230.
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
        """Look at a module; at the blocks that hurt least when one more of them was there."""
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
    """Return what each layer gives, before and after; 0 where it is gone with its block."""
    now = {layer.name: layer.shape.outputs for layer in after}
    pairs = {layer.name: (layer.shape.outputs, now.get(layer.name, 0)) for layer in before}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _free(blocks: Sequence[str], keep: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks without a layer that is to be kept."""
    return tuple(
        block for block in blocks if not any(f"{name}.".startswith(f"{block}.") for name in keep)
    )
