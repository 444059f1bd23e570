"""Decode and encode gRPC messages of inferences, without copying the bytes of large tensors."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hasten.core.protobufs import parse_errors
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import (
    datatype_of_array,
    from_bytes,
    to_bytes,
)
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.protocol.requests import Answer, Parameters, Query, WantedOutput
from hasten.serving.wire.checks import (
    MOST_RANK,
    check_said,
    region_of,
    sequence_of,
    tensor_size,
    wanted_once,
    whole_number,
)
from hasten.serving.wire.classes import classes_of, part_of_turn
from hasten.serving.wire.grpc_contents import LONG_CONTENTS, read_contents
from hasten.serving.wire.grpc_fields import BYTES_FIELD, fields_of, written_number
from hasten.serving.wire.shared_memory import SharedMemory

_LARGE_BYTES = 32 << 10
"""Size above which copying tensors takes longer than locating them in the message's bytes."""
_UNTOLD_BYTES = 64 << 10
"""Largest number of bytes of a message that protobuf parses without its fields having been looked at."""
_INPUT = 5 << 3 | BYTES_FIELD
_CONTENTS = 5 << 3 | BYTES_FIELD
_OUTPUT = 6 << 3 | BYTES_FIELD
_SHAPE = (3 << 3, 3 << 3 | BYTES_FIELD)
"""Keys of the sizes of a shape: one of them, and a packed list."""
_LONGEST_SIZE = 11
"""Largest number of bytes of a size in a shape, key included."""
_RAW_INPUT = 7 << 3 | BYTES_FIELD
_RAW_OUTPUT = bytes([6 << 3 | BYTES_FIELD])
LONG_BYTES = 4 << 20
"""Size of an answer's tensors from which a thread copies them into its message."""
_MOST_BYTES = (1 << 31) - 1
"""Largest size of a message."""
_PART_BYTES = 1 << 20
"""Size that is copied at once: other threads may run in between."""
_STREAM_ERROR = bytes([1 << 3 | BYTES_FIELD])
_STREAM_RESPONSE = bytes([2 << 3 | BYTES_FIELD])


class GrpcRequest(NamedTuple):
    """A request whose tensors aren't decoded yet.

    Attributes:
        message: `ModelInferRequest`, maybe without raw_input_contents and without long contents.
        raw: Bytes of each entry of raw_input_contents.
        contents: Bytes of the long contents that the message is without, by the number of the input.
    """

    message: Any
    raw: Sequence[Any]
    contents: Mapping[int, memoryview]

    @property
    def id(self) -> str:
        """Identifier that the answer repeats."""
        return self.message.id  # type: ignore[no-any-return]

    @property
    def wants_final(self) -> bool:
        """Whether a stream has to mark the last answer to the request, even if it is an error."""
        parameters = self.message.parameters
        name = "triton_enable_empty_final_response"
        return name in parameters and parameters[name].bool_param is True


def read_request(data: bytes) -> GrpcRequest:
    """Parse a `ModelInferRequest`; the tensors of a large one aren't copied out of `data`.

    Raises:
        ProtocolError: the data is no such message, or has too many fields.
    """
    head, raw, contents = _apart(data) if len(data) > _LARGE_BYTES else (data, [], {})
    read = read_message("ModelInferRequest", head)
    return GrpcRequest(read, raw or read.raw_input_contents, contents)


def read_message(name: str, data: bytes) -> Any:
    """Parse a message.

    Args:
        name: Name of the message in the protocol.
        data: Bytes of the message.

    Raises:
        ProtocolError: the data can't be parsed, or is so long that it would take far more memory.
    """
    check_said(len(data))
    try:
        return message(name).FromString(data)
    except parse_errors() as error:
        raise ProtocolError(Kind.INVALID, f"the request is not a {name}: {error}") from error


def _apart(data: bytes) -> tuple[bytes, list[memoryview], dict[int, memoryview]]:
    """Split a `ModelInferRequest` into its tensors and the rest of the message.

    Data that doesn't look like such a message is returned whole unless it is long, so that protobuf can
    report what is wrong with it.

    Returns:
        The rest of the message, then each entry of raw_input_contents, then the long contents of
        inputs.

    Raises:
        ProtocolError: the message can't be parsed, has too many fields, or the rest is too large.
    """
    view = memoryview(data)
    rest: list[memoryview | bytes] = []
    raw: list[memoryview] = []
    contents: dict[int, memoryview] = {}
    kept = inputs = 0
    count = itertools.count(1)
    try:
        for key, start, begin, end in fields_of(data, 0, len(data), count):
            if key == _RAW_INPUT:
                rest.append(view[kept:start])
                raw.append(view[begin:end])
                kept = end
            elif key == _INPUT:
                head, long = _without_contents(data, begin, end, count)
                if long:
                    rest += [view[kept:start], bytes([_INPUT]), written_number(len(head)), head]
                    contents[inputs] = long
                    kept = end
                inputs += 1
            elif key == _OUTPUT:  # so that its parameters are counted
                deque(fields_of(data, begin, end, count), maxlen=0)
    except IndexError as error:
        if len(data) <= _UNTOLD_BYTES:
            return data, [], {}
        raise ProtocolError(
            Kind.INVALID,
            "the request is not a ModelInferRequest: it has too many fields, or they can't be "
            "parsed",
        ) from error
    rest.append(view[kept:])
    check_said(sum(map(len, rest)))
    return b"".join(rest), raw, contents


