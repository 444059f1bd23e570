"""Decode and encode gRPC messages of inferences, without copying the bytes of large tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import (
    count_of,
    datatype_of_array,
    from_bytes,
    numpy_type,
    to_bytes,
)
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.protocol.requests import Answer, Parameters, Query, WantedOutput
from hasten.serving.wire.checks import (
    check_said,
    region_of,
    sequence_of,
    tensor_size,
    wanted_once,
    whole_number,
)
from hasten.serving.wire.classes import classes_of
from hasten.serving.wire.shared_memory import SharedMemory

_LARGE_BYTES = 32 << 10
"""Size above which copying tensors takes longer than locating them in the message's bytes."""
_MOST_FIELDS = 4096
"""Most fields in a large request: inputs, outputs, parameters and tensors, each of which needs memory."""
_LONG_CONTENTS = 1 << 10
"""Size above which contents are held against the shape before they are parsed."""
_LONGEST_ELEMENT = 11
"""Most bytes of a number in contents, key included."""
_BYTES_FIELD = 2
"""Wire type of text, bytes and messages; a field's key is 8 times its number plus the wire type."""
_FIXED_BYTES = {1: 8, 5: 4}
"""Wire type of numbers of a fixed size -> the size."""
_INPUT = 5 << 3 | _BYTES_FIELD
_CONTENTS = 5 << 3 | _BYTES_FIELD
_BYTES_CONTENTS = 8 << 3 | _BYTES_FIELD
_RAW_INPUT = 7 << 3 | _BYTES_FIELD
_RAW_OUTPUT = bytes([6 << 3 | _BYTES_FIELD])
_STREAM_ERROR = bytes([1 << 3 | _BYTES_FIELD])
_STREAM_RESPONSE = bytes([2 << 3 | _BYTES_FIELD])
_UNREADABLE = "its contents can't be parsed"

_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> field that lists its elements one by one."""


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
    from google.protobuf.message import DecodeError

    check_said(len(data))
    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise ProtocolError(Kind.INVALID, f"the request is not a {name}: {error}") from error


def _apart(data: bytes) -> tuple[bytes, list[memoryview], dict[int, memoryview]]:
    """Split a `ModelInferRequest` into its tensors and the rest of the message.

    Data that doesn't look like such a message is returned whole, so that protobuf can report what is
    wrong with it.

    Returns:
        The rest of the message, then each entry of raw_input_contents, then the long contents of
        inputs.

    Raises:
        ProtocolError: the message has too many fields, or the rest is too large.
    """
    view = memoryview(data)
    rest: list[memoryview | bytes] = []
    raw: list[memoryview] = []
    contents: dict[int, memoryview] = {}
    kept = inputs = 0
    count = itertools.count(1)
    try:
        for key, start, begin, end in _fields(data, 0, len(data), count):
            if key == _RAW_INPUT:
                rest.append(view[kept:start])
                raw.append(view[begin:end])
                kept = end
            elif key == _INPUT:
                head, long = _without_contents(data, begin, end, count)
                if long:
                    rest += [view[kept:start], bytes([_INPUT]), _varying(len(head)), head]
                    contents[inputs] = long
                    kept = end
                inputs += 1
    except IndexError:
        return data, [], {}
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
    for key, start, first, stop in _fields(data, begin, end, count):
        if key == _CONTENTS:
            contents.append(view[first:stop])
        else:
            kept.append(view[start:stop])
    if sum(map(len, contents)) <= _LONG_CONTENTS:
        return b"", memoryview(b"")
    check_said(sum(map(len, kept)))
    # Contents in pieces are one message.
    whole = contents[0] if len(contents) == 1 else memoryview(b"".join(contents))
    return b"".join(kept), whole


def _fields(
    data: bytes | memoryview, place: int, end: int, count: Iterator[int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: key, and where the field begins, its value begins and ends.

    Args:
        data: Bytes that hold the message.
        place: Where the message begins.
        end: Where it ends.
        count: Number of each field among all that the request has.

    Raises:
        IndexError: the fields can't be told apart, or too many are numbers.
        ProtocolError: there are too many fields.
    """
    while place < end:
        start = place
        key, begin = _number(data, place)
        kind = key & 7
        if next(count) > _MOST_FIELDS:
            if kind != _BYTES_FIELD:
                raise IndexError
            raise ProtocolError(
                Kind.INVALID,
                f"a request has at most {_MOST_FIELDS:,} inputs, outputs and parameters",
            )
        if kind == _BYTES_FIELD:
            length, begin = _number(data, begin)
            place = begin + length
        elif kind == 0:
            _, place = _number(data, begin)
        elif kind in _FIXED_BYTES:
            place = begin + _FIXED_BYTES[kind]
        else:
            raise IndexError
        if place > end:
            raise IndexError
        yield key, start, begin, place


