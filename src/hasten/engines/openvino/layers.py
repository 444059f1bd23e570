"""Time that OpenVINO takes by step: the graph that it executes, with its own counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.tensors import Tensors
from hasten.engines.failures import failed
from hasten.engines.layers import Kind, LayerTime
from hasten.errors import CandidateError

_RUNS = 4
"""Requests per compiled model, of which the first is untimed. For each step, the runtime reports
only the mean over all runs since compilation, in whole microseconds, so the n-th run is known to
n - 1 of them; compiling again resets the mean."""
_OPERATORS: dict[Kind, str] = {
    "arithmetic": """
        AUGRUCell AUGRUSequence BinaryConvolution CausalMaskPreprocess Convolution Deconvolution
        DeformableConvolution Einsum FullyConnected GRUCell GRUSequence GatherMatmul
        GroupConvolution LLMMLP LSTMCell LSTMSequence MHA MatMul PagedAttention QKVProjection
        RNNCell RNNSequence ScaledDotProductAttention""",
    "conversion": "Convert FakeQuantize Reorder",
    "movement": """
        BatchToSpace Broadcast Concat Concatenation DepthToSpace Gather GatherElements GatherND
        Identity Input MemoryInput MemoryOutput Output Pad Range Reshape ReverseSequence Roll
        ScatterElementsUpdate ScatterNDUpdate ScatterUpdate ShapeOf ShuffleChannels Slice
        SliceScatter SpaceToBatch SpaceToDepth Split StridedSlice TensorIterator Tile Transpose
        Unique""",
}
"""Operators by the kind of work that they spend their time on; all others are elementwise."""
_KINDS: dict[str, Kind] = {
    operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()
}
_PRODUCTS = frozenset(_OPERATORS["arithmetic"].split())
_FUSED = frozenset({"Eltwise", "Subgraph"})
"""Names in the runtime for any several operations in one kernel."""
_CONVERSIONS = frozenset({"Convert", "ConvertLike", "FakeQuantize"})
_VALUES = frozenset({"Constant", "FakeQuantize", "Parameter", "Result"})
"""Operations of the IR that do no work of the model's nodes."""
_PIECE = "/WithoutBiases"
"""Suffix that the converter adds to a product whose bias became a separate operation."""
_DEQUANTIZATION = "Dequantization"
"""Beginning of the names of the runtime's own pieces of an operation that turn int8 into float."""
_UNLIKE = "OpenVINO executed different steps for different requests"


@dataclass(frozen=True)
class Operation:
    """Operation of the IR.

    Attributes:
        kind: Type of the operation.
        names: Names that an ONNX model may have for it.
    """

    kind: str
    names: tuple[str, ...]


def operations(graph: Any) -> dict[str, Operation]:
    """Return the operations of an IR by name.

    An operation that the converter added is named after its type with a number. It then goes by the
    names of its outputs, which are those in the ONNX file if a node gives them.
    """
    found = {}
    for operation in graph.get_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        names = {name.removesuffix(_PIECE)}
        if re.fullmatch(rf"{kind}_\d+", name):
            names = {tensor for port in operation.outputs() for tensor in port.get_names()}
        found[name] = Operation(kind, () if kind in _VALUES else tuple(sorted(names)))
    return found


@dataclass(frozen=True)
class _Step:
    """Operation of the executed graph, as the runtime describes it.

    Attributes:
        name: Name of the operation in the runtime.
        facts: Properties that the runtime reports, by name.
        mean_us: Mean latency over all runs so far, truncated to whole microseconds.
    """

    name: str
    facts: Mapping[str, str]
    mean_us: int


