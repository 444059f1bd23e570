"""What a runtime really executed, step by step, and how long each step took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

if TYPE_CHECKING:
    import onnx

Kind: TypeAlias = Literal["arithmetic", "elementwise", "conversion", "movement"]
"""Products; what runs over every value; changes of precision or memory layout; copies and shapes.

An operator that no table knows is "elementwise": it runs over every value, whatever it does.
"""


@dataclass(frozen=True)
class LayerTime:
    """One step that a runtime executed: one kernel, whatever it was fused from.

    Attributes:
        name: As the runtime calls it.
        operator: What it does, in the runtime's own word: "Convolution", "QLinearConv", "Reorder".
        kind: What such an operator spends its time on.
        precision: Of its arithmetic: "f32", "bf16", "i8", ...; of what it reads where it has none.
            "i8" is 8-bit integers, signed or not.
        kernel: The runtime's name for the implementation; "" where it names none.
        sources: Names of the ONNX nodes that it covers, as far as they can be told; a node without
            a name is called as its first output. Empty for what the runtime put in by itself.
        latency_ns: One figure per profiled request, in nanoseconds.
    """

    name: str
    operator: str
    kind: Kind
    precision: str
    kernel: str
    sources: tuple[str, ...]
    latency_ns: tuple[int, ...]

    @property
    def median_ns(self) -> float:
        """The median over the requests, in nanoseconds."""
        return float(np.median(self.latency_ns))


@dataclass(frozen=True)
class Portion:
    """What some of the steps take together.

    Attributes:
        steps: How many they are.
        latency_ns: Sum of their medians, in nanoseconds.
        share: Of what all steps take.
    """

    steps: int
    latency_ns: float
    share: float


@dataclass(frozen=True)
class Breakdown:
    """Where the time of all steps goes.

    Each step counts by its own median over the requests, so all adds up: what disturbs a request
    lengthens a few of its steps, and rarely the same ones of another.

    Attributes:
        latency_ns: Of all steps, in nanoseconds.
        kinds: By kind, in the order of `Kind`; those that took part only.
        precisions: By precision, the longest first.
        arithmetic: The steps of kind "arithmetic" alone, by precision, the longest first.
        slowest: All steps, the longest first; equal ones in the order of execution.
    """

    latency_ns: float
    kinds: dict[Kind, Portion]
    precisions: dict[str, Portion]
    arithmetic: dict[str, Portion]
    slowest: tuple[LayerTime, ...]


def summarize(layers: Sequence[LayerTime]) -> Breakdown:
    """Say where the time of a profile goes: by kind, by precision, by step."""
    products = [layer for layer in layers if layer.kind == "arithmetic"]
    whole_ns = sum(layer.median_ns for layer in layers)

    def portions(some: Sequence[LayerTime], labels: Iterable[str]) -> dict[str, Portion]:
        groups: dict[str, list[LayerTime]] = {}
        for layer, label in zip(some, labels, strict=True):
            groups.setdefault(label, []).append(layer)
        found = {label: _portion(group, whole_ns) for label, group in groups.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].latency_ns))

    kinds = portions(layers, (layer.kind for layer in layers))
    return Breakdown(
        latency_ns=whole_ns,
        kinds={kind: kinds[kind] for kind in get_args(Kind) if kind in kinds},
        precisions=portions(layers, (layer.precision for layer in layers)),
        arithmetic=portions(products, (layer.precision for layer in products)),
        slowest=tuple(sorted(layers, key=lambda layer: -layer.median_ns)),
    )


def _portion(layers: Sequence[LayerTime], whole_ns: float) -> Portion:
    time_ns = sum(layer.median_ns for layer in layers)
    return Portion(len(layers), time_ns, time_ns / whole_ns if whole_ns else 0.0)


def node_name(node: onnx.NodeProto) -> str:
    """What a node is called: its name or, where it has none, its first output."""
    return str(node.name or next(filter(None, node.output), ""))
