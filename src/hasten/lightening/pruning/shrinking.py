"""Choose what to remove from a network next, from numbers alone: the least hurt per time saved."""

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
"""Number of steps below which a group uses smaller ones than the snap, down to 8 channels."""

WORTH = 0.85
"""Least ratio of multiply-adds kept to time kept, observed as long as there is a choice."""


@dataclass(frozen=True)
class Look:
    """Ratings of a module without some of its blocks.

    Attributes:
        module: Copy of the module with these blocks skipped.
        layers: Layers of the copy.
        groups: Importance of each channel, by group.
        blocks: Increase of the loss without a block, for each of the rated remaining blocks.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    groups: Mapping[Group, npt.NDArray[np.float64]]
    blocks: Mapping[str, float]


@dataclass(frozen=True)
class _Option:
    """Next removal: some of a group's channels, or a block.

    Attributes:
        name: Root of the group, or path of the block.
        count: Number of the group's channels that stay; None for a block.
        hurt: Estimated mean squared change of the loss.
        saved_ns: Time saved, in nanoseconds.
        saved_macs: Multiply-adds saved.
    """

    name: str
    count: int | None
    hurt: float
    saved_ns: float
    saved_macs: int


class Shrinking:
    """State of a network that is being pruned, as numbers alone."""

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
        # By layer: (group, whether along its inputs, number of its indices per channel).
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
        """Return nanoseconds and multiply-adds of layers for these numbers of channels by group."""
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
        """Return the current latency in nanoseconds and the multiply-adds."""
        layers_ns, macs = self.takes(self._layers, self.counts)
        return self._costs.constant_ns + layers_ns, macs

    def options(self) -> Iterator[_Option]:
        """Yield all removals that save time."""
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
        """Remove what hurts least for the time it saves, until the target is reached.

        Removals of many multiply-adds that save little time come last, since fine-tuning depends on
        the multiply-adds that remain.

        Args:
            target_ns: Latency to reach, in nanoseconds.
            whole: Latency in nanoseconds and multiply-adds of the unpruned network.

        Returns:
            Path of a block to remove next; None once removing channels has reached the target.

        Raises:
            CandidateError: the target can't be reached.
        """
        while (now := self.now())[0] > target_ns:
            options = list(self.options())
            if not options:
                raise CandidateError(
                    f"pruning can't reach {target_ns / 1e6:.3g} ms: the lowest latency is "
                    f"{now[0] / 1e6:.3g} ms"
                )
            best = _best(options, now, target_ns, whole)
            if best.count is None:
                return best.name
            self.counts[best.name] = best.count
        return None

    def cuts(self) -> tuple[Cut, ...]:
        """Return the cuts chosen so far."""
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
    """Return the removal that hurts least for its time, of those that keep enough multiply-adds."""

    def worth(one: _Option) -> float:
        macs, time_ns = (now[1] - one.saved_macs) / whole[1], (now[0] - one.saved_ns) / whole[0]
        return macs / time_ns

    good = [one for one in options if worth(one) >= WORTH] or options
    best = min(good, key=lambda one: (one.hurt / one.saved_ns, -one.saved_ns))
    left_ns = now[0] - target_ns
    if best.saved_ns > left_ns:
        # Any that saves enough will do: take the one that hurts least.
        best = min((o for o in good if o.saved_ns >= left_ns), key=lambda o: (o.hurt, -o.saved_ns))
    return best


def steps(group: Group, snap: int, width: int, least: float) -> tuple[int, ...]:
    """Return the numbers of channels that a group may keep, in descending order.

    Layers are timed at these widths; in between, kernels are as slow as at the next larger one.

    Args:
        group: Group of channels; attention heads are removed one by one.
        snap: Number of which channel counts are multiples; it is halved for narrow groups, down
            to 8.
        width: Original number of channels.
        least: Least share of the original channels that must stay.
    """
    lowest = max(1, least * width)
    if group.heads:
        return tuple(n for n in range(group.channels - 1, 0, -1) if n >= lowest)
    step = snap
    while step > _FINEST_SNAP and width < _STEPS_PER_GROUP * step:
        step //= 2
    fit = [n for n in widths(width) if n % step == 0 and lowest <= n < group.channels]
    return tuple(sorted(fit, reverse=True))
