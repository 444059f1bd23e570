"""Steps that a runtime executed, and how long each one took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

if TYPE_CHECKING:
    import onnx

Kind: TypeAlias = Literal["arithmetic", "elementwise", "conversion", "movement"]
"""Products; work on every value; changes of precision or memory layout; copies and shapes.

An operator in no table counts as "elementwise", since it runs over every value, whatever it does.
"""


@dataclass(frozen=True)
class LayerTime:
    """Step that a runtime executed: one kernel, even where several nodes were fused into it.

    Attributes:
        name: Name of the step in the runtime.
        operator: Operator in the runtime's own words: "Convolution", "QLinearConv", "Reorder".
        kind: Kind of work that such an operator spends its time on.
        precision: Precision of its arithmetic, or else of its inputs: "f32", "bf16", "i16", "i8" (8-bit
            integers, signed or not), ...
        kernel: Name of the implementation in the runtime; "" where it has none.
        sources: Names of the ONNX nodes that the step covers, as far as known; a node without a
            name goes by its first output. Empty for a step that the runtime added.
        latency_ns: Latencies in nanoseconds, one per profiled request.
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
        """Median latency over the requests, in nanoseconds."""
        return float(np.median(self.latency_ns))


@dataclass(frozen=True)
class Portion:
    """Time that some of the steps take together.

    Attributes:
        steps: Number of these steps.
        latency_ns: Sum of their median latencies, in nanoseconds.
        share: Share of the time of all steps.
    """

    steps: int
    latency_ns: float
    share: float


@dataclass(frozen=True)
class Breakdown:
    """Division of a profile's time among its steps.

    Each step counts by its own median over the requests, so that the parts add up: a disturbance
    lengthens a few steps of one request, and rarely these same steps of another.

    Attributes:
        latency_ns: Time of all steps, in nanoseconds.
        kinds: Portions by kind, in the order of `Kind`, without kinds that no step has.
        precisions: Portions by precision, the longest first.
        arithmetic: Portions of the steps of kind "arithmetic", by precision, the longest first.
        slowest: All steps, the longest first; equal ones in the order of execution.
    """

    latency_ns: float
    kinds: dict[Kind, Portion]
    precisions: dict[str, Portion]
    arithmetic: dict[str, Portion]
    slowest: tuple[LayerTime, ...]


def summarize(layers: Sequence[LayerTime]) -> Breakdown:
    """Divide the time of a profile by kind, by precision and by step."""
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
    """Return the name of a node or, for a node without a name, its first output."""
    return str(node.name or next(filter(None, node.output), ""))
