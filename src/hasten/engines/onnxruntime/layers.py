"""Time that ONNX Runtime takes by step: its own trace, joined with the graph that it executes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from hasten.core.tensors import Tensors
from hasten.engines.base import Artifact
from hasten.engines.failures import failed
from hasten.engines.layers import Kind, LayerTime
from hasten.engines.onnxruntime.fusions import covered
from hasten.errors import CandidateError, InputError

_WARMUP = 3
"""Requests before the timed ones: the first allocates, and the next ones find cold caches."""
_EXECUTED = "executed.onnx"
_OPERATORS: dict[Kind, str] = {
    "arithmetic": """
        Attention Conv ConvInteger ConvTranspose DecoderMaskedMultiHeadAttention DeformConv
        DynamicQuantizeLSTM DynamicQuantizeMatMul Einsum FusedConv FusedGemm FusedMatMul
        FusedMatMulActivation GRU Gemm GemmFloat8 GroupQueryAttention LSTM MatMul MatMulBnb4
        MatMulInteger MatMulInteger16 MatMulIntegerToFloat MatMulNBits MoE MultiHeadAttention
        NhwcFusedConv QAttention QGemm QLinearConv QLinearMatMul QMoE RNN SparseAttention
        TransposeMatMul""",
    "conversion": """
        Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear ReorderInput
        ReorderOutput""",
    "movement": """
        Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Expand EyeLike
        Flatten Gather GatherElements GatherND Identity MemcpyFromHost MemcpyToHost OneHot Pad
        QLinearConcat Range Reshape ReverseSequence Scatter ScatterElements ScatterND SequenceAt
        SequenceConstruct Shape Size Slice SpaceToDepth Split SplitToSequence Squeeze Tile
        Transpose Trilu Unsqueeze""",
}
"""Operators by the kind of work that they spend their time on; all others are elementwise."""
_KINDS: dict[str, Kind] = {
    operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()
}
PRODUCTS = frozenset(_OPERATORS["arithmetic"].split())
_NESTING = frozenset({"BeamSearch", "GreedySearch", "If", "Loop", "Sampling", "Scan"})
"""Operators whose bodies' nodes are in the trace, too, although their time includes the bodies'."""
_INTEGER = ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QLinear")
"""Prefixes of operators that compute in 8-bit integers, whatever their first input is."""
_PRECISIONS = {
    "float": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "double": "f64",
    "uint8": "i8",
    "int8": "i8",
    "int16": "i16",
    "uint16": "i16",
    "int32": "i32",
    "uint32": "i32",
    "int64": "i64",
    "uint64": "i64",
    "bool": "bool",
}


def observe(options: Any, folder: Path) -> None:
    """Make a session write its trace, and the graph that it executes, into a folder."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    options.optimized_model_filepath = str(folder / _EXECUTED)
    # Weights go into their own file, as a protobuf message may be too small for them.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{_EXECUTED}.data"
    )


def profiled(
    session: Any, artifact: Artifact, requests: Sequence[Tensors], folder: Path
) -> tuple[LayerTime, ...]:
    """Answer requests in a session set up by `observe`, and read the files that it wrote.

    Latencies are truncated to whole microseconds, so a step under 1 us is 0. The time of a loop or
    a condition includes the steps inside it.

    Raises:
        CandidateError: the runtime failed, or executed different steps for different requests.
        InputError: onnx isn't installed.
    """
    try:
        for request in (*islice(cycle(requests), _WARMUP), *requests):
            session.run(None, dict(request))
        trace = json.loads(Path(session.end_profiling()).read_bytes())
    except Exception as error:
        raise failed("ONNX Runtime failed", error) from error
    runs = _timed(trace, len(requests))
    first = runs[0]
    sources = _sources(artifact.path, folder / _EXECUTED, first)
    return tuple(
        _layer(*step, tuple(1000 * run[position]["dur"] for run in runs))
        for position, step in enumerate(zip(first, *sources, strict=True))
    )


def _name(step: dict[str, Any]) -> str:
    return str(step["name"]).removesuffix("_kernel_time")


def _timed(trace: Iterable[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """Return the steps of each timed request, after checking that all requests have the same."""
    runs = _runs(trace)[_WARMUP:]
    names = [[_name(step) for step in run] for run in runs]
    if len(runs) != count or any(found != names[0] for found in names):
        raise CandidateError("ONNX Runtime executed different steps for different requests")
    return runs


def _runs(trace: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split a trace, whose events are in the order in which they ended, into requests."""
    runs: list[list[dict[str, Any]]] = []
    steps: list[dict[str, Any]] = []
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["args"]["op_name"] in _NESTING:
                steps = [step for step in steps if step["ts"] < event["ts"]]
            steps.append(event)
        elif event["name"] == "model_run":
            runs.append(steps)
            steps = []
    return runs


def _sources(
    path: Path, executed: Path, steps: Sequence[dict[str, Any]]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the file's nodes that each step covers, and the domain of each step's operator.

    The runtime writes nodes in the order in which it executes them, some of them without names.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            "a profile of ONNX Runtime needs the extra: pip install 'hasten[optimize]'"
        ) from error
    original, made = (
        onnx.load(file, format="protobuf", load_external_data=False).graph
        for file in (path, executed)
    )
    covers = covered(original, made, PRODUCTS)
    domains = [node.domain for node in made.node]
    if [node.op_type for node in made.node] == [step["args"]["op_name"] for step in steps]:
        return covers, domains
    known = {node.name: i for i, node in enumerate(made.node) if node.name}
    places = [known.get(_name(step)) for step in steps]
    return (
        [() if place is None else covers[place] for place in places],
        ["" if place is None else domains[place] for place in places],
    )


def _layer(
    step: dict[str, Any], sources: tuple[str, ...], domain: str, latency_ns: tuple[int, ...]
) -> LayerTime:
    operator = step["args"]["op_name"]
    read = [kind for value in step["args"].get("input_type_shape", ()) for kind in value]
    return LayerTime(
        name=_name(step),
        operator=operator,
        kind=_kind(operator, sources),
        precision="i8" if operator.startswith(_INTEGER) else _precision(read),
        kernel="" if domain == "ai.onnx" else domain,
        sources=sources,
        latency_ns=latency_ns,
    )


def _kind(operator: str, sources: tuple[str, ...]) -> Kind:
    if operator == "Transpose" and not sources:
        return "conversion"  # inserted by the runtime for another memory layout
    return _KINDS.get(operator, "elementwise")


def _precision(read: Sequence[str]) -> str:
    return _PRECISIONS.get(read[0], read[0]) if read else ""
