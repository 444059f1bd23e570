"""What to take out of a network next, as numbers alone: what hurts least for the time that it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from hasten.errors import CandidateError
from hasten.lightening.pruning.costs import Costs, widths
from hasten.lightening.pruning.layers import Layer
from hasten.lightening.pruning.plan import Cut
from hasten.lightening.pruning.structure import Group, cuts_of

_FINEST_SNAP = 8
_STEPS_PER_GROUP = 4
"""A group with fewer steps of the snap takes smaller ones, down to 8 channels."""

WORTH = 0.85
"""Speed-up over the reduction of products, which is kept to as long as there is a choice."""


@dataclass(frozen=True)
class Look:
    """What was found out of a module without some of its blocks.

    Attributes:
        module: A copy, with these skipped.
        layers: Its layers.
        groups: Each with what its channels matter.
        blocks: What each of the rest hurts.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    groups: Mapping[Group, npt.NDArray[np.float64]]
    blocks: Mapping[str, float]


@dataclass(frozen=True)
class _Option:
    """One thing to take out next: some more of a group's channels, or a block.

    Attributes:
        name: The group's root, or the block's path.
        count: How many of the group's channels stay; None for a block.
        hurt: How far the loss moves.
        saved_ns: What it saves.
        saved_macs: Multiplications that it takes out.
    """

    name: str
    count: int | None
    hurt: float
    saved_ns: float
    saved_macs: int


class Shrinking:
    """A network on its way to fewer channels, as numbers alone."""

    def __init__(self, look: Look, costs: Costs, least: float) -> None:
        self._layers, self._costs, self._blocks = look.layers, costs, look.blocks
        groups = look.groups
        self._groups = {group.root: group for group in groups}
        self._orders = {g.root: np.argsort(v, kind="stable") for g, v in groups.items()}
        self._lost = {
            g.root: np.concatenate([[0.0], np.cumsum(np.sort(v))]) for g, v in groups.items()
        }
        self._steps = {
            g.root: steps(g, costs.snap, costs.width(g.root, g.channels), least) for g in groups
        }
        self._known: dict[tuple[str, int, int], int] = {}
        self.counts = {group.root: group.channels for group in groups}
        # Layer -> (group, whether of what it reads, how many of its indices go with a channel).
        self._parts: dict[str, list[tuple[str, bool, int]]] = {}
        for group in groups:
            for member in group.members:
                each = max(len(indices) for indices in member.indices)
                self._parts.setdefault(member.name, []).append(
                    (group.root, member.axis == "inputs", each)
                )
        self._touched = {
            root: [
                layer
                for layer in look.layers
                if any(part[0] == root for part in self._parts.get(layer.name, ()))
            ]
            for root in self._groups
        }

    def takes(self, layers: Sequence[Layer], counts: Mapping[str, int]) -> tuple[float, int]:
        """Return nanoseconds and products of some layers, with so many channels in each group."""
        total_ns, macs = 0.0, 0
        for layer in layers:
            inputs, outputs = layer.shape.inputs, layer.shape.outputs
            for root, reads, each in self._parts.get(layer.name, ()):
                gone = each * (self._groups[root].channels - counts[root])
                inputs, outputs = (inputs - gone, outputs) if reads else (inputs, outputs - gone)
            total_ns += self._costs.at(layer.name, inputs, outputs)
            macs += self._macs(layer, inputs, outputs)
        return total_ns, macs

    def _macs(self, layer: Layer, inputs: int, outputs: int) -> int:
        key = (layer.name, inputs, outputs)
        if key not in self._known:
            self._known[key] = layer.shape.of(inputs, outputs).macs
        return self._known[key]

    def now(self) -> tuple[float, int]:
        """Return what all takes now: nanoseconds and products."""
        layers_ns, macs = self.takes(self._layers, self.counts)
        return self._costs.constant_ns + layers_ns, macs

    def options(self) -> Iterator[_Option]:
        """Yield all that could go next and saves time."""
        for root, group in self._groups.items():
            touched, have = self._touched[root], self.counts[root]
            now_ns, now_macs = self.takes(touched, self.counts)
            lost = self._lost[root]
            for count in self._steps[root]:
                if count >= have:
                    continue
                then_ns, then_macs = self.takes(touched, {**self.counts, root: count})
                hurt = float(lost[group.channels - count] - lost[group.channels - have])
                if then_ns < now_ns:
                    yield _Option(root, count, hurt, now_ns - then_ns, now_macs - then_macs)
        for name, hurt in self._blocks.items():
            inside = [layer for layer in self._layers if layer.name.startswith(f"{name}.")]
            saved_ns, saved_macs = self.takes(inside, self.counts)
            if saved_ns > 0:
                yield _Option(name, None, hurt, saved_ns, saved_macs)

    def run(self, target_ns: float, whole: tuple[float, int]) -> str | None:
        """Take out what hurts least for the time that it saves, until the target is reached.

        What would lose many products for little time waits until there is nothing else: products
        are what fine-tuning works with.

        Args:
            target_ns: The latency to reach.
            whole: Nanoseconds and products of the network that nothing was taken out of.

        Returns:
            A block that is to go next; None when the target is reached with channels alone.

        Raises:
            CandidateError: it can't be reached.
        """
        while (now := self.now())[0] > target_ns:
            options = list(self.options())
            if not options:
                raise CandidateError(
                    f"pruning can't reach {target_ns / 1e6:.3g} ms: the least is {now[0] / 1e6:.3g} ms"
                )
            best = _best(options, now, target_ns, whole)
            if best.count is None:
                return best.name
            self.counts[best.name] = best.count
        return None

    def cuts(self) -> tuple[Cut, ...]:
        """Return what was chosen."""
        return cuts_of(
            [
                (group, self._orders[root][: group.channels - self.counts[root]].tolist())
                for root, group in self._groups.items()
                if self.counts[root] < group.channels
            ]
        )


def _best(
    options: list[_Option], now: tuple[float, int], target_ns: float, whole: tuple[float, int]
) -> _Option:
    """Return what hurts least for the time that it saves, of what keeps products in proportion."""

    def worth(one: _Option) -> float:
        macs, time_ns = (now[1] - one.saved_macs) / whole[1], (now[0] - one.saved_ns) / whole[0]
        return macs / time_ns

    good = [one for one in options if worth(one) >= WORTH] or options
    best = min(good, key=lambda one: (one.hurt / one.saved_ns, -one.saved_ns))
    left_ns = now[0] - target_ns
    if best.saved_ns > left_ns:
        # Any that is enough will do: of these, what hurts least.
        best = min((o for o in good if o.saved_ns >= left_ns), key=lambda o: (o.hurt, -o.saved_ns))
    return best


def steps(group: Group, snap: int, width: int, least: float) -> tuple[int, ...]:
    """Return how many of a group's channels may be left, the most first.

    These are widths at which layers are timed: between them kernels are as slow as at the next.

    Args:
        group: Its heads go one by one.
        snap: The rest are multiples of it; in a narrow group of half of it, down to 8.
        width: How many channels there were at first.
        least: Share of these that stays at least.
    """
    lowest = max(1, least * width)
    if group.heads:
        return tuple(n for n in range(group.channels - 1, 0, -1) if n >= lowest)
    step = snap
    while step > _FINEST_SNAP and width < _STEPS_PER_GROUP * step:
        step //= 2
    fit = [n for n in widths(width) if n % step == 0 and lowest <= n < group.channels]
    return tuple(sorted(fit, reverse=True))
