"""One line on a library's error with a model: at which operator, for what reason, and what to try."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

REMEDY = "exporting the model with a newer operator set, or without this operator, may avoid this"
_BARE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Kinds of exception whose text alone tells a stranger nothing: "list index out of range"."""
_LONGEST = 300


def raised(error: BaseException) -> str:
    """Return the first line of an exception's text, with the operator that the library was at.

    An exception that a library didn't mean to raise, such as an IndexError, is named by its kind, its
    place and what to try. The operator is that of an ONNX node which a function of the traceback works on.
    """
    lines = str(error).strip().splitlines()
    said = lines[0].strip() if lines else ""
    said = said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3]}..."
    node = _node(error.__traceback__)
    if isinstance(error, _BARE) or not said:
        kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
        at = f" at {node}" if node else _place(error.__traceback__)
        return f"it stopped{at} ({kind}); {REMEDY}"
    return said if not node or _names(said, node) else f"at {node}: {said}"


def _names(said: str, node: str) -> bool:
    """Whether a message names a node's operator itself."""
    return node.partition(" ")[0] in said


def _place(trace: TracebackType | None) -> str:
    """Return the file and line that raised, in words; empty without a traceback."""
    frames = traceback.extract_tb(trace)
    return f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _node(trace: TracebackType | None) -> str:
    """Describe the ONNX node that the innermost function with one works on; empty without any."""
    for frame, _ in reversed(list(traceback.walk_tb(trace))):
        own = frame.f_locals
        for value in (own.get("node"), getattr(own.get("self"), "node", None), *own.values()):
            if said := _described(value):
                return said
    return ""


def _described(value: Any) -> str:
    """Describe a node of onnx's or onnx-ir's; empty for any other value."""
    if type(value).__name__ not in ("NodeProto", "Node"):
        return ""
    kind, name = getattr(value, "op_type", None), getattr(value, "name", None)
    if not isinstance(kind, str) or not kind:
        return ""
    if isinstance(name, str) and name:
        return f"{kind} (node {name!r:.100})"
    outputs = getattr(value, "output", None) or getattr(value, "outputs", None) or ()
    first = next(iter(outputs), "")
    first = getattr(first, "name", first)
    return f"{kind} (the node that gives {first!r:.100})" if first else kind
