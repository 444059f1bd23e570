"""Layers to leave in float, by what int8 costs each in accuracy and saves in time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.engines.layers import LayerTime
from hasten.measure.roofline import Floor

_CLOSE = 1.5
"""Shares that differ by a smaller factor keep much the same layers."""
SLOWER = 1.1
"""Least ratio of int8 to float time at which a layer counts as slower; less is profiling noise."""


@dataclass(frozen=True)
class LayerCost:
    """Cost and saving of running one layer in int8.

    Attributes:
        node: Name of the ONNX node.
        noise: Error that int8 here adds to the answers, relative to their variance.
        float_ns: Time of the layer in float per request, in nanoseconds.
        int8_ns: Time of the layer in int8 per request, in nanoseconds.
        moved_ns: Least time to read and write the layer's tensors in float, in nanoseconds, which a
            float layer among int8 layers spends on conversions.
    """

    node: str
    noise: float
    float_ns: float
    int8_ns: float
    moved_ns: float = 0.0

    @property
    def slower(self) -> bool:
        """Whether the layer would be faster in float, conversions included."""
        return self.int8_ns > self.float_ns * SLOWER + self.moved_ns

    @property
    def price_ns(self) -> float:
        """Return what float costs here, in nanoseconds: int8's saving plus the conversions."""
        return max(0.0, self.float_ns - self.int8_ns) + self.moved_ns


def layer_costs(
    noise: Mapping[str, float],
    floats: Iterable[LayerTime],
    int8: Iterable[LayerTime],
    moved_ns: Mapping[str, float] | None = None,
) -> tuple[LayerCost, ...]:
    """Combine noise and profiles into the cost of each layer.

    Args:
        noise: Node -> noise that int8 adds there.
        floats: Profile of the exact model.
        int8: Profile of the quantized model, on the same engine.
        moved_ns: Node -> least time to move its inputs and outputs in float, in nanoseconds; None
            where unknown.

    Returns:
        Costs of the layers that both profiles show, in the order of `noise`.
    """
    before, after = _time_by_node(floats, noise), _time_by_node(int8, noise)
    return tuple(
        LayerCost(node, own, before[node], after[node], (moved_ns or {}).get(node, 0.0))
        for node, own in noise.items()
        if node in before and node in after
    )


def costs_at_least(noise: Mapping[str, float], floats: Floor, int8: Floor) -> tuple[LayerCost, ...]:
    """Combine noise and floors into the cost of each layer, where no profile is available.

    Args:
        noise: Node -> noise that int8 adds there.
        floats: Least time of each layer on this machine in float.
        int8: Least time of each layer on this machine in int8.
    """
    before = {layer.name: layer for layer in floats.layers}
    after = {layer.name: layer for layer in int8.layers}
    return tuple(
        LayerCost(node, own, before[node].floor_ns, after[node].floor_ns, floats.moved_ns[node])
        for node, own in noise.items()
        if node in before and node in after
    )


def _time_by_node(steps: Iterable[LayerTime], nodes: Iterable[str]) -> dict[str, float]:
    """Return each layer's median time; a fused step is split evenly among its layers."""
    known = set(nodes)
    found: dict[str, float] = {}
    for step in steps:
        mine = known.intersection(step.sources)
        for node in mine:
            share = float(np.median(step.latency_ns)) / len(mine)
            found[node] = found.get(node, 0.0) + share
    return found


def slower_in_int8(costs: Sequence[LayerCost]) -> tuple[str, ...]:
    """Return the layers that are slower in int8, which no search should leave in it."""
    return tuple(cost.node for cost in costs if cost.slower)


def kept_for(costs: Sequence[LayerCost], share: float) -> tuple[str, ...]:
    """Return the layers to leave in float so that at most a share of the noise remains.

    Layers that int8 slows down are always among them. The rest are taken in the order of noise
    removed per time given up, which is within one layer of the best choice there is (Dantzig 1957,
    on the knapsack problem).

    Args:
        costs: Costs of all layers.
        share: Largest share of the whole noise that may remain, from 0 to 1.

    Returns:
        Names of nodes, in the order of `costs`.
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
    """Return the noise removed per nanosecond given up."""
    return cost.noise / cost.price_ns if cost.price_ns > 0 else math.inf


def shares_for(
    scale: float,
    own: float = 0.0,
    within: float = 0.0,
    factors: Sequence[float] = (1.0, 0.5, 0.2),
) -> tuple[float, ...]:
    """Return the shares of the noise worth trying, given the factor by which flips must shrink.

    An answer flips where its error exceeds its margin. For small errors flips are proportional to
    the error's size, that is to the root of its energy. The first share returned follows from that
    law; the others allow for luck in the figures it is computed from.

    Args:
        scale: Factor on the flips, from 0 to 1; at either end there is nothing to try.
        own: Noise of the engine's own float, as a share of the same noise. No choice of layers
            removes it; where it alone is too much, nothing is worth trying.
        within: Share of the noise that comes from the float of the engine that ran the layers,
            instead of from int8.
        factors: Factors on the share that may remain.
    """
    left = scale**2 - own
    if scale >= 1 or left <= 0 or within >= 1:
        return ()
    shares = (left / (1 - within) * factor for factor in factors)
    return tuple(share for share in shares if share < 1)


def between_shares(passes: Mapping[float, bool]) -> float | None:
    """Return a share between the largest that passes and the next that doesn't.

    Where no share passes, the result is smaller than all of them.

    Args:
        passes: Share -> whether it would probably be certified.

    Returns:
        The share; None where the largest passes, or the two are close.
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
