"""Which layers to leave in float: by what each costs in answers and what int8 saves there in time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.engines.layers import LayerTime
from hasten.measure.roofline import Floor

_CLOSE = 1.5
"""Shares that differ by less keep much the same layers."""
SLOWER = 1.1
"""A layer counts as slower in int8 from this ratio on: less is the noise of one profile."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer in int8 costs and saves.

    Attributes:
        node: The ONNX node's name.
        noise: What it adds to the answers' error, relative to their variance.
        float_ns: Time of its step in float, of one request.
        int8_ns: The same in int8.
        moved_ns: What it takes at the least to read and write all that it does in float: among
            layers in int8, that must be converted on the way.
    """

    node: str
    noise: float
    float_ns: float
    int8_ns: float
    moved_ns: float = 0.0

    @property
    def slower(self) -> bool:
        """Whether it would be faster in float, its inputs and outputs converted."""
        return self.int8_ns > self.float_ns * SLOWER + self.moved_ns

    @property
    def price_ns(self) -> float:
        """What it takes to have it in float: what int8 saves there, and the conversions."""
        return max(0.0, self.float_ns - self.int8_ns) + self.moved_ns


def layer_costs(
    noise: Mapping[str, float],
    floats: Iterable[LayerTime],
    int8: Iterable[LayerTime],
    moved_ns: Mapping[str, float] | None = None,
) -> tuple[LayerCost, ...]:
    """Put together what is known of each layer.

    Args:
        noise: Node -> its noise in int8.
        floats: The exact model's profile.
        int8: The quantized model's, on the same engine.
        moved_ns: Node -> what it takes to move its inputs and outputs in float; None where that
            isn't known.

    Returns:
        The layers that both profiles show, in the order of `noise`.
    """
    before, after = _time_by_node(floats, noise), _time_by_node(int8, noise)
    return tuple(
        LayerCost(node, own, before[node], after[node], (moved_ns or {}).get(node, 0.0))
        for node, own in noise.items()
        if node in before and node in after
    )


def costs_at_least(noise: Mapping[str, float], floats: Floor, int8: Floor) -> tuple[LayerCost, ...]:
    """Put together what is known of each layer where no profile tells what int8 saves there.

    Args:
        noise: Node -> its noise in int8.
        floats: The least time of each layer on this machine in float.
        int8: The same in int8.
    """
    before = {layer.name: layer for layer in floats.layers}
    after = {layer.name: layer for layer in int8.layers}
    return tuple(
        LayerCost(node, own, before[node].floor_ns, after[node].floor_ns, floats.moved_ns[node])
        for node, own in noise.items()
        if node in before and node in after
    )


def _time_by_node(steps: Iterable[LayerTime], nodes: Iterable[str]) -> dict[str, float]:
    """Return each layer's time, the median of the requests; a step of several layers is shared out."""
    known = set(nodes)
    found: dict[str, float] = {}
    for step in steps:
        mine = known.intersection(step.sources)
        for node in mine:
            share = float(np.median(step.latency_ns)) / len(mine)
            found[node] = found.get(node, 0.0) + share
    return found


def slower_in_int8(costs: Sequence[LayerCost]) -> tuple[str, ...]:
    """Return the layers that no search should leave in int8."""
    return tuple(cost.node for cost in costs if cost.slower)


def kept_for(costs: Sequence[LayerCost], share: float) -> tuple[str, ...]:
    """Return the layers to leave in float so that at most a share of the noise remains.

    Those that int8 makes slower are among them in any case. Then whoever takes away the most noise
    for the time that it gives up comes first, which is within one layer of the best choice there is
    (Dantzig 1957, on the knapsack problem).

    Args:
        costs: Of all layers.
        share: Of all the noise, from 0 to 1.

    Returns:
        Node names, in the order of `costs`.
    """
    slower = set(slower_in_int8(costs))
    kept = set(slower)
    left = sum(cost.noise for cost in costs if cost.node not in slower)
    wanted = share * sum(cost.noise for cost in costs)
    rest = [cost for cost in costs if cost.node not in slower]
    for cost in sorted(rest, key=_worth, reverse=True):
        if left <= wanted:
            break
        kept.add(cost.node)
        left -= cost.noise
    return tuple(cost.node for cost in costs if cost.node in kept)


def _worth(cost: LayerCost) -> float:
    """Noise taken away for each nanosecond given up."""
    return cost.noise / cost.price_ns if cost.price_ns > 0 else math.inf


def shares_for(
    scale: float,
    own: float = 0.0,
    within: float = 0.0,
    factors: Sequence[float] = (1.0, 0.5, 0.2),
) -> tuple[float, ...]:
    """Return the shares of the noise worth trying where the flips are to shrink to a share of theirs.

    Answers flip where the error exceeds their margin: for small errors as often as it is large,
    the root of its energy. The first share is what that foretells; the others allow for luck in
    the figures that it was foretold from.

    Args:
        scale: From 0 to 1; at either end there is nothing to try.
        own: What stays whatever goes back to float, as a share of the same noise: that of the
            engine's own float. Nothing is worth trying where it alone is too much.
        within: What of the noise isn't the layers' in int8, but of the float of the engine that
            ran them.
        factors: Of what may stay.
    """
    left = scale**2 - own
    if scale >= 1 or left <= 0 or within >= 1:
        return ()
    shares = (left / (1 - within) * factor for factor in factors)
    return tuple(share for share in shares if share < 1)


def between_shares(passes: Mapping[float, bool]) -> float | None:
    """Return a share between the largest that passes and the next that doesn't; less where none does.

    Args:
        passes: Share -> whether it would probably be certified.

    Returns:
        None where the largest passes, or the two are close.
    """
    if not passes:
        return None
    good = [share for share, passed in passes.items() if passed]
    if not good:
        return min(passes) / 4
    worse = [share for share in passes if share > max(good)]
    if not worse or min(worse) < _CLOSE * max(good):
        return None
    return math.sqrt(max(good) * min(worse))
