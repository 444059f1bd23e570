"""Decode and encode HTTP bodies of inferences: JSON, with tensors in it or as bytes after it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import short
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import (
    count_of,
    datatype_of,
    datatype_of_array,
    from_bytes,
    item_size,
    numpy_type,
    to_bytes,
)
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import DECISION, RAW, Answer, Query, WantedOutput
from hasten.serving.wire.checks import (
    MOST_RANK,
    region_of,
    sequence_of,
    tensor_size,
    wanted_once,
    whole_number,
)
from hasten.serving.wire.classes import classes_of, part_of_turn
from hasten.serving.wire.json_numbers import IS_QUICK, all_finite, lists_of, numbers, switches
from hasten.serving.wire.json_request import (
    Tensor,
    Wanted,
    decoded_body,
    parameters_of,
    shape_of,
)
from hasten.serving.wire.shared_memory import SharedMemory

_decode_texts = msgspec.json.Decoder(list[str]).decode
_UNPACKED_BYTES = 4 << 20
"""Size to which any body may be decompressed."""
_MOST_RATIO = 100
"""Largest number of bytes to which each byte of a larger body may be decompressed."""
_SLOW_BYTES = 1 << 20
"""Largest number of bytes of JSON data of which an object is made for each number and list, to say what is wrong."""
_BLANKS = 4096
"""Largest number of blanks before a list that is told from an object."""
_PACKED_AT_ONCE_BYTES = 256 << 10
"""Largest size of a body that is compressed at once, and not by a thread."""
_JSON_OF_NUMBER = 12
"""Bytes that a number and its comma take in JSON, about."""
_SLICE = 1 << 16
"""Numbers that are written as JSON at once: a thread that writes holds the interpreter meanwhile."""
_DECISIONS = "decisions"
"""Name of the list of decisions, where a list of rows came as a plain body."""
_WEIGHT = re.compile(r"q=([01](?:\.\d{0,3})?)")


def read_body(
    body: Any,
    header_bytes: int | None,
    model: str,
    version: str,
    memory: SharedMemory,
    most_bytes: int,
    check: Callable[[str, str, tuple[int, ...]], None] = lambda name, datatype, shape: None,
) -> Query:
    """Decode a request; tensors after the JSON aren't copied out of `body`.

    Args:
        body: The whole body, decompressed.
        header_bytes: Length of the body's JSON, as Inference-Header-Content-Length states it; None
            if the body is all JSON.
        model: Name of the model, from the path.
        version: Version of the model, from the path, or "".
        memory: Registered shared memory regions.
        most_bytes: Largest total size of the request's tensors.
        check: Function called with each input's name, datatype and shape before it is decoded.

    Raises:
        ProtocolError: the body doesn't follow the protocol.
    """
    size = len(body)
    if header_bytes is not None and not 0 <= header_bytes <= size:
        raise ProtocolError(
            Kind.INVALID,
            f"Inference-Header-Content-Length is {header_bytes}, but the body has {size} bytes",
        )
    view = memoryview(body)
    head = decoded_body(body if header_bytes is None else view[:header_bytes])
    try:
        inputs, end = _inputs(head.inputs, view, header_bytes, memory, most_bytes, check)
    except InputError as error:
        raise ProtocolError(Kind.INVALID, str(error)) from error
    if end != size and header_bytes is not None:
        raise ProtocolError(
            Kind.INVALID, f"{size - end} bytes are left in the body after its inputs' tensors"
        )
    parameters = parameters_of(head.parameters)
    binary = _switch(parameters, "binary_data_output", False) if parameters else False
    return Query(
        model,
        version,
        head.id or "",
        inputs,
        wanted_once(_wanted(each, binary, memory) for each in head.outputs) if head.outputs else (),
        binary,
        whole_number(parameters, "priority") if parameters else 0,
        1000 * whole_number(parameters, "timeout") if parameters else 0,
        sequence=sequence_of(parameters) if parameters else None,
    )


def raw_query(body: Any, model: str, version: str, specs: Sequence[TensorSpec]) -> Query:
    """Decode a body that is the model's only input, whose open dimension follows from its length.

    Raises:
        ProtocolError: the model has several inputs, or the length fits none of its input's shapes.
    """
    if len(specs) != 1:
        raise ProtocolError(
            Kind.INVALID,
            f"a body without JSON contains one input, but the model {model!r} takes {len(specs)}",
        )
    spec = specs[0]
    open_ = [place for place, size in enumerate(spec.shape) if not isinstance(size, int)]
    each = (item_size(datatype_of(spec.dtype)) or 1) * count_of(
        size for size in spec.shape if isinstance(size, int)
    )
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    if open_:
        shape[open_[0]] = len(body) // max(1, each)
    try:
        array = from_bytes(body, datatype_of(spec.dtype), tuple(shape))
    except InputError as error:
        raise ProtocolError(Kind.INVALID, f"input {spec.name!r}: {error}") from error
    return Query(model, version, "", {spec.name: array}, (), True)


def sample_query(
    body: Any, model: str, version: str, kind: bytes, takes_samples: bool
) -> Query | None:
    """Take a body as one raw sample, if its content type says so.

    Args:
        body: Whole body.
        model: Name of the model.
        version: Version of the model; "" for the newest.
        kind: Content type of the body.
        takes_samples: Whether the model takes raw samples.

    Returns:
        The request, which is to be answered by the decision alone; None if the body is JSON.

    Raises:
        ProtocolError: the content type is a picture's, a sound's or a film's, and the model takes
            tensors only.
    """
    media = kind.partition(b";")[0].strip().lower()
    surely = media.startswith((b"image/", b"audio/", b"video/"))
    if not takes_samples:
        if not surely:
            return None
        raise ProtocolError(
            Kind.INVALID,
            f"the model {model!r:.100} takes tensors, but got {media.decode('latin-1'):.100}: send "
            "tensors, or make its bundle with a pipeline",
        )
    if not surely and media not in (b"text/plain", b"application/octet-stream"):
        return None
    sample = np.empty(1, object)
    sample[0] = bytes(body)
    return Query(model, version, "", {RAW: sample}, plain=True)


class _Named(msgspec.Struct):
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_named = msgspec.json.Decoder(_Named).decode
_listed = msgspec.json.Decoder(list[msgspec.Raw]).decode


def rows_query(body: Any, model: str, version: str, most_bytes: int) -> Query | None:
    """Take JSON as one row of a table, or as a list of rows.

    A row is an object without `inputs`, or a list of values; rows are a list of such objects or lists.

    Args:
        body: Whole body.
        model: Name of the model.
        version: Version of the model; "" for the newest.
        most_bytes: Largest number of bytes of a list.

    Returns:
        The request, which is to be answered by the decision alone, or by a list of decisions; None if
        the body is the protocol's own, an object with `inputs`, or neither object nor list.

    Raises:
        ProtocolError: the list is empty, too long, or isn't JSON.
    """
    samples, several = [body], False
    listed = bytes(body[:_BLANKS]).lstrip()[:1] == b"["
    if listed and len(body) > most_bytes:  # before memory is taken for each of its elements
        raise ProtocolError(
            Kind.INVALID,
            f"the rows of one request take at most {most_bytes:,} bytes of JSON: got {len(body):,}; send "
            "several requests",
        )
    try:
        if listed:
            found = _listed(body)
            if not found:
                raise ProtocolError(Kind.INVALID, "there are no rows in the list: send at least 1")
            if bytes(memoryview(found[0])[:1]) in (b"{", b"["):
                samples, several = found, True
        elif _named(body).inputs is not msgspec.UNSET:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if listed:
            raise ProtocolError(Kind.INVALID, f"the request is not JSON: {error}") from error
        return None
    array = np.empty(len(samples), object)
    array[:] = [bytes(sample) for sample in samples]
    return Query(model, version, "", {RAW: array}, plain=True, several=several)


def head_of_decision(model: str, version: str, *, several: bool = False) -> bytes:
    """Return what comes before the decision, or the list of them, in an answer to a plain body."""
    names = orjson.dumps({"model_name": model, "model_version": version})
    return b'%b,"%b":' % (names[:-1], (_DECISIONS if several else DECISION).encode())


def _inputs(
    tensors: list[Tensor],
    view: memoryview,
    header_bytes: int | None,
    memory: SharedMemory,
    most_bytes: int,
    check: Callable[[str, str, tuple[int, ...]], None],
) -> tuple[dict[str, Array], int]:
    inputs: dict[str, Array] = {}
    place = len(view) if header_bytes is None else header_bytes
    left = most_bytes
    for tensor in tensors:
        name = tensor.name
        if name in inputs:
            raise ProtocolError(Kind.INVALID, f"input {name!r:.100} is given twice")
        shape = shape_of(tensor)
        left -= tensor_size(name, tensor.datatype, shape, left, most_bytes)
        check(name, tensor.datatype, shape)
        parameters = parameters_of(tensor.parameters)
        if (size := parameters.get("binary_data_size")) is not None:
            if type(size) is not int or size < 0 or place + size > len(view):
                raise ProtocolError(
                    Kind.INVALID,
                    f"input {name!r:.100} announces {short(size)} bytes, but {len(view) - place} "
                    "are left",
                )
            if tensor.data or "shared_memory_region" in parameters:
                raise _two_ways(name)
            data = view[place : place + size]
            place += size
        elif "shared_memory_region" in parameters:
            if tensor.data:
                raise _two_ways(name)
            data = memory.read(region_of(name, parameters))
        else:
            inputs[name] = _from_json(tensor, shape)
            continue
        try:
            inputs[name] = from_bytes(data, tensor.datatype, shape)
        except InputError as error:
            raise ProtocolError(Kind.INVALID, f"input {name!r:.100}: {error}") from error
    return inputs, place


def _two_ways(name: str) -> ProtocolError:
    return ProtocolError(
        Kind.INVALID,
        f"input {name!r:.100} is given twice: use one of data, binary_data_size and shared memory",
    )


def _wanted(wanted: Wanted, binary: bool, memory: SharedMemory) -> WantedOutput:
    parameters = parameters_of(wanted.parameters)
    if not parameters:
        return WantedOutput(wanted.name, binary)
    region = None
    if "shared_memory_region" in parameters:
        region = memory.place(region_of(wanted.name, parameters))
    said = _switch(parameters, "binary_data", binary)
    return WantedOutput(wanted.name, said, whole_number(parameters, "classification"), region)


def _switch(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """Read a parameter that is true or false.

    Raises:
        ProtocolError: the parameter is something else.
    """
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise ProtocolError(
            Kind.INVALID, f"the parameter {name!r} must be true or false; got {short(value)}"
        )
    return value


def _from_json(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """Parse a tensor's data in JSON, flat or nested.

    Raises:
        ProtocolError: the data is no such tensor.
    """
    where = f"input {tensor.name!r:.100}"
    if tensor.datatype == "BF16":
        raise ProtocolError(Kind.INVALID, f"{where}: BF16 can only be sent as bytes")
    if not tensor.data:
        raise ProtocolError(Kind.INVALID, f"{where} has no data")
    data_ = memoryview(tensor.data)
    quick = switches(data_, shape) if tensor.datatype == "BOOL" else None
    quick = numbers(data_, tensor.datatype, shape) if quick is None else quick
    if quick is not None:
        return quick
    count, written = count_of(shape), bytes(tensor.data)
    if tensor.datatype == "BYTES":
        return _texts(written, shape, where)
    if b'"' in written:  # numpy would turn all elements into texts as long as the longest
        raise _no_value(tensor.datatype, where)
    if tensor.datatype != "BOOL" and (b"t" in written or b"f" in written):
        raise _no_value(tensor.datatype, where)  # numpy would turn true and false into numbers
    _check_numbers(written, tensor.datatype, shape, where)
    if IS_QUICK and len(written) > _SLOW_BYTES:  # each number and list would be an object
        raise ProtocolError(
            Kind.INVALID,
            f"{where}: its data is not a list of {tensor.datatype}, flat or nested like {list(shape)}",
        )
    data = _list(written, where)
    try:
        array = np.array(data)
    except ValueError as error:  # the lists are ragged
        raise ProtocolError(Kind.INVALID, f"{where}: its data is nested unevenly") from error
    if array.size != count:
        raise ProtocolError(
            Kind.INVALID, f"{where}: {list(shape)} has {count:,} elements; got {array.size:,}"
        )
    if array.ndim != 1 and array.shape != shape and count:
        raise ProtocolError(
            Kind.INVALID, f"{where}: data must be flat or {list(shape)}; got {list(array.shape)}"
        )
    if array.dtype.kind == "f" and tensor.datatype == "UINT64":
        array = _large(_flat(data, count, where), array)
    return _cast(array, tensor.datatype, where).reshape(shape)


def _list(written: bytes, where: str) -> list[Any]:
    """Decode a list.

    Raises:
        ProtocolError: it isn't one.
    """
    try:
        data = orjson.loads(written)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(Kind.INVALID, f"{where}: its data can't be read: {error}") from error
    if not isinstance(data, list):
        raise ProtocolError(Kind.INVALID, f"{where}: its data is not a list")
    return data


def _check_numbers(written: bytes, datatype: str, shape: tuple[int, ...], where: str) -> None:
    """Hold JSON without texts against a shape, before memory is taken for each of its elements.

    Raises:
        ProtocolError: it has more elements, or far more lists, than nested data of the shape.
    """
    count, found = count_of(shape), written.count(b",") + 1
    most = count_of(size or 1 for size in shape)
    if found > most:
        raise ProtocolError(
            Kind.INVALID, f"{where}: {list(shape)} has {count:,} elements; got {found:,}"
        )
    if b"{" in written:
        raise _no_value(datatype, where)
    if written.count(b"[") > lists_of(shape) + most:
        raise ProtocolError(Kind.INVALID, f"{where}: its data is nested deeper than {list(shape)}")


def _large(data: list[Any], array: Array) -> Array:
    """Return whole numbers as uint64 that numpy made floats of, since some exceed 2**63."""
    if all(type(each) is int and 0 <= each < 2**64 for each in data):
        return np.array(data, np.uint64)
    return array


def _cast(array: Array, datatype: str, where: str) -> Array:
    """Convert JSON's numbers to a datatype.

    Raises:
        ProtocolError: a number has no value in the datatype.
    """
    dtype = numpy_type(datatype)
    if not array.size:
        return np.empty(0, dtype)
    kind = array.dtype.kind
    if dtype.kind == "b":
        if kind == "b" or (kind in "iu" and ((array == 0) | (array == 1)).all()):
            return array.astype(dtype)
    elif kind in "iuf" and dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if np.isfinite(narrow).all():  # all JSON numbers are finite: infinity means too large
            return narrow
    elif kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) >= limits.min and int(array.max()) <= limits.max:
            return array.astype(dtype)
    raise _no_value(datatype, where)


def _no_value(datatype: str, where: str) -> ProtocolError:
    return ProtocolError(Kind.INVALID, f"{where}: its data has a value that is not {datatype}")


def _flat(data: list[Any], count: int, where: str) -> list[Any]:
    """Flatten nested lists, at most as deep as a tensor can have axes.

    Raises:
        ProtocolError: the lists are nested unevenly, or don't have `count` elements.
    """
    for _ in range(MOST_RANK):
        if not any(isinstance(each, list) for each in data):
            break
        if not all(isinstance(each, list) for each in data):
            raise ProtocolError(Kind.INVALID, f"{where}: its data is nested unevenly")
        data = [element for each in data for element in each]
    if len(data) != count:
        raise ProtocolError(
            Kind.INVALID, f"{where}: its shape has {count:,} elements; got {len(data):,}"
        )
    return data


def _texts(written: bytes, shape: tuple[int, ...], where: str) -> Array:
    """Decode a flat list of texts.

    Raises:
        ProtocolError: it is no such list, or doesn't have as many texts as the shape.
    """
    count = count_of(shape)
    # Each text has two quotes, of which only the second may follow a backslash.
    if written.count(b'"') - written.count(b'\\"') > 2 * count:
        raise ProtocolError(
            Kind.INVALID,
            f"{where}: its data has more texts than the {count:,} elements of its shape",
        )
    try:
        data = _decode_texts(written)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            Kind.INVALID, f"{where}: its data must be a flat list of texts: {error}"
        ) from error
    except msgspec.DecodeError as error:
        raise ProtocolError(Kind.INVALID, f"{where}: its data can't be read: {error}") from error
    if len(data) != count:
        raise ProtocolError(
            Kind.INVALID, f"{where}: its shape has {count:,} elements; got {len(data):,}"
        )
    array = np.empty(count, object)
    array[:] = [element.encode() for element in data]
    return array.reshape(shape)


def write_answer(
    answer: Answer, query: Query, memory: SharedMemory, batched: bool
) -> tuple[list[Any], int | None]:
    """Encode an answer.

    Args:
        answer: Answer to encode.
        query: Request that the answer belongs to.
        memory: Registered shared memory regions, to which outputs may be written.
        batched: Whether the first axis counts the samples, for classification.

    Returns:
        Pieces of the body, and the length of its JSON; None as length if the body is all JSON.

    Raises:
        ProtocolError: an output doesn't fit its region, has no classes, or can't be written as JSON.
    """
    if query.plain:
        decisions = answer.outputs[DECISION]
        before = head_of_decision(answer.model, answer.version, several=query.several)
        if query.several:
            return [before, b"[", b",".join(decisions), b"]}"], None
        return [before, decisions[0], b"}"], None
    outputs, tail, elements = [], [], 0
    for each in _wanted_outputs(answer, query):
        array = answer.outputs[each.name]
        if each.classes:
            array = classes_of(array, each.classes, batched)
        entry: dict[str, Any] = {
            "name": each.name,
            "datatype": datatype_of_array(array),
            "shape": array.shape,
        }
        if each.region is not None:
            # Triton's documentation puts parameters here, but its clients fail on any.
            memory.write(each.region, to_bytes(array))
        elif each.binary:
            data = to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = _to_json(array, each.name)
            elements += array.size
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    if answer.parameters:
        head["parameters"] = answer.parameters
    if elements > _SLICE:
        pieces = _in_pieces(head, outputs)
    else:
        head["outputs"] = outputs
        pieces = [orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)]
    return ([*pieces, *tail], sum(map(len, pieces))) if tail else (pieces, None)


def _in_pieces(head: dict[str, Any], outputs: Sequence[dict[str, Any]]) -> list[bytes]:
    """Write the JSON of a long answer such that no step of it keeps other threads waiting for long."""
    pieces = [orjson.dumps(head)[:-1] + b',"outputs":[']
    for number, entry in enumerate(outputs):
        data = entry.pop("data", None)
        begin = (b"," if number else b"") + orjson.dumps(entry)[:-1]
        if data is None:
            pieces.append(begin + b"}")
            continue
        pieces.append(begin + b',"data":[')
        for first in range(0, len(data), _SLICE):
            part = orjson.dumps(data[first : first + _SLICE], option=orjson.OPT_SERIALIZE_NUMPY)
            pieces.append((b"," if first else b"") + part[1:-1])
        pieces.append(b"]}")
    return [*pieces, b"]}"]


def slow_bytes(answer: Answer, query: Query, batched: bool, packs: bool) -> int:
    """Return about how many bytes a thread takes to encode an answer; 0 where it is done at once.

    Args:
        answer: Answer to encode.
        query: Request that the answer belongs to.
        batched: Whether the first axis counts the samples, for classification.
        packs: Whether the body is compressed.
    """
    if query.plain:
        return 0
    size, part = 0, 0.0
    for each in _wanted_outputs(answer, query):
        array = answer.outputs[each.name]
        part += part_of_turn(array, each.classes, batched)
        if each.classes:
            size += array.nbytes
        elif each.region is None:
            size += array.nbytes if each.binary else _JSON_OF_NUMBER * array.size
            part += 0 if each.binary else array.size / _SLICE
    is_long = part > 1 or (packs and size > _PACKED_AT_ONCE_BYTES)
    return max(1, size) if is_long else 0  # what shared memory gets has no size here


def _wanted_outputs(answer: Answer, query: Query) -> Sequence[WantedOutput]:
    return query.outputs or [WantedOutput(name, query.binary) for name in answer.outputs]


def _to_json(array: Array, name: str) -> Any:
    """Return an array in a form that orjson encodes as a flat list.

    Raises:
        ProtocolError: the output has no JSON form.
    """
    flat = array.reshape(-1)
    if flat.dtype == object:
        try:
            return [element.decode() for element in flat]
        except UnicodeDecodeError as error:
            raise ProtocolError(
                Kind.INVALID, f"output {name!r} isn't UTF-8: ask for it with binary_data"
            ) from error
    if flat.dtype.kind not in "biuf":
        raise ProtocolError(
            Kind.INVALID,
            f"output {name!r} of {flat.dtype} has no JSON form: ask for it with binary_data",
        )
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    if flat.dtype.kind == "f" and not all_finite(flat):
        raise ProtocolError(
            Kind.INTERNAL,
            f"output {name!r} has infinite or NaN values, which JSON can't represent: ask for it with "
            "binary_data",
        )
    return np.ascontiguousarray(flat)


def decompressed(body: Any, encoding: str, most_bytes: int) -> bytes:
    """Decompress a body, but never to more than `most_bytes`, nor to far more than its own size.

    Raises:
        ProtocolError: the encoding is unknown, or the body is damaged or too large.
    """
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(encoding)
    if bits is None:
        raise ProtocolError(
            Kind.INVALID, f"Content-Encoding must be gzip or deflate; got {encoding!r:.40}"
        )
    most = min(most_bytes, max(_UNPACKED_BYTES, _MOST_RATIO * len(body)))
    engine = zlib.decompressobj(bits)
    try:
        data = engine.decompress(body, most + 1)
    except zlib.error as error:
        if encoding != "deflate":
            raise ProtocolError(Kind.INVALID, f"the body is not {encoding}: {error}") from error
        engine = zlib.decompressobj(-15)  # some clients send deflate without zlib's header
        try:
            data = engine.decompress(body, most + 1)
        except zlib.error as again:
            raise ProtocolError(Kind.INVALID, f"the body is not {encoding}: {again}") from again
    if most < len(data) <= most_bytes:
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"the body of {len(body):,} bytes decompresses to more than {most:,}: send it without "
            "Content-Encoding",
        )
    if len(data) > most_bytes:
        raise ProtocolError(
            Kind.TOO_LARGE, f"the decompressed body exceeds the limit of {most_bytes:,} bytes"
        )
    if not engine.eof or engine.unused_data:
        raise ProtocolError(Kind.INVALID, f"the body is not one complete {encoding} stream")
    return data


def compressed(pieces: Sequence[Any], encoding: str) -> bytes:
    """Compress a body; `encoding` is "gzip" or "deflate"."""
    engine = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return b"".join([*(engine.compress(piece) for piece in pieces), engine.flush()])


def chosen_encoding(accepted: str) -> str | None:
    """Return the known encoding that a client prefers; None for no compression.

    Source: RFC 9110, section 12.5.3.
    """
    best, most = None, 0.0
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if (name := name.strip()) in ("gzip", "deflate"):
            found = _WEIGHT.fullmatch(weight.replace(" ", ""))
            quality = float(found[1]) if found else 1.0
            if quality > most:
                best, most = name, quality
    return best