def profiled(
    opened: Callable[[], tuple[Any, Callable[[Tensors], Any]]],
    known: Mapping[str, Operation],
    requests: Sequence[Tensors],
) -> tuple[LayerTime, ...]:
    """Answer requests, a few by each of several compiled models, and read their counters.

    A latency is accurate to 4 us. A step under 1 us counts as 0; a step that is 0 for every request
    is listed only if it is arithmetic.

    Args:
        opened: Function that compiles the model with counters on; it returns the model, and a
            function that answers a request.
        known: Operations of the IR, by name.
        requests: Requests to answer.

    Raises:
        CandidateError: the model can't be compiled, the runtime failed, or it executed different
            steps for different requests.
    """
    counted = [
        pair
        for start in range(0, len(requests), _RUNS - 1)
        for pair in _counted(*opened(), requests[start : start + _RUNS - 1])
    ]
    steps, latency_ns = counted[0][0], [taken_ns for _, taken_ns in counted]
    if len({len(taken_ns) for taken_ns in latency_ns}) > 1:
        raise CandidateError(_UNLIKE)
    layers = (_layer(step, known, times) for step, *times in zip(steps, *latency_ns, strict=True))
    return tuple(filter(_listed, layers))


def _listed(layer: LayerTime) -> bool:
    """Whether a step did anything: the graph has many that only pass a value on, in no time."""
    return any(layer.latency_ns) or layer.kind == "arithmetic"


def _counted(
    compiled: Any, answer: Callable[[Tensors], Any], requests: Sequence[Tensors]
) -> Iterator[tuple[list[_Step], list[int]]]:
    """Yield the steps of each request with their latencies; the first request runs twice."""
    before: list[float] = []
    for run, inputs in enumerate((requests[0], *requests), start=1):
        answer(inputs)
        try:
            steps = _executed(compiled.get_runtime_model())
        except Exception as error:
            raise failed("OpenVINO can't report what it executed", error) from error
        # The mean was truncated, so a sum over runs is between run * mean and run - 1 more.
        sums_us = [step.mean_us and run * step.mean_us + (run - 1) / 2 for step in steps]
        if run > 1:
            if len(sums_us) != len(before):
                raise CandidateError(_UNLIKE)
            grown_us = (now - then for now, then in zip(sums_us, before, strict=True))
            yield steps, [max(0, round(1000 * us)) for us in grown_us]
        before = sums_us


def _executed(graph: Any) -> list[_Step]:
    """Return the steps that a runtime graph executes, in order."""
    steps = []
    for operation in graph.get_ops():
        facts = {key: str(operation.rt_info[key].value) for key in operation.rt_info}
        if facts.get("layerType") not in ("Const", "Input", "Output"):
            told = facts.get("execTimeMcs", "")
            mean_us = int(told) if told.isdecimal() else 0
            steps.append(_Step(operation.get_friendly_name(), facts, mean_us))
    return sorted(steps, key=lambda step: int(step.facts["execOrder"]))


def _layer(step: _Step, known: Mapping[str, Operation], latency_ns: Sequence[int]) -> LayerTime:
    names = step.facts["originalLayersNames"].split(",")
    covered = [operation for name in names if (operation := _found(name, known)) is not None]
    operator, kernel = step.facts["layerType"], step.facts["primitiveType"]
    return LayerTime(
        name=step.name,
        operator=operator,
        kind=_kind(operator, [operation.kind for operation in covered]),
        precision=_precision(kernel, step.facts["runtimePrecision"]),
        kernel=kernel,
        sources=tuple(dict.fromkeys(name for operation in covered for name in operation.names)),
        latency_ns=tuple(latency_ns),
    )


def _found(name: str, known: Mapping[str, Operation]) -> Operation | None:
    """Return the operation of the IR that an executed one equals, or is a piece of."""
    if name in known:
        return known[name]
    head, _, piece = name.rpartition("/")
    if head not in known:
        return None
    kind = "Convert" if piece.startswith(_DEQUANTIZATION) else piece
    return Operation(kind, known[head].names)


def _kind(operator: str, types: Sequence[str]) -> Kind:
    """Return the kind of a step's work; for a fused step, by the operations it was fused from."""
    if operator in _FUSED:
        if _PRODUCTS.intersection(types):
            return "arithmetic"
        work = set(types) - {"Constant"}
        return "conversion" if work and work <= _CONVERSIONS else "elementwise"
    return _KINDS.get(operator, "elementwise")


def _precision(kernel: str, runtime: str) -> str:
    """Return the precision that a kernel's name ends in (of its input), else the runtime's."""
    last = kernel.rpartition("_")[2].lower()
    precision = last if any(mark.isdigit() for mark in last) else runtime.lower()
    return {"u8": "i8"}.get(precision, precision)