def _number(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """Decode a variable-length integer; return it and the place where it ends.

    Raises:
        IndexError: the data ends early, or the integer has more than 64 bits.
    """
    value = data[place]
    place += 1
    if value < 128:
        return value, place
    value &= 127
    for shift in range(7, 64, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError


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
        wanted_once(map(_wanted, head.outputs)) if head.outputs else (),
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
                if long is not None:
                    _check_contents(long, datatype, shape)
                    _fill(tensor.contents, long)
                inputs[name] = _from_contents(tensor, datatype, shape)
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


def _wanted(output: Any) -> WantedOutput:
    name = output.name
    if not output.parameters:
        return WantedOutput(name, True)
    parameters = _parameters(output.parameters)
    region = region_of(name, parameters) if "shared_memory_region" in parameters else None
    return WantedOutput(name, True, whole_number(parameters, "classification"), region)


def _check_contents(contents: memoryview, datatype: str, shape: tuple[int, ...]) -> None:
    """Hold contents against a shape, before memory is taken for each of their elements.

    Raises:
        InputError: they have more elements than the shape.
    """
    count, size = count_of(shape), len(contents)
    much = size > _LONGEST_ELEMENT * count + _LONG_CONTENTS
    if datatype == "BYTES":
        keys = _keys(contents, count + 1)
        if any(key != _BYTES_CONTENTS for key in keys):
            raise InputError("BYTES must be sent in bytes_contents alone")
        much = len(keys) > count
    if much:
        raise InputError(
            f"{datatype}{list(shape)} has {count:,} elements; its contents of {size:,} bytes have more"
        )


def _keys(contents: memoryview, most: int) -> list[int]:
    """Return the keys of the first fields of contents.

    Raises:
        InputError: the fields can't be told apart.
    """
    fields = _fields(contents, 0, len(contents), itertools.repeat(0))
    try:
        return [key for key, *_ in itertools.islice(fields, most)]
    except IndexError as error:
        raise InputError(_UNREADABLE) from error


def _fill(message: Any, data: memoryview) -> None:
    """Parse data into a message that may have content already.

    Raises:
        InputError: the data can't be parsed.
    """
    from google.protobuf.message import DecodeError

    try:
        message.MergeFromString(bytes(data))
    except DecodeError as error:
        raise InputError(_UNREADABLE) from error


def _from_contents(tensor: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """Read a tensor that was sent element by element.

    Raises:
        InputError: the elements don't fit the datatype or the shape.
    """
    if datatype not in _FIELDS:
        raise InputError(f"{datatype} can only be sent in raw_input_contents")
    field = _FIELDS[datatype]
    elements = getattr(tensor.contents, field)
    if len(tensor.contents.ListFields()) > 1:
        raise InputError(f"{datatype} must be sent in {field} alone; other contents are filled too")
    count = count_of(shape)
    if len(elements) != count:
        raise InputError(
            f"{datatype}{list(shape)} has {count:,} elements; {field} has {len(elements):,}"
        )
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = list(elements)
        return array.reshape(shape)
    dtype = numpy_type(datatype)
    if dtype.itemsize >= 4 or dtype.kind == "b":
        return np.fromiter(elements, dtype, count).reshape(shape)
    # Messages have no numbers of fewer than 32 bits.
    wide = np.fromiter(elements, np.int64, count)
    limits = np.iinfo(dtype)
    if count and not (limits.min <= wide.min() and wide.max() <= limits.max):
        raise InputError(f"its {field} has a value that is not {datatype}")
    return wide.astype(dtype).reshape(shape)


def write_answer(
    answer: Answer, query: Query, memory: SharedMemory, batched: bool, final: bool = False
) -> bytes:
    """Encode a `ModelInferResponse`.

    Args:
        answer: Answer to encode.
        query: Request that the answer belongs to.
        memory: Registered shared memory regions, to which outputs may be written.
        batched: Whether the first axis counts the samples, for classification.
        final: Whether to mark the answer as the last one to its request.

    Raises:
        ProtocolError: an output doesn't fit its region.
    """
    head = message("ModelInferResponse")(
        model_name=answer.model, model_version=answer.version, id=answer.id
    )
    for name, value in answer.parameters.items():
        _set_parameter(head.parameters[name], value)
    if final:
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
        pieces += [_RAW_OUTPUT, _varying(len(data)), data]
    pieces[0] = head.SerializeToString()
    return b"".join(pieces)


def _set_parameter(parameter: Any, value: Any) -> None:
    kinds: Mapping[type, str] = {bool: "bool", int: "int64", float: "double"}
    choice = kinds.get(type(value), "string")
    setattr(parameter, f"{choice}_param", value if choice != "string" else str(value))


def streamed(response: bytes) -> bytes:
    """Wrap an encoded `ModelInferResponse` in a `ModelStreamInferResponse`."""
    return b"".join((_STREAM_RESPONSE, _varying(len(response)), response))


def streamed_failure(failure: str, request_id: str, final: bool) -> bytes:
    """Encode a `ModelStreamInferResponse` that states the error of a request, by the request's id."""
    head = message("ModelInferResponse")(id=request_id)
    if final:
        head.parameters["triton_final_response"].bool_param = True
    said = failure.encode()
    return b"".join((_STREAM_ERROR, _varying(len(said)), said, streamed(head.SerializeToString())))


def _varying(number: int) -> bytes:
    """Encode a variable-length integer."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
