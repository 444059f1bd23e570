"""Requests that look alike are read once: what follows from their JSON is kept, and only tensors change."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hasten.protocol.datatypes import to_bytes
from hasten.protocol.requests import Query, Wanted
from hasten.tensors import Array, Tensors

_MOST = 64
_LONGEST = 4096


class Place(NamedTuple):
    """Where a tensor lies in a body.

    Attributes:
        name: Of the input.
        dtype: numpy's.
        shape: As it was checked against the model.
        size: Of its elements, how many.
        offset: From the body's begin.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int
    offset: int


class Plan:
    """What follows from a request's JSON, its tensors being bytes behind it.

    Args:
        query: The first such request, as it was read.
        body_bytes: Of the whole body.
        header_bytes: Of its JSON.
        rows: Samples in it.
        key: Requests of equal keys can share a batch.

    Attributes:
        answer: The shapes and types of the answer's outputs, and all that is sent before them.
    """

    __slots__ = (
        "_binary",
        "_model",
        "_outputs",
        "_places",
        "_priority",
        "_timeout_ns",
        "_version",
        "answer",
        "body_bytes",
        "key",
        "rows",
    )

    def __init__(
        self, query: Query, body_bytes: int, header_bytes: int, rows: int, key: Hashable
    ) -> None:
        self._model, self._version = query.model, query.version
        self._outputs, self._binary = query.outputs, query.binary
        self._priority, self._timeout_ns = query.priority, query.timeout_ns
        self.body_bytes, self.rows, self.key = body_bytes, rows, key
        self._places = []
        offset = header_bytes
        for name, array in query.inputs.items():
            self._places.append(Place(name, array.dtype, array.shape, array.size, offset))
            offset += array.nbytes
        self.answer: tuple[list[tuple[Any, ...]], bytes] | None = None

    def query(self, body: Any) -> Query:
        """Read a body whose JSON is the plan's."""
        inputs: dict[str, Array] = {}
        for name, dtype, shape, size, offset in self._places:
            array = np.frombuffer(body, dtype, size, offset)
            inputs[name] = (array if array.flags.aligned else array.copy()).reshape(shape)
        return Query(
            self._model,
            self._version,
            "",
            inputs,
            self._outputs,
            self._binary,
            self._priority,
            self._timeout_ns,
            plan=self,
        )


class Plans:
    """The plans of one open model: of the JSON that its clients send again and again."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Plan] = {}

    def find(self, body: Any, header_bytes: int) -> Plan | None:
        """Return the plan of a body's JSON, where it was seen before."""
        if header_bytes > _LONGEST:
            return None
        plan = self._kept.get(bytes(body[:header_bytes]))
        return plan if plan is not None and plan.body_bytes == len(body) else None

    def note(self, query: Query, body: Any, header_bytes: int, rows: int, key: Hashable) -> None:
        """Keep what followed from a request's JSON, where all its tensors were bytes behind it.

        One with an id won't come again.
        """
        size = sum(array.nbytes for array in query.inputs.values())
        plain = all(array.dtype != object and array.nbytes for array in query.inputs.values())
        same = plain and header_bytes + size == len(body) and not _elsewhere(query.outputs)
        if query.id or not same or header_bytes > _LONGEST:
            return
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[bytes(body[:header_bytes])] = Plan(query, len(body), header_bytes, rows, key)


def _elsewhere(outputs: tuple[Wanted, ...]) -> bool:
    """Whether an output is written elsewhere, or its classes are asked for."""
    return any(each.region is not None or each.classes for each in outputs)


def signature(outputs: Tensors) -> list[tuple[Any, ...]]:
    """What an answer's head follows from."""
    return [(array.dtype, array.shape) for array in outputs.values()]


def pieces_of(outputs: Mapping[str, Array]) -> list[Any]:
    """The outputs as they are sent."""
    return [to_bytes(array) for array in outputs.values()]
