"""Remember how repeated gRPC messages decode, so that only ids and tensors are read again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hasten.core.protobufs import parse_errors
from hasten.core.tensors import Array, Tensors
from hasten.serving.protocol.datatypes import datatype_of_array
from hasten.serving.protocol.messages import message
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.wire.grpc_fields import BYTES_FIELD, written_number
from hasten.serving.wire.plans import SMALL_BYTES

Heading: TypeAlias = tuple[str, str, int, int]
"""Name and version of a request's model, and where the field of its id begins and ends, if it has one."""

_NAME, _VERSION, _ID = (number << 3 | BYTES_FIELD for number in (1, 2, 3))
_RAW_INPUT = bytes([7 << 3 | BYTES_FIELD])
_RAW_OUTPUT = bytes([6 << 3 | BYTES_FIELD])
_OTHER_IDS = ("-", "+")
"""Ids that a message is read with in place of its own: a later field with an id can't have both."""
_SHORT = 128
"""Lengths below this take one byte."""
_MOST, _MOST_ALIKE, _MOST_SEEN = 64, 4, 256
_LONGEST = 4096
_NUMBERS = "biuf"
"""Kinds of numpy's types that Python's buffers know."""


def heading_of(data: bytes) -> Heading | None:
    """Read what a `ModelInferRequest` begins with, as libraries write it: model, version and id.

    Returns:
        The heading; None if the message begins in another way, so that only protobuf can read it.
    """
    try:
        if data[0] != _NAME or data[1] >= _SHORT:
            return None
        begin = 2 + data[1]
        name, version = data[2:begin], b""
        if data[begin] == _VERSION:
            start = begin + 2
            if data[begin + 1] >= _SHORT:
                return None
            begin = start + data[begin + 1]
            version = data[start:begin]
        end = begin
        if data[begin] == _ID:
            if data[begin + 1] >= _SHORT:
                return None
            end += 2 + data[begin + 1]
        return name.decode(), version.decode(), begin, end
    except (IndexError, UnicodeDecodeError):
        return None


class _Place(NamedTuple):
    """A tensor of a message.

    Attributes:
        name: Name of the input.
        dtype: Type in numpy.
        shape: Shape, already checked against the model.
        size_bytes: Size.
        before: Bytes of the message between the tensor before it, or the id, and this one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size_bytes: int
    before: bytes


class MessagePlan:
    """Everything that follows from a gRPC request besides its id and its tensors.

    Args:
        query: Request that was decoded without a plan.
        places: Tensors of its message.
        rows: Samples in the request.
        key: Key that is equal for requests that can share a batch.
        final: Whether to mark even an error as the last answer in a stream.
        timeout_ns: Deadline that the message states, in nanoseconds after its arrival; 0 for none. A call's own
            isn't part of it.

    Attributes:
        answer_bytes: Size of an answer's outputs; None if that isn't known.
    """

    __slots__ = (
        "_before",
        "_heads",
        "_model",
        "_outputs",
        "_places",
        "_priority",
        "_timeout_ns",
        "_varies",
        "_version",
        "answer_bytes",
        "final",
        "key",
        "rows",
    )

    def __init__(
        self,
        query: Query,
        places: Sequence[_Place],
        rows: int,
        key: Hashable,
        final: bool,
        timeout_ns: int,
    ) -> None:
        self._model, self._version, self._outputs = query.model, query.version, query.outputs
        self._priority, self._timeout_ns = query.priority, timeout_ns
        self._places = tuple(places)
        self.rows, self.key, self.final = rows, key, final
        self.answer_bytes: int | None = None
        self._before = b""
        """Bytes that an answer begins with, before its id."""
        self._heads: tuple[tuple[np.dtype[Any], tuple[int, ...], bytes], ...] = ()
        """Type and shape of each output, and the bytes that are sent before it; empty until an answer
        was sent."""
        self._varies = False
        """Whether answers came whose outputs have different shapes."""

    def query(self, data: bytes, place: int, id_: str) -> Query | None:
        """Decode a message; None if it isn't like the plan's.

        Args:
            data: The message, as long as the plan's apart from the id.
            place: Where the id ends.
            id_: The id.
        """
        inputs: dict[str, Array] = {}
        for name, dtype, shape, size, before in self._places:
            if not data.startswith(before, place):
                return None
            place += len(before)
            if size <= SMALL_BYTES:
                inputs[name] = np.ndarray(shape, dtype, data[place : place + size])
            else:
                array: Array = np.ndarray(shape, dtype, data, place)
                inputs[name] = array if array.flags.aligned else array.copy()
            place += size
        return Query(
            self._model,
            self._version,
            id_,
            inputs,
            self._outputs,
            True,
            self._priority,
            self._timeout_ns,
            plan=self,
        )

    def answer(self, outputs: Tensors, id_: str, final: bool) -> bytes | None:
        """Encode an answer as `write_answer` does; None if one with such outputs wasn't encoded before."""
        heads = self._heads
        if len(heads) != len(outputs):
            return None
        pieces: list[Any] = [self._before]
        if id_:
            pieces.append(b"%c%c%b" % (_ID, len(id_), id_.encode()))
        if final:
            pieces.append(_final())
        for array, (dtype, shape, head) in zip(outputs.values(), heads, strict=True):
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                return None
            pieces += (head, array)
        return b"".join(pieces)

    def note(self, answer: Answer) -> None:
        """Remember how an answer is encoded, if later ones can use it."""
        arrays = answer.outputs.values()
        if self._varies or self._heads or answer.parameters:
            self._varies, self._heads = True, ()
            return
        if not all(array.dtype.kind in _NUMBERS and array.nbytes for array in arrays):
            return
        head = message("ModelInferResponse")(
            model_name=answer.model, model_version=answer.version
        ).SerializeToString()
        each = message("ModelInferResponse")()
        for name, array in answer.outputs.items():
            each.outputs.add(name=name, datatype=datatype_of_array(array), shape=array.shape)
        between = each.SerializeToString()
        heads = []
        for array in arrays:
            between += _RAW_OUTPUT + written_number(array.nbytes)
            heads.append((array.dtype, array.shape, between))
            between = b""
        self._before, self._heads = head, tuple(heads)


