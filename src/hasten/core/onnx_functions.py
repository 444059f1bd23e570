"""Bound on the nodes that an ONNX file's local functions become, found without a runtime and `onnx`.

Runtimes and shape inference put a function's nodes in the place of each call. Functions that each call the next one
twice double them with each function, in a file of a kilobyte.
"""

from __future__ import annotations

import mmap
from collections import Counter

from hasten.core.protobufs import parts
from hasten.errors import IntegrityError

MOST_NODES = 1 << 18
"""Most nodes of a model with functions, once each call is replaced by its function's nodes."""
_MOST_FUNCTIONS, _MOST_DEEP = 10_000, 100
_MOST_FIELDS = 2_000_000
_Key = tuple[bytes, ...]
_Body = Counter[_Key]
"""Nodes of a graph or a function, with those of their subgraphs, counted by what they call."""


def check_functions(data: bytes | mmap.mmap) -> None:
    """Check that an ONNX file's functions end, and don't become too many nodes; other files pass.

    Args:
        data: The file's bytes.

    Raises:
        IntegrityError: there are too many, they call each other in a circle, or too deeply or often.
    """
    functions: dict[_Key, _Body] = {}
    graphs: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for seen, (number, first, last) in enumerate(parts(data, 0, len(data))):
        if number == 7:
            graphs.append((first, last))
        elif number == 25:
            bodies.append((first, last))
        if len(bodies) > _MOST_FUNCTIONS or (bodies and seen > _MOST_FIELDS):
            raise IntegrityError(f"it has more than {_MOST_FUNCTIONS:,} functions")
        if seen > _MOST_FIELDS:
            return  # no ONNX file has so many parts
    if not bodies:
        return
    room = [MOST_NODES]
    for first, last in bodies:
        key, body = _function(data, first, last, room)
        functions.setdefault(key, Counter()).update(body)
    whole: _Body = Counter()
    for first, last in graphs:
        _add_nodes(data, first, last, 1, whole, room)
    _Inlined(functions).count(whole, 1)


class _Inlined:
    """Counts of nodes after inlining, each function's once."""

    def __init__(self, functions: dict[_Key, _Body]) -> None:
        self._functions = functions
        self._known: dict[_Key, tuple[int, int]] = {}
        self._open: set[_Key] = set()

    def count(self, body: _Body, deep: int) -> tuple[int, int]:
        """Return the nodes that a body becomes, and how deeply its calls are nested."""
        if deep > _MOST_DEEP:
            raise _too_deep()
        nodes, deepest = 0, 0
        for key, times in body.items():
            one, levels = self._of(key, deep) if key in self._functions else (1, 0)
            nodes += times * one
            deepest = max(deepest, levels)
            if nodes > MOST_NODES:
                raise _too_many()
            if deepest > _MOST_DEEP:
                raise _too_deep()
        return nodes, deepest

    def _of(self, key: _Key, deep: int) -> tuple[int, int]:
        if key in self._open:
            raise IntegrityError("its functions call each other in a circle")
        if key not in self._known:
            self._open.add(key)
            nodes, deepest = self.count(self._functions[key], deep + 1)
            self._open.remove(key)
            self._known[key] = max(1, nodes), deepest + 1
        return self._known[key]


def _function(data: bytes | mmap.mmap, begin: int, end: int, room: list[int]) -> tuple[_Key, _Body]:
    body: _Body = Counter()
    _add_nodes(data, begin, end, 7, body, room)
    return _key(data, begin, end, {10: 0, 1: 1, 13: 2}), body


def _add_nodes(
    data: bytes | mmap.mmap, begin: int, end: int, field_of_nodes: int, body: _Body, room: list[int]
) -> None:
    """Count the nodes of a graph or a function and of their subgraphs."""
    left = [(begin, end, field_of_nodes)]
    while left:
        begin, end, nodes = left.pop()
        for number, first, last in parts(data, begin, end):
            if number != nodes:
                continue
            room[0] -= 1
            if room[0] < 0:
                raise _too_many()
            body[_key(data, first, last, {7: 0, 4: 1, 8: 2})] += 1
            for inner, one, other in parts(data, first, last):
                if inner == 5:
                    graphs = parts(data, one, other)
                    left += [(a, b, 1) for name, a, b in graphs if name in (6, 11)]


def _key(data: bytes | mmap.mmap, begin: int, end: int, fields: dict[int, int]) -> _Key:
    """Return domain, name and overload; of a field that comes twice the last counts, as for a parser."""
    found = [b"", b"", b""]
    for number, first, last in parts(data, begin, end):
        if number in fields:
            found[fields[number]] = data[first:last]
    if found[0] == b"ai.onnx":
        found[0] = b""
    return tuple(found)


def _too_many() -> IntegrityError:
    return IntegrityError(
        f"its functions and their calls make more than {MOST_NODES:,} nodes of it"
    )


def _too_deep() -> IntegrityError:
    return IntegrityError(f"its functions call each other more than {_MOST_DEEP} levels deep")
