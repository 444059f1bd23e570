"""Which files an ONNX file says that its weights or compiled parts lie in, found without a runtime and `onnx`."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from hasten.core.protobufs import parts
from hasten.errors import IntegrityError

_WITHIN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Messages of onnx.proto that lead to external data, by the message that holds them and the field."""
_KEY = b"location"
_COMPILED = b"ep_cache_context"
"""Name of the attribute with which a node `EPContext` names the file that a provider compiled it to."""
_NAME, _TEXT = 1, 4
"""Fields of an attribute: its name, and its value where that is a text."""
_MOST_DEEP = 100
"""Messages within each other that a parser of protobuf takes."""
_MOST_FIELDS = 2_000_000


def external_locations(data: bytes | mmap.mmap) -> set[str]:
    """Return the locations of external data in a file, and of what providers compiled, each as it is written.

    It sees at least what a parser of protobuf sees, also in a file that is damaged or isn't ONNX: no
    location that a runtime would follow is left out.

    Args:
        data: The file's bytes.

    Raises:
        IntegrityError: the file is nested deeper than a parser takes, or has too many parts to look at.
    """
    found: set[str] = set()
    left = [("model", 0, len(data), 1)]
    seen = 0
    while left:
        message, begin, end, deep = left.pop()
        if deep > _MOST_DEEP:
            raise IntegrityError(f"messages are nested more than {_MOST_DEEP} levels deep")
        if message == "attribute":
            found.update(_compiled(data, begin, end))
        within = _WITHIN[message]
        for number, first, last in parts(data, begin, end):
            seen += 1
            if seen > _MOST_FIELDS and _named(data, 0, len(data)):
                raise IntegrityError(f"it has more than {_MOST_FIELDS:,} fields")
            if seen > _MOST_FIELDS:
                return set()
            inner = within.get(number)
            if inner == "entry":
                found.update(_location(data, first, last))
            elif inner and (message != "graph" or inner != "node" or _named(data, first, last)):
                left.append((inner, first, last, deep + 1))
    return found


def _named(data: bytes | mmap.mmap, begin: int, end: int) -> bool:
    """Whether a part can hold a location; most nodes can't, and needn't be walked through."""
    return data.find(_KEY, begin, end) >= 0 or data.find(_COMPILED, begin, end) >= 0


def _compiled(data: bytes | mmap.mmap, begin: int, end: int) -> Iterator[str]:
    """Yield the texts of an attribute that names a compiled file; of several any may count.

    A node that another one has compiled for has an empty one.
    """
    if data.find(_COMPILED, begin, end) < 0:
        return
    fields = list(parts(data, begin, end))
    if any(number == _NAME and data[first:last] == _COMPILED for number, first, last in fields):
        for number, first, last in fields:
            if number == _TEXT and first < last:
                yield data[first:last].decode(errors="replace")


def _location(data: bytes | mmap.mmap, begin: int, end: int) -> set[str]:
    """Return the value of an entry that states a location; of several values any may count."""
    fields = [(number, bytes(data[a:b])) for number, a, b in parts(data, begin, end)]
    if (1, _KEY) not in fields:
        return set()
    return {value.decode(errors="replace") for number, value in fields if number == 2} or {""}
