"""The floor: no engine runs these layers on this machine in less. Pure functions of counts and ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.bandwidth import Level

Bound: TypeAlias = Literal["arithmetic", "bytes", "overhead"]

_NAMED = 3
"""Layers that a message names."""
_WIDTH_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i8": 1}


@dataclass(frozen=True)
class LayerWork:
    """The least that one layer has to do for one request, however it is done.

    Attributes:
        name: Of its ONNX node; of the node's first output where it has none.
        operator: Of its ONNX node: "Conv", "MatMul", ...
        operations: A multiply-accumulate is two; products with padding aren't counted. 0 where how
            many there are can't be told: see `counted`.
        read: Elements of other layers' outputs that it needs.
        weights: Elements of constants that it multiplies with, unless a layer before needs them
            too.
        written: Elements that it gives.
    """

    name: str
    operator: str
    operations: int = 0
    read: int = 0
    weights: int = 0
    written: int = 0

    @property
    def counted(self) -> bool:
        """Whether its work is known. Else its shapes can't be told, or its operator isn't known: it
        may have to do anything."""
        return self.operations > 0


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen of a machine on so many threads; nothing is promised to reach it.

    They are lower bounds on what the machine can do: a neighbour's load while they were taken makes
    them, and with them every floor, wrong in the same direction. A candidate below its floor says
    that they were taken too low.

    Attributes:
        threads: How many worked at once. Figures of unlike threads are never mixed.
        operations_per_s: Precision -> of the fastest engine's fastest kernel; a multiply-accumulate
            is two. "f32", "i8", and "bf16" where the processor has it.
        reached_by: Precision -> which engine and kernel that was.
        levels: Caches and memory, nearest first.
        empty_call_ns: The fastest engine's p50 of a model that hands its one number on.
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
        name: Of its ONNX node.
        operator: Of its ONNX node.
        precision: That it was taken in.
        arithmetic_ns: Its operations at the fastest that the machine does them.
        bytes_ns: Its reads and writes at the fastest that the machine moves them.
        activations_ns: The same without its weights.
    """

    name: str
    operator: str
    precision: str
    arithmetic_ns: float
    bytes_ns: float
    activations_ns: float = 0.0

    @property
    def floor_ns(self) -> float:
        """The longer of the two: at best one hides the other."""
        return max(self.arithmetic_ns, self.bytes_ns)

    @property
    def binds(self) -> Bound:
        """Which of the two that is."""
        return "arithmetic" if self.arithmetic_ns >= self.bytes_ns else "bytes"


@dataclass(frozen=True)
class Floor:
    """The least time that one request takes.

    Attributes:
        layers: In order.
        overhead_ns: Of an empty call.
        threads: Of the ceilings.
        uncounted: Layers whose work can't be told. With any, no figure of the whole is given.
    """

    layers: tuple[LayerFloor, ...]
    overhead_ns: float
    threads: int
    uncounted: tuple[str, ...] = ()

    @property
    def floor_ns(self) -> float:
        """All layers one after another, and an empty call.

        Raises:
            CandidateError: it isn't whole.
        """
        self.check_whole()
        return self.overhead_ns + sum(layer.floor_ns for layer in self.layers)

    @property
    def whole(self) -> bool:
        """Whether it says anything of the model: there are layers, and the work of all is known."""
        return bool(self.layers) and not self.uncounted

    def check_whole(self) -> None:
        """Refuse to let a part of the layers pass for all of them.

        Raises:
            CandidateError: it isn't whole.
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
        """How much of the floor each of the three is, of the layers that are counted."""
        parts: dict[Bound, float] = {"arithmetic": 0.0, "bytes": 0.0, "overhead": self.overhead_ns}
        for layer in self.layers:
            parts[layer.binds] += layer.floor_ns
        return parts

    @property
    def moved_ns(self) -> dict[str, float]:
        """Layer -> the least time of a step of its own that reads and writes what it does, but for
        the
        weights: a conversion."""
        return {layer.name: self.overhead_ns + layer.activations_ns for layer in self.layers}

    @property
    def binds(self) -> Bound:
        """What most of the floor is."""
        parts = self.parts_ns
        return max(parts, key=lambda bound: parts[bound])

    def ratio(self, latency_ns: float, threads: int) -> float:
        """Return how many times the floor a latency is. Below 1, the ceilings were taken too low.

        Args:
            latency_ns: A p50.
            threads: On how many it was taken.

        Raises:
            InputError: not on as many as the ceilings.
            CandidateError: the floor isn't whole.
        """
        if threads != self.threads:
            raise InputError(
                f"a latency on {threads} thread(s) can't be set against ceilings of {self.threads}; "
                "measure both on as many"
            )
        return latency_ns / self.floor_ns

    def left_to_gain(self, latency_ns: float, threads: int) -> float:
        """Return the largest share of a latency that can still be saved, in [0, 1).

        Args:
            latency_ns: A p50.
            threads: On how many it was taken.

        Raises:
            InputError: not on as many as the ceilings.
            CandidateError: the floor isn't whole.
        """
        return max(0.0, 1 - 1 / self.ratio(latency_ns, threads))


def precisions(layers: Iterable[LayerTime]) -> dict[str, str]:
    """Return ONNX node -> the precision that its arithmetic was really executed in.

    A node that was split into several steps has the narrowest of theirs. Nodes that the runtime's
    names don't lead back to are missing.
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

    A layer takes its operations at the best rate seen, or its bytes at the best rate seen,
    whichever is longer. Bytes come from the nearest cache as far as it holds them, the rest from
    the
    next: a layer's activations as if they alone used the caches, and weights as if all weights
    alone did. Activations count at the narrowest precision that is used anywhere, since runtimes
    convert as they store.

    Args:
        work: The original model's layers.
        ceilings: Of the machine, on as many threads as the candidate's.
        precision_of: Layer -> the precision of its arithmetic, of one candidate. Layers that are
            missing count as done in the fastest precision of those that are there. By default, all
            in the fastest that the machine has: what could be reached at all.
        stored_bytes: What the candidate keeps on disk: its weights can't be more.

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
        size_bytes: In all.
        levels: Nearest first; one without a size holds the rest.
    """
    elapsed_s, left = 0.0, float(size_bytes)
    for i, level in enumerate(levels):
        rate = max(farther.bytes_per_s for farther in levels[i:])  # noise may swap neighbours
        here = left if level.size_bytes is None else min(left, level.size_bytes)
        elapsed_s += here / rate
        left -= here
    return elapsed_s * 1e9


def _rate(precision: str, ceilings: Ceilings) -> float:
    """Operations per second; of a precision that wasn't measured the fastest of all."""
    rates = ceilings.operations_per_s
    return rates.get(precision) or max(rates.values())


def _fastest(used: Iterable[str], ceilings: Ceilings) -> str:
    return max(used, key=lambda name: (_rate(name, ceilings), -_width_bytes(name)))


def _width_bytes(precision: str) -> int:
    """Bytes of one element; 1, the least, of a precision that isn't known."""
    return _WIDTH_BYTES.get(precision, 1)