class MessagePlans:
    """Plans of one open model, for the messages that its clients send repeatedly."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, int], list[MessagePlan]] = {}
        """Bytes before the id, and the size of all but the id -> plans, the oldest first."""
        self._seen: set[tuple[bytes, int, bytes]] = set()
        """Messages without ids and tensors that came once. A plan is only made at the second time."""

    def find(self, data: bytes, begin: int, end: int) -> Query | None:
        """Decode a message of which all but the id and the tensors was seen before; None if it wasn't.

        Args:
            data: The message.
            begin: Where its id begins.
            end: Where its id ends.
        """
        plans = self._kept.get((data[:begin], len(data) - end + begin))
        if plans is None:
            return None
        id_ = data[begin + 2 : end]
        if not id_.isascii():
            return None
        for plan in plans:
            query = plan.query(data, end, id_.decode())
            if query is not None:
                return query
        return None

    def note(
        self,
        query: Query,
        data: bytes,
        begin: int,
        end: int,
        raw: Sequence[Any],
        rows: int,
        key: Hashable,
        final: bool,
        timeout_ns: int,
    ) -> None:
        """Remember how a message decoded, if later ones can use it.

        Args:
            query: Request as it was decoded.
            data: The message.
            begin: Where its id begins.
            end: Where its id ends.
            raw: Entries of its raw_input_contents.
            rows: Samples in the request.
            key: Key that is equal for requests that can share a batch.
            final: Whether to mark even an error as the last answer in a stream.
            timeout_ns: Deadline that the message states, in nanoseconds after its arrival; 0 for none.
        """
        arrays = query.inputs
        sizes = [array.nbytes for array in arrays.values()]
        if query.sequence is not None or not data[begin:end].isascii():
            return
        if any(each.region is not None or each.classes for each in query.outputs):
            return
        # All inputs, none of them text, and none in shared memory.
        if not sizes or not all(sizes) or sizes != list(map(len, raw)):
            return
        if any(array.dtype == object for array in arrays.values()):
            return
        # Libraries write the tensors last.
        heads = [_RAW_INPUT + written_number(size) for size in sizes]
        place = rest = len(data) - sum(sizes) - sum(map(len, heads))
        if not end <= rest <= _LONGEST:
            return
        places: list[_Place] = []
        for (input_, array), head in zip(arrays.items(), heads, strict=True):
            if not data.startswith(head, place):
                return
            before = data[end:rest] + head if not places else head
            places.append(_Place(input_, array.dtype, array.shape, array.nbytes, before))
            place += len(head) + array.nbytes
        known = data[:begin], len(data) - end + begin
        seen = (*known, data[end:rest])
        if seen not in self._seen:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(seen)
            return
        self._seen.discard(
            seen
        )  # a kind that was replaced comes twice again before it replaces another
        if _is_own(data[:begin], data[end:rest]):
            if len(self._kept) >= _MOST:
                self._kept.clear()
            plan = MessagePlan(query, places, rows, key, final, timeout_ns)
            alike = self._kept.setdefault(known, [])
            alike.append(plan)
            del alike[:-_MOST_ALIKE]


def _is_own(before: bytes, after: bytes) -> bool:
    """Whether a message has its id in this place only, and no field goes on behind what is given here.

    Args:
        before: Bytes before the id.
        after: Bytes between the id and the tensors.
    """
    for id_ in _OTHER_IDS:
        field = b"%c%c%b" % (_ID, len(id_), id_.encode())
        try:
            read = message("ModelInferRequest").FromString(before + field + after)
        except parse_errors():
            return False
        if read.id != id_:
            return False
    return True


@cache
def _final() -> bytes:
    """Return the field that marks an answer as the last one to its request."""
    head = message("ModelInferResponse")()
    head.parameters["triton_final_response"].bool_param = True
    return bytes(head.SerializeToString())