def _without_contents(
    data: bytes, begin: int, end: int, count: Iterator[int]
) -> tuple[bytes, memoryview]:
    """Split an `InferInputTensor` into its long contents and the rest; short contents are b"".

    Raises:
        IndexError: the fields can't be told apart.
        ProtocolError: there are too many fields, or the rest is too large.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    contents: list[memoryview] = []
    sizes_bytes = 0
    for key, start, first, stop in fields_of(data, begin, end, count):
        if key == _CONTENTS:
            contents.append(view[first:stop])
            continue
        kept.append(view[start:stop])
        if key in _SHAPE:
            sizes_bytes += stop - start
    if sizes_bytes > _LONGEST_SIZE * MOST_RANK:
        raise ProtocolError(
            Kind.INVALID,
            f"a tensor has at most {MOST_RANK} axes, but an input has a shape of {sizes_bytes:,} "
            "bytes",
        )
    if sum(map(len, contents)) <= LONG_CONTENTS:
        return b"", memoryview(b"")
    check_said(sum(map(len, kept)))
    # Contents in pieces are one message.
    whole = contents[0] if len(contents) == 1 else memoryview(b"".join(contents))
    return b"".join(kept), whole


def query_of(
    request: GrpcRequest,
    memory: SharedMemory,
    most_bytes: int,
    check: Callable[[str, str, tuple[int, ...]], None] = lambda name, datatype, shape: None,
) -> Query:
    """Decode a request's tensors, outputs and parameters.

    Args:
        request: Request as it was parsed.
        memory: Registered shared memory regions.
        most_bytes: Largest total size of the request's tensors.
        check: Function called with each input's name, datatype and shape before it is decoded.

    Raises:
        ProtocolError: the request doesn't follow the protocol.
    """
    head = request.message
    try:
        inputs = _inputs(request, memory, most_bytes, check)
    except InputError as error:
        raise ProtocolError(Kind.INVALID, str(error)) from error
    parameters = _parameters(head.parameters) if head.parameters else None
    return Query(
        head.model_name,
        head.model_version,
        head.id,
        inputs,
        wanted_once(_wanted(each, memory) for each in head.outputs) if head.outputs else (),
        True,
        whole_number(parameters, "priority") if parameters else 0,
        1000 * whole_number(parameters, "timeout") if parameters else 0,
        sequence=sequence_of(parameters) if parameters else None,
    )


def _inputs(
    request: GrpcRequest,
    memory: SharedMemory,
    most_bytes: int,
    check: Callable[[str, str, tuple[int, ...]], None],
) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    raw = request.raw
    left, place = most_bytes, 0
    for number, tensor in enumerate(request.message.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if name in inputs:
            raise ProtocolError(Kind.INVALID, f"input {name!r:.100} is given twice")
        left -= tensor_size(name, datatype, shape, left, most_bytes)
        check(name, datatype, shape)
        long = request.contents.get(number)
        filled = long is not None or (tensor.HasField("contents") and tensor.contents.ByteSize())
        parameters = tensor.parameters
        try:
            if parameters and "shared_memory_region" in parameters:
                if filled:
                    raise InputError("it has both contents and a shared memory region")
                data: Any = memory.read(region_of(name, _parameters(parameters)))
            elif not raw:
                inputs[name] = read_contents(tensor, long, datatype, shape)
                continue
            elif place == len(raw):
                raise InputError(
                    f"raw_input_contents has no entry for it, only for {place} before it"
                )
            elif filled:
                raise InputError("it has contents although the request has raw_input_contents")
            else:
                data = raw[place]
                place += 1
            inputs[name] = from_bytes(data, datatype, shape)
        except InputError as error:
            raise ProtocolError(Kind.INVALID, f"input {name!r:.100}: {error}") from error
    if place != len(raw):
        raise ProtocolError(
            Kind.INVALID,
            f"raw_input_contents has more entries ({len(raw)}) than there are inputs outside shared "
            f"memory ({place})",
        )
    return inputs


def _parameters(given: Any) -> Parameters:
    """Return the values of parameters by name; None for a parameter without a value."""
    return {
        name: getattr(parameter, choice)
        if (choice := parameter.WhichOneof("parameter_choice"))
        else None
        for name, parameter in given.items()
    }


def _wanted(output: Any, memory: SharedMemory) -> WantedOutput:
    name = output.name
    if not output.parameters:
        return WantedOutput(name, True)
    parameters = _parameters(output.parameters)
    region = None
    if "shared_memory_region" in parameters:
        region = memory.place(region_of(name, parameters))
    return WantedOutput(name, True, whole_number(parameters, "classification"), region)


def write_answer(
    answer: Answer,
    query: Query,
    memory: SharedMemory,
    batched: bool,
    in_stream: bool = False,
    most_bytes: int = _MOST_BYTES,
) -> bytes:
    """Encode a `ModelInferResponse`, in a stream inside of a `ModelStreamInferResponse`.

    Args:
        answer: Answer to encode.
        query: Request that the answer belongs to.
        memory: Registered shared memory regions, to which outputs may be written.
        batched: Whether the first axis counts the samples, for classification.
        in_stream: Whether it is sent in a stream, where it is marked as the last one to its request.
        most_bytes: Largest total size of the outputs that the message has.

    Raises:
        ProtocolError: an output doesn't fit its region, or the outputs are too large.
    """
    head = message("ModelInferResponse")(
        model_name=answer.model, model_version=answer.version, id=answer.id
    )
    for name, value in answer.parameters.items():
        _set_parameter(head.parameters[name], value)
    if in_stream:
        head.parameters["triton_final_response"].bool_param = True
    pieces: list[Any] = [b""]
    for each in query.outputs or [WantedOutput(name) for name in answer.outputs]:
        array = answer.outputs[each.name]
        if each.classes:
            array = classes_of(array, each.classes, batched)
        output = head.outputs.add()
        output.name, output.datatype = each.name, datatype_of_array(array)
        output.shape.extend(array.shape)
        data = to_bytes(array)
        if each.region is not None:
            memory.write(each.region, data)
            data = b""
        # As a field of the message, the bytes would be copied twice more.
        pieces += [_RAW_OUTPUT, written_number(len(data)), data]
    pieces[0] = head.SerializeToString()
    check_answer_size(sum(map(len, pieces[3::3])), most_bytes)
    if in_stream:
        pieces[:0] = _STREAM_RESPONSE, written_number(sum(map(len, pieces)))
    return _joined(pieces)


def check_answer_size(size: int, most: int) -> None:
    """Check that the outputs of an answer, made or foreseen, aren't too large.

    Args:
        size: Size of those that the message has, in bytes.
        most: Largest size.

    Raises:
        ProtocolError: they are too large; the message says what to do.
    """
    if size <= most:
        return
    raise ProtocolError(
        Kind.TOO_LARGE,
        f"the outputs have {size:,} bytes, but those of an answer over gRPC have at most {most:,} "
        f"here: ask for fewer rows or outputs at once, ask over HTTP{_or_raise_the_bound(size)}",
    )


def never_answered(size: int | None, most: int) -> str:
    """Return a warning of a model for which every request for all outputs is refused over gRPC; "" for any other.

    Args:
        size: Size of all outputs for the smallest request, in bytes; None if it isn't known.
        most: Largest size of the outputs of an answer.
    """
    if size is None or size <= most:
        return ""
    return (
        f"over gRPC, requests for all outputs are refused: these have at least {size:,} bytes, but those of an answer "
        f"at most {most:,}: ask for fewer outputs, ask over HTTP{_or_raise_the_bound(size)}"
    )


def _or_raise_the_bound(size: int) -> str:
    """Return how a server can be allowed to answer so much; "" if no message can have it."""
    if size >= _MOST_BYTES:
        return ""
    return f", or give the server the option --max-body {-(-size >> 20)}MiB"


def _joined(pieces: Sequence[Any]) -> bytes:
    """Join pieces of bytes; `join` would hold the interpreter's lock until all of them are copied."""
    size = sum(map(len, pieces))
    if size <= _PART_BYTES:
        return b"".join(pieces)
    whole = io.BytesIO(bytes(size))  # written in place, and returned without a copy
    for piece in pieces:
        for begin in range(0, len(piece), _PART_BYTES):
            whole.write(piece[begin : begin + _PART_BYTES])
    return whole.getvalue()


