"""What to take out of a network next, as numbers alone: what hurts least for the time that it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from hasten.errors import CandidateError
from hasten.pruning.costs import Costs
from hasten.pruning.layers import Layer
from hasten.pruning.plan import Cut
from hasten.pruning.structure import Group, cuts_of

_FINEST_SNAP = 8
_STEPS_PER_GROUP = 4
"""A group with fewer steps of the snap takes smaller ones, down to 8 channels."""


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
    """

    name: str
    count: int | None
    hurt: float
    saved_ns: float


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
            g.root: steps(g, costs.snap, least * costs.width(g.root, g.channels)) for g in groups
        }
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

    def latency_ns(self, layers: Sequence[Layer], counts: Mapping[str, int]) -> float:
        """Return what some of the layers take with so many channels left in each group."""
        total = 0.0
        for layer in layers:
            inputs, outputs = layer.shape.inputs, layer.shape.outputs
            for root, reads, each in self._parts.get(layer.name, ()):
                gone = each * (self._groups[root].channels - counts[root])
                inputs, outputs = (inputs - gone, outputs) if reads else (inputs, outputs - gone)
            total += self._costs.at(layer.name, inputs, outputs)
        return total

    def predicted_ns(self) -> float:
        """Return what all takes now."""
        return self._costs.constant_ns + self.latency_ns(self._layers, self.counts)

    def options(self) -> Iterator[_Option]:
        """Yield all that could go next and saves time."""
        for root, group in self._groups.items():
            touched, have = self._touched[root], self.counts[root]
            takes = self.latency_ns(touched, self.counts)
            lost = self._lost[root]
            for count in self._steps[root]:
                if count >= have:
                    continue
                saved = takes - self.latency_ns(touched, {**self.counts, root: count})
                hurt = lost[group.channels - count] - lost[group.channels - have]
                if saved > 0:
                    yield _Option(root, count, float(hurt), saved)
        for name, hurt in self._blocks.items():
            inside = [layer for layer in self._layers if layer.name.startswith(f"{name}.")]
            saved = self.latency_ns(inside, self.counts)
            if saved > 0:
                yield _Option(name, None, hurt, saved)

    def run(self, target_ns: float) -> str | None:
        """Take out what hurts least for the time that it saves, until the target is reached.

        Returns:
            A block that is to go next; None when the target is reached with channels alone.

        Raises:
            CandidateError: it can't be reached.
        """
        while (takes := self.predicted_ns()) > target_ns:
            options = list(self.options())
            if not options:
                raise CandidateError(
                    f"pruning can't reach {target_ns / 1e6:.3f} ms: the least is {takes / 1e6:.3f} ms"
                )
            best = min(options, key=lambda one: (one.hurt / one.saved_ns, -one.saved_ns))
            if best.saved_ns > takes - target_ns:
                # Any that is enough will do: of these, what hurts least.
                enough = [one for one in options if one.saved_ns >= takes - target_ns]
                best = min(enough, key=lambda one: (one.hurt, -one.saved_ns))
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


def steps(group: Group, snap: int, least: float) -> tuple[int, ...]:
    """Return how many of a group's channels may be left, at least so many, the most first.

    They are multiples of the snap. Heads go one by one. A narrow group takes smaller steps, halved down to 8 channels.
    """
    step = 1 if group.heads else snap
    while step > _FINEST_SNAP and group.channels < _STEPS_PER_GROUP * step:
        step //= 2
    lowest = max(step, int(np.ceil(least)))
    top = (group.channels - 1) // step * step
    return tuple(n for n in range(top, 0, -step) if n >= lowest)
