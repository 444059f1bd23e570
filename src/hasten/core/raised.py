"""One line on a library's error with a model: at which operator, for what reason, and what to try."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.errors import first_words

REMEDY = "exporting the model with a newer operator set, or without this operator, may avoid this"
_BARE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Kinds of exception whose text alone tells a stranger nothing: "list index out of range"."""
_LONGEST = 300
_ONNXRUNTIME_PREFIX = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?"
)
_ONNXRUNTIME_SOURCE = re.compile(r"\S*onnxruntime\S*[/\\]\w+\.(?:cc|h|cpp|cu|hpp):\d+ ")
_ONNXRUNTIME_IR = re.compile(
    r"Unsupported model IR version: (\d+), max supported IR version: (\d+)"
)
_ONNXRUNTIME_OPSET = re.compile(
    r"Opset (\d+) is under development.*Current official support for domain (\S+) is till opset (\d+)"
)


def raised(error: BaseException) -> str:
    """Return the first words of an exception's text in one line, with the operator that the library was at.

    An exception that a library didn't mean to raise, such as an IndexError, is named by its kind, its
    place and what to try. The operator is that of an ONNX node which a function of the traceback works on.
    """
    said = plainly(first_words(str(error))).strip()
    said = said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3]}..."
    node = _node(error.__traceback__)
    if isinstance(error, _BARE) or not said:
        kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
        at = f" at {node}" if node else _place(error.__traceback__)
        return f"it stopped{at} ({kind}); {REMEDY}"
    return said if not node or _names(said, node) else f"at {node}: {said}"


def plainly(line: str) -> str:
    """Return a line of a runtime's message without the places in its source.

    Where ONNX Runtime finds a file too new, the line says what it reads and what to do.
    """
    line = _ONNXRUNTIME_PREFIX.sub("", line)
    while found := _ONNXRUNTIME_SOURCE.search(line):
        line = line[: found.start()] + _behind_signature(line[found.end() :])
    version = getattr(sys.modules.get("onnxruntime"), "__version__", "").split(".")[:2]
    reads = f"ONNX Runtime {'.'.join(version)}".strip()
    if found := _ONNXRUNTIME_IR.search(line):
        has, most = found.groups()
        return (
            f"the file has IR version {has}; {reads} reads up to {most}: set the model's ir_version to {most} and save it, "
            "or install a newer ONNX Runtime"
        )
    if found := _ONNXRUNTIME_OPSET.search(line):
        has, domain, most = found.groups()
        of = "" if domain == "ai.onnx" else f" of {domain}"
        how = f"export it with opset_version={most}" if not of else "export it with an older one"
        return f"the file has opset {has}{of}; {reads} reads up to {most}: {how}, or install a newer ONNX Runtime"
    return line


def _behind_signature(text: str) -> str:
    """Return what follows the signature of a C++ function that begins a text; the text where none does."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if sign == ")" and depth == 0 and text[place + 1 : place + 2] in ("", " "):
            rest = text[place + 1 :].removeprefix(" const").lstrip()
            return rest.partition("] ")[2] if rest.startswith("[with ") else rest
    return text


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
