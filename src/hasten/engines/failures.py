"""Failures of a runtime, told in one line."""

from __future__ import annotations

import re
from pathlib import Path

from hasten.errors import CandidateError

LONGEST_REASON = 300
_ONNXRUNTIME_PREFIX = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?"
)
_OPENVINO_NOISE = re.compile(
    r"^(Exception from |Check '.*' failed at |FrontEnd API failed with |Model wasn't fully|Summary:)"
)
_UNKNOWN_OPERATOR = re.compile(
    r"not a registered function|No Op registered|No registered schema|No conversion rule|"
    r"Could not find an implementation"
)


def failed(what: str, error: Exception, model: Path | None = None) -> CandidateError:
    """Return a CandidateError for a runtime's exception.

    Args:
        what: Action that failed: "ONNX Runtime can't load the model".
        error: Exception that the runtime raised.
        model: Path of the ONNX file, in which to find the node whose operator the runtime lacks.

    Returns:
        Error with a message of one line: `what`, and the first informative line of the runtime's
        message.
    """
    said = reason(error)
    return CandidateError(f"{what}: {said}{_node_note(model, said) if model else ''}")


def reason(error: Exception) -> str:
    """Return the first informative line of a runtime's message, shortened."""
    lines = [_ONNXRUNTIME_PREFIX.sub("", line).strip(" -") for line in str(error).splitlines()]
    telling = (line for line in lines if line and not _OPENVINO_NOISE.match(line))
    line = next(telling, lines[0] if lines else "") or type(error).__name__
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _node_note(model: Path, said: str) -> str:
    """Return a note that names the node with a missing operator; "" if the message does so."""
    if not _UNKNOWN_OPERATOR.search(said):
        return ""
    try:
        import onnx

        graph = onnx.load(model, format="protobuf", load_external_data=False).graph
    except Exception:  # without onnx, or for a broken file, the message goes without the note
        return ""
    for node in graph.node:
        if re.search(rf"\b{re.escape(node.op_type)}\b", said):
            name = repr(node.name) if node.name else f"that gives {node.output[0]!r}"
            return "" if node.name and node.name in said else f" (node {name})"
    return ""
