"""Remember how repeated JSON of requests decodes, so that only ids and tensors are read again."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.serving.protocol.datatypes import datatype_of_array, to_bytes
from hasten.serving.protocol.requests import Query, WantedOutput
from hasten.serving.wire.json_numbers import numbers

_ID = re.compile(rb'"id" ?: ?"([ !#-\[\]-~]{1,128})"')
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
_DATA_KEY = re.compile(rb'"data"[ \t\r\n]*:')
_MOST, _MOST_SEEN = 64, 256
_LONGEST = 4096
SMALL_BYTES = 4 << 10
"""Size up to which a tensor is copied, since that takes less time than to see whether it is aligned."""


class Place(NamedTuple):
    """Position of a tensor in a body.

    Attributes:
        name: Name of the input.
        datatype: Name of the type in the protocol.
        dtype: Type in numpy.
        shape: Shape, already checked against the model.
        size_bytes: Size.
        offset: Offset from the end of the JSON, in bytes.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size_bytes: int
    offset: int


class RequestPlan:
    """Everything that follows from a request's JSON, except its id and its tensors.

    Args:
        query: Request with this JSON that was decoded without a plan.
        tail_bytes: Total size of the tensors after the JSON; None if the only tensor is in the JSON,
            as numbers.
        rows: Samples in the request.
        key: Key that is equal for requests that can share a batch.

    Attributes:
        answer: Signature of the answer's outputs, length of the id, and the bytes that are sent
            before the outputs: up to the id, and after it. None until an answer was sent.
        answer_bytes: Size of an answer's outputs; None if that isn't known.
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
        "answer_bytes",
        "key",
        "rows",
        "tail_bytes",
    )

    def __init__(self, query: Query, tail_bytes: int | None, rows: int, key: Hashable) -> None:
        self._model, self._version = query.model, query.version
        self._outputs, self._binary = query.outputs, query.binary
        self._priority, self._timeout_ns = query.priority, query.timeout_ns
        self.tail_bytes, self.rows, self.key = tail_bytes, rows, key
        self._places = []
        offset = 0
        for name, array in query.inputs.items():
            datatype = datatype_of_array(array)
            place = Place(name, datatype, array.dtype, array.shape, array.nbytes, offset)
            self._places.append(place)
            offset += array.nbytes
        self.answer: tuple[list[tuple[Any, ...]], int, bytes, bytes] | None = None
        self.answer_bytes: int | None = None

    def query(self, body: Any, header_bytes: int, id_: str) -> Query:
        """Decode a body whose JSON equals the plan's."""
        inputs: dict[str, Array] = {}
        small = type(body) is bytes
        for name, _, dtype, shape, size, offset in self._places:
            begin = header_bytes + offset
            if small and size <= SMALL_BYTES:
                inputs[name] = np.ndarray(shape, dtype, body[begin : begin + size])
                continue
            array: Array = np.ndarray(shape, dtype, body, begin)
            inputs[name] = array if array.flags.aligned else array.copy()
        return self._query(inputs, id_)

    def text_query(self, data: memoryview, id_: str) -> Query | None:
        """Decode a body whose JSON equals the plan's except for its numbers; None if they don't fit."""
        place = self._places[0]
        array = numbers(data, place.datatype, place.shape)
        return None if array is None else self._query({place.name: array}, id_)

    def _query(self, inputs: dict[str, Array], id_: str) -> Query:
        return Query(
            self._model,
            self._version,
            id_,
            inputs,
            self._outputs,
            self._binary,
            self._priority,
            self._timeout_ns,
            plan=self,
        )

    def head(self, outputs: Tensors, id_: str) -> bytes | None:
        """Return the bytes to send before an answer's outputs; None if they aren't known."""
        if self.answer is None:
            return None
        like, length, before, after = self.answer
        if length != len(id_) or len(like) != len(outputs):
            return None
        for array, (dtype, shape) in zip(outputs.values(), like, strict=True):
            if array.shape != shape or array.dtype != dtype:
                return None
        return before + id_.encode() + after if id_ else before

    def note(self, outputs: Tensors, id_: str, head: bytes) -> None:
        """Remember the bytes that were sent before an answer's outputs."""
        before, between, after = head, b"", b""
        if id_:
            before, between, after = head.rpartition(b'"id":"' + id_.encode() + b'"')
            if not between:
                return
            before, after = before + b'"id":"', b'"' + after
        self.answer = signature(outputs), len(id_), before, after


