"""The floor: the least time in which any engine runs layers on this machine. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.core.words import amount
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.bandwidth import Level

Bound: TypeAlias = Literal["arithmetic", "bytes", "overhead"]

_NAMED = 3
"""Largest number of layers to name in a message."""
_WIDTH_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i8": 1}


@dataclass(frozen=True)
class LayerWork:
    """The least that one layer has to do for one request, however it is done.

    Attributes:
        name: Name of its ONNX node, or of the node's first output where the node has none.
        operator: Operator of its ONNX node: "Conv", "MatMul", ...
        operations: Number of operations; a multiply-accumulate counts as two, and products with
            padding aren't counted. 0 where the number is unknown: see `counted`.
        read: Number of elements that it needs of other layers' outputs.
        weights: Number of elements of constants that it multiplies with, unless an earlier layer
            needs them too.
        written: Number of elements that it outputs.
    """

    name: str
    operator: str
    operations: int = 0
    read: int = 0
    weights: int = 0
    written: int = 0

    @property
    def counted(self) -> bool:
        """Whether its work is known; if its shapes or operator are unknown, it may do anything."""
        return self.operations > 0


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen of a machine on a number of threads; nothing is sure to reach it.

    Ceilings are lower bounds on what the machine can do: a neighbour's load during the measurement
    makes them, and with them every floor, wrong in the same direction. A candidate below its floor
    shows that they were measured too low.

    Attributes:
        threads: Number of threads that worked at once; figures of different numbers don't mix.
        operations_per_s: Precision -> rate of the fastest engine's fastest kernel, where a
            multiply-accumulate counts as two; "f32", "i8", and "bf16" if the processor has it.
        reached_by: Precision -> engine and kernel that reached the rate.
        levels: Caches and memory, nearest first.
        empty_call_ns: Fastest engine's p50, in nanoseconds, of a model that passes one number on.
    """

    threads: int
    operations_per_s: dict[str, float]
    reached_by: dict[str, str]
    levels: tuple[Level, ...]
    empty_call_ns: float


@dataclass(frozen=True)
class LayerFloor:
    """One layer's part of the floor.

    Attributes:
        name: Name of its ONNX node.
        operator: Operator of its ONNX node.
        precision: Precision that the floor assumes.
        arithmetic_ns: Time of its operations at the machine's best rate, in nanoseconds.
        bytes_ns: Time of its reads and writes at the machine's best rate, in nanoseconds.
        activations_ns: Time of its reads and writes without weights, in nanoseconds.
    """

    name: str
    operator: str
    precision: str
    arithmetic_ns: float
    bytes_ns: float
    activations_ns: float = 0.0

    @property
    def floor_ns(self) -> float:
        """Return the longer of arithmetic and bytes, since at best one hides the other."""
        return max(self.arithmetic_ns, self.bytes_ns)

    @property
    def binds(self) -> Bound:
        """Return which of arithmetic and bytes takes longer."""
        return "arithmetic" if self.arithmetic_ns >= self.bytes_ns else "bytes"


@dataclass(frozen=True)
class Floor:
    """The least time that one request takes.

    Attributes:
        layers: Floors of the layers, in order.
        overhead_ns: Time of an empty call, in nanoseconds.
        threads: Number of threads of the ceilings.
        uncounted: Names of layers whose work is unknown; with any, there is no floor of the whole.
    """

    layers: tuple[LayerFloor, ...]
    overhead_ns: float
    threads: int
    uncounted: tuple[str, ...] = ()

    @property
    def floor_ns(self) -> float:
        """Return the time of all layers one after another plus an empty call, in nanoseconds.

        Raises:
            CandidateError: the floor isn't whole.
        """
        self.check_whole()
        return self.overhead_ns + sum(layer.floor_ns for layer in self.layers)

    @property
    def whole(self) -> bool:
        """Whether the floor covers the whole model: it has layers, all with known work."""
        return bool(self.layers) and not self.uncounted

    def check_whole(self) -> None:
        """Check that a part of the layers doesn't pass for all of them.

        Raises:
            CandidateError: the floor isn't whole.
        """
        if not self.layers:
            raise CandidateError("the model has no products to count")
        if not self.whole:
            few = ", ".join(map(repr, self.uncounted[:_NAMED]))
            more = ", ..." if len(self.uncounted) > _NAMED else ""
            raise CandidateError(
                f"the work of {len(self.uncounted)} of {len(self.layers)} layers can't be counted: "
                f"{few}{more}"
            )

    @property
    def parts_ns(self) -> dict[Bound, float]:
        """Return the shares of the floor by what binds, in nanoseconds, over counted layers."""
        parts: dict[Bound, float] = {"arithmetic": 0.0, "bytes": 0.0, "overhead": self.overhead_ns}
        for layer in self.layers:
            parts[layer.binds] += layer.floor_ns
        return parts

    @property
    def moved_ns(self) -> dict[str, float]:
        """Return layer -> least time of a step that only reads and writes its activations.

        A conversion of precision is such a step.
        """
        return {layer.name: self.overhead_ns + layer.activations_ns for layer in self.layers}

    @property
    def binds(self) -> Bound:
        """Return what most of the floor consists of."""
        parts = self.parts_ns
        return max(parts, key=lambda bound: parts[bound])

    def ratio(self, latency_ns: float, threads: int) -> float:
        """Return a latency as a multiple of the floor; below 1, the ceilings were measured too low.

        Args:
            latency_ns: Median latency, in nanoseconds.
            threads: Number of threads that it was measured on.

        Raises:
            InputError: that number isn't the ceilings'.
            CandidateError: the floor isn't whole.
        """
        if threads != self.threads:
            raise InputError(
                f"a latency on {amount(threads, 'thread')} can't be compared with ceilings of "
                f"{self.threads}; measure both with the same number of threads"
            )
        return latency_ns / self.floor_ns

    def left_to_gain(self, latency_ns: float, threads: int) -> float:
        """Return the largest share of a latency that can still be saved, in [0, 1).

        Args:
            latency_ns: Median latency, in nanoseconds.
            threads: Number of threads that it was measured on.

        Raises:
            InputError: that number isn't the ceilings'.
            CandidateError: the floor isn't whole.
        """
        return max(0.0, 1 - 1 / self.ratio(latency_ns, threads))


