"""Failures of a runtime, told in one line."""

from __future__ import annotations

import re
from pathlib import Path

from hasten.core.raised import REMEDY, plainly
from hasten.core.tensors import Tensors
from hasten.errors import CandidateError, NotCovered, first_words, visible

LONGEST_REASON = 300
_OPENVINO_NOISE = re.compile(
    r"^(Exception from |Caught exception: Exception from |Check '.*' failed at |FrontEnd API failed with |Model wasn't fully|Summary:)"
)
_OPENVINO_OPERATOR = re.compile(r"^-* ?(\w+?)(?:-\d+)? with a message:$")
_OPENVINO_NODE = re.compile(r"<Node\(\w+\): ([^>]*)>")
_OPENVINO_DETAIL = re.compile(r"^(While validating|Check '|Shape inference input shapes)")
_OPENVINO_RUNNING = re.compile(
    r"^(?:\[CPU\] (\w+) node with name '([^']*)'|Node (\S+) of type (\w+)$)"
)
_OPENVINO_PASS = re.compile(r"END: node: \w+::(\w+) .*CALLBACK HAS THROWN: (.*)")
_OPENVINO_SET = re.compile(r"(?<=\w)-\d+\b")
_OUTSIDE = re.compile(
    r"indices element out of data bounds, idx=(-?\d+) must be within the inclusive range \[-?\d+,(\d+)\]"
)
"""Pattern of ONNX Runtime's error about a row that a table lacks: the row, and the last one."""
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
        message. It is NotCovered if the runtime lacks an operator of `model`.
    """
    said = reason(error)
    if model is None or not _UNKNOWN_OPERATOR.search(said):
        return CandidateError(f"{what}: {said}")
    return NotCovered(f"{what}: {said}{_node_note(model, said)}")


def failed_request(what: str, error: Exception, inputs: Tensors) -> CandidateError:
    """Return a CandidateError for a runtime's exception at a request, with a number that is too large for a table.

    Args:
        what: Action that failed: "ONNX Runtime failed".
        error: Exception that the runtime raised.
        inputs: Inputs of the request by name.
    """
    found = _OUTSIDE.search(str(error))
    if found is None:
        return failed(what, error)
    row, last = int(found[1]), int(found[2])
    whole = {name: array for name, array in inputs.items() if array.dtype.kind in "iu"}
    names = [name for name, array in whole.items() if array.size and array.max() == row]
    if len(names) == 1:
        return CandidateError(
            f"{what}: input {names[0]!r} has the number {row}, and the table that it looks up has {last + 1} rows: "
            f"give numbers from 0 to {last}"
        )
    return CandidateError(
        f"{what}: the model looks up row {row} of a table that has {last + 1} rows: a number in the request is out of "
        "range, or the request is too long"
    )


def reason(error: Exception) -> str:
    """Return the first informative line of a runtime's message, shortened.

    Control characters are written out, since a model's own names are in it.
    """
    lines = [plainly(line).strip(" -") for line in str(error).splitlines()]
    telling = (line for line in lines if line and not _OPENVINO_NOISE.match(line))
    line = next(telling, lines[0] if lines else "") or type(error).__name__
    line = visible(_of_openvino(line, lines) or _with_what_follows(line, lines))
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _with_what_follows(line: str, lines: list[str]) -> str:
    """Return a line, with those that follow it where it ends at a colon."""
    behind = lines[lines.index(line) + 1 :] if line in lines else []
    return first_words("\n".join([line, *behind])) or line


def _of_openvino(line: str, lines: list[str]) -> str:
    """Return what OpenVINO says of an operator: its name, its node and the reason; else "".

    Args:
        line: First informative line of the message.
        lines: All lines of the message.
    """
    if found := _OPENVINO_PASS.search(line):
        return f"{found[1]}: {found[2]}"
    if line.startswith("No conversion rule found"):
        return _OPENVINO_SET.sub("", line)
    if found := _OPENVINO_RUNNING.match(line):
        behind = lines[lines.index(line) + 1 :] if line in lines else []
        telling = [text for text in behind if text and not _OPENVINO_NOISE.match(text)]
        why = (telling or ["no reason given"])[-1].rstrip(".!")
        return f"{found[1] or found[4]} (node {found[2] or found[3]!r}): {why}"
    operator = _OPENVINO_OPERATOR.match(line)
    if operator is None:
        return ""
    after = lines[lines.index(line) + 1 :] if line in lines else []
    end = next((at for at, text in enumerate(after) if _OPENVINO_OPERATOR.match(text)), len(after))
    own = [
        text for text in after[:end] if text and not text.startswith(("Summary:", "Conversion is"))
    ]
    node = next((found[1] for text in own if (found := _OPENVINO_NODE.search(text))), "")
    telling = [text for text in own if not _OPENVINO_DETAIL.match(text)]
    where = f"{operator[1]} (node {node!r})" if node else operator[1]
    return f"{where}: {(telling or own or ['no reason given'])[0].rstrip('.')}; {REMEDY}"


def _node_note(model: Path, said: str) -> str:
    """Return a note that names the node with a missing operator; "" if the message does so."""
    try:
        import onnx

        graph = onnx.load(model, format="protobuf", load_external_data=False).graph
    except Exception:  # without onnx, or for a broken file, the message goes without the note
        return ""
    for node in graph.node:
        if re.search(rf"(?<!\w){re.escape(visible(node.op_type))}(?!\w)", said):
            name = repr(node.name) if node.name else f"that gives {node.output[0]!r}"
            return "" if node.name and visible(node.name) in said else f" (node {name})"
    return ""
