"""What a runtime says when it fails, in one line."""

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
    """Turn a runtime's exception into the candidate's.

    Args:
        what: What was asked: "ONNX Runtime can't load the model".
        error: What the runtime raised.
        model: The ONNX file, to name the node with an operator that the runtime lacks.

    Returns:
        An error whose message is one line: `what`, and the first line of the runtime's
        message that says anything.
    """
    said = reason(error)
    return CandidateError(f"{what}: {said}{_node_note(model, said) if model else ''}")


def reason(error: Exception) -> str:
    """Return the first line of a runtime's message that says anything, trimmed."""
    lines = [_ONNXRUNTIME_PREFIX.sub("", line).strip(" -") for line in str(error).splitlines()]
    telling = (line for line in lines if line and not _OPENVINO_NOISE.match(line))
    line = next(telling, lines[0] if lines else "") or type(error).__name__
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _node_note(model: Path, said: str) -> str:
    """Return which node has the operator that a message complains of, where it doesn't say."""
    if not _UNKNOWN_OPERATOR.search(said):
        return ""
    try:
        import onnx

        graph = onnx.load(model, format="protobuf", load_external_data=False).graph
    except Exception:  # This only adds to a message: without onnx, or for a broken file, nothing.
        return ""
    for node in graph.node:
        if re.search(rf"\b{re.escape(node.op_type)}\b", said):
            name = repr(node.name) if node.name else f"that gives {node.output[0]!r}"
            return "" if node.name and node.name in said else f" (node {name})"
    return ""