def is_slow(answer: Answer, query: Query, batched: bool) -> bool:
    """Whether an answer is so large, or has so many scores or texts, that a thread should encode it."""
    if answer.size_bytes > LONG_BYTES:
        return True
    outputs = answer.outputs
    if not query.outputs:
        return sum(part_of_turn(array, 0, batched) for array in outputs.values()) > 1
    parts = (part_of_turn(outputs[each.name], each.classes, batched) for each in query.outputs)
    return sum(parts) > 1


def _set_parameter(parameter: Any, value: Any) -> None:
    kinds: Mapping[type, str] = {bool: "bool", int: "int64", float: "double"}
    choice = kinds.get(type(value), "string")
    setattr(parameter, f"{choice}_param", value if choice != "string" else str(value))


def streamed(response: bytes) -> bytes:
    """Wrap an encoded `ModelInferResponse` in a `ModelStreamInferResponse`."""
    return b"".join((_STREAM_RESPONSE, written_number(len(response)), response))


def streamed_failure(failure: str, request_id: str, final: bool) -> bytes:
    """Encode a `ModelStreamInferResponse` that states the error of a request, by the request's id."""
    head = message("ModelInferResponse")(id=request_id)
    if final:
        head.parameters["triton_final_response"].bool_param = True
    said = failure.encode()
    return b"".join(
        (_STREAM_ERROR, written_number(len(said)), said, streamed(head.SerializeToString()))
    )