def precisions(layers: Iterable[LayerTime]) -> dict[str, str]:
    """Return ONNX node -> precision in which its arithmetic was really executed.

    A node that was split into several steps has the narrowest of theirs. Nodes that the runtime's
    names can't be traced to are missing.
    """
    found: dict[str, str] = {}
    for layer in layers:
        if layer.kind != "arithmetic":
            continue
        for name in layer.sources:
            before = found.get(name, layer.precision)
            found[name] = min(before, layer.precision, key=_width_bytes)
    return found


def floor(
    work: Sequence[LayerWork],
    ceilings: Ceilings,
    precision_of: Mapping[str, str] | None = None,
    *,
    stored_bytes: int | None = None,
) -> Floor:
    """Return the least time that these layers can take on this machine.

    A layer takes the longer of its operations and its bytes, each at the best rate seen. Bytes come
    from the nearest cache as far as it holds them, and the rest from the next. A layer's
    activations count as if they alone used the caches, and weights as if all weights alone did.
    Activations count at the narrowest precision that is used anywhere, since runtimes convert as
    they store.

    Args:
        work: Layers of the original model.
        ceilings: Ceilings of the machine, on as many threads as the candidate's.
        precision_of: Layer -> precision of its arithmetic in a candidate. Missing layers count in
            the fastest precision among those present. By default all layers count in the machine's
            fastest: the least that could be reached at all.
        stored_bytes: Size of the candidate on disk, which its weights can't exceed.

    Source: the roofline model, Williams, Waterman and Patterson, CACM 52:4 (2009).
    """
    given = dict(precision_of or {})
    usual = _fastest(given.values() or ceilings.operations_per_s, ceilings)
    used = [given.get(layer.name, usual) for layer in work]
    width_bytes = min(map(_width_bytes, used), default=4)
    all_weights = sum(layer.weights * _width_bytes(p) for layer, p in zip(work, used, strict=True))
    kept_bytes = all_weights if stored_bytes is None else min(all_weights, stored_bytes)
    weights_ns = transfer_ns(kept_bytes, ceilings.levels)
    layers = []
    for layer, precision in zip(work, used, strict=True):
        share = layer.weights * _width_bytes(precision) / all_weights if all_weights else 0.0
        moved_ns = transfer_ns((layer.read + layer.written) * width_bytes, ceilings.levels)
        layers.append(
            LayerFloor(
                layer.name,
                layer.operator,
                precision,
                layer.operations * 1e9 / _rate(precision, ceilings),
                share * weights_ns + moved_ns,
                moved_ns,
            )
        )
    uncounted = tuple(layer.name for layer in work if not layer.counted)
    return Floor(tuple(layers), ceilings.empty_call_ns, ceilings.threads, uncounted)


def transfer_ns(size_bytes: float, levels: Sequence[Level]) -> float:
    """Return the least time to move bytes of which each level holds as many as it can.

    Args:
        size_bytes: Number of bytes in all.
        levels: Levels, nearest first; one without a size holds the rest.
    """
    elapsed_s, left = 0.0, float(size_bytes)
    for i, level in enumerate(levels):
        rate = max(farther.bytes_per_s for farther in levels[i:])  # noise may swap neighbours
        here = left if level.size_bytes is None else min(left, level.size_bytes)
        elapsed_s += here / rate
        left -= here
    return elapsed_s * 1e9


def _rate(precision: str, ceilings: Ceilings) -> float:
    """Return operations per second; an unmeasured precision has the fastest rate of all."""
    rates = ceilings.operations_per_s
    return rates.get(precision) or max(rates.values())


def _fastest(used: Iterable[str], ceilings: Ceilings) -> str:
    return max(used, key=lambda name: (_rate(name, ceilings), -_width_bytes(name)))


def _width_bytes(precision: str) -> int:
    """Return the bytes of one element; an unknown precision has the least, 1."""
    return _WIDTH_BYTES.get(precision, 1)