class Plans:
    """Plans of one open model, for the JSON that its clients send repeatedly."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, int], RequestPlan | None] = {}
        """JSON without its id, and the id's place -> plan; None for JSON that a plan can't decode."""
        self._seen: set[tuple[bytes, int]] = set()
        """Keys of JSON that came once. A plan is only made at the second time, since some clients'
        requests all differ, for example in a deadline."""

    def find(self, body: Any, header_bytes: int | None) -> Query | None:
        """Decode a body whose JSON was seen before, apart from its id; None if it wasn't.

        Args:
            body: Whole body.
            header_bytes: Length of the JSON; None if the body is all JSON, with one tensor's numbers.
        """
        if header_bytes is None:
            if (text := _text(body)) is None:
                return None
            key, id_, data = text
            plan = self._kept.get(key)
            return None if plan is None else plan.text_query(data, id_)
        if header_bytes > _LONGEST:
            return None
        key, id_ = _without_id(bytes(body[:header_bytes]))
        plan = self._kept.get(key)
        if plan is None or plan.tail_bytes != len(body) - header_bytes:
            return None
        return plan.query(body, header_bytes, id_)

    def note(
        self, query: Query, body: Any, header_bytes: int | None, rows: int, key: Hashable
    ) -> None:
        """Remember how a request's JSON decoded, if later requests can use it."""
        if _elsewhere(query.outputs):
            return
        if header_bytes is None:
            self._note_text(query, body, rows, key)
            return
        size = sum(array.nbytes for array in query.inputs.values())
        plain = all(array.dtype != object and array.nbytes for array in query.inputs.values())
        if not plain or header_bytes + size != len(body) or header_bytes > _LONGEST:
            return
        place, id_ = _without_id(bytes(body[:header_bytes]))
        # If the ids differ, the id is written in another way.
        if id_ == query.id and self._again(place) and _is_own(place, id_):
            self._keep(place, RequestPlan(query, size, rows, key))

    def _note_text(self, query: Query, body: Any, rows: int, key: Hashable) -> None:
        """Remember JSON that holds its only input, if decoding it by a plan gives the same numbers."""
        if len(query.inputs) != 1 or (text := _text(body)) is None or text[0] in self._kept:
            return
        place, id_, data = text
        if not self._again(place):
            return
        plan = RequestPlan(query, None, rows, key)
        own = id_ == query.id and _is_own(place, id_, with_data=True)
        again = plan.text_query(data, id_) if own else None
        (array,) = query.inputs.values()
        same = again is not None and all(
            np.array_equal(array, other) for other in again.inputs.values()
        )
        self._keep(place, plan if same else None)

    def _again(self, place: tuple[bytes, int]) -> bool:
        """Whether this JSON came before; record it if not."""
        if place in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(place)
        return False

    def _keep(self, place: tuple[bytes, int], plan: RequestPlan | None) -> None:
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[place] = plan


def _text(body: Any) -> tuple[tuple[bytes, int], str, memoryview] | None:
    """Split a body that is all JSON into its key, its id and its only list of data.

    The key is the JSON without the id and the list. Bodies with equal keys differ in id and list only,
    whatever the lists hold, since JSON stays valid if one value replaces another.

    Returns:
        The key, the id and the list; None if there isn't exactly one list of data, or escapes in the
        JSON could hide another.
    """
    head = bytes(body[:_LONGEST])
    found = _DATA.search(head)
    if found is None:
        return None
    begin = found.end()
    rest = max(begin, len(body) - _LONGEST)
    tail = bytes(body[rest:])
    texts, objects = tail.find(b'"'), tail.find(b"}")
    end = tail.rfind(b"]", 0, min(texts, objects) if texts >= 0 else objects) + 1
    around = head[:begin] + b"\0" + tail[end:]
    if not end or b"\\" in around or len(_DATA_KEY.findall(around)) != 1:
        return None
    return (*_without_id(around), memoryview(body)[begin : rest + end])


def _without_id(header: bytes) -> tuple[tuple[bytes, int], str]:
    """Return a key, which is a request's JSON without its id and the id's place, and the id.

    Requests with equal keys differ in the id only: it is plain text without escapes, and occurs in
    one place.
    """
    found = _ID.search(header)
    if found is None:
        return (header, -1), ""
    begin, end = found.span(1)
    if _ID.search(header, end) is not None:
        return (header, -1), ""
    return (header[:begin] + header[end:], begin), found[1].decode()


class _Input(msgspec.Struct):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Request(msgspec.Struct):
    id: Any = ""
    inputs: tuple[_Input, ...] = ()


_decode = msgspec.json.Decoder(_Request).decode


def _is_own(place: tuple[bytes, int], id_: str, with_data: bool = False) -> bool:
    """Whether the id that was found is the request's own, as it is decoded, and not one further inside.

    Another id in its place is then decoded as the request's.

    Args:
        place: The request's key.
        id_: Id that was found; "" where none was.
        with_data: Whether the list of data must be the first input's own, too.
    """
    header, begin = place
    other = id_ and id_ + "-"
    request = _decode((header[:begin] + other.encode() + header[begin:]).replace(b"\0", b"[]"))
    data = not with_data or request.inputs[0].data is not msgspec.UNSET
    return data and (not id_ or request.id == other)


def _elsewhere(outputs: tuple[WantedOutput, ...]) -> bool:
    """Whether an output goes to shared memory, or its classes are asked for."""
    return any(each.region is not None or each.classes for each in outputs)


def signature(outputs: Tensors) -> list[tuple[Any, ...]]:
    """Return the types and shapes of outputs, which determine the head of an answer."""
    return [(array.dtype, array.shape) for array in outputs.values()]


def pieces_of(outputs: Mapping[str, Array]) -> list[Any]:
    """Return the bytes of each output, as they are sent."""
    return list(map(to_bytes, outputs.values()))
