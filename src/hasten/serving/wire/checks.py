"""Check parts of a request that HTTP and gRPC have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hasten.core.words import short
from hasten.serving.protocol.datatypes import item_size
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Region, SequenceStep, WantedOutput

MOST_RANK = 32
MOST_SAID_BYTES = 1 << 20
"""Largest number of bytes of a request besides its tensors' data: each may become an object, with far more memory."""
_UNPACKED_JSON_BYTES, _JSON_RATIO = 1 << 20, 16
"""Size to which any body's JSON may be decompressed, and number of bytes to which each byte of a larger one may be."""
MOST_ID = 128
"""Longest text that names a sequence."""
_MOST_ON_AN_AXIS = 2**31 - 1


def tensor_size(
    name: str, datatype: str, shape: tuple[int, ...], left: int, most_bytes: int
) -> int:
    """Check an input's shape before memory is allocated for it; return the tensor's size in bytes.

    Args:
        name: Name of the input.
        datatype: Name of the type in the protocol.
        shape: Shape as the request states it.
        left: Bytes that the request's further tensors may take.
        most_bytes: Bytes that all of the request's tensors may take together.

    Raises:
        InputError: there is no such type.
        ProtocolError: the shape is impossible, or the tensor is too large.
    """
    if len(shape) > MOST_RANK:
        raise ProtocolError(
            Kind.INVALID,
            f"input {name!r:.100}: a tensor has at most {MOST_RANK} axes; got {len(shape):,}",
        )
    count = most = 1
    for on_axis in shape:
        if not 0 <= on_axis <= _MOST_ON_AN_AXIS:
            raise ProtocolError(
                Kind.INVALID, f"input {name!r:.100}: {shape!s:.100} is not a possible tensor shape"
            )
        count *= on_axis
        most *= on_axis or 1
    each = item_size(datatype) or 4
    size = count * each
    # An empty tensor could have a shape that numpy's arrays can't have, so zeros count as ones too.
    if most * each > left:
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"input {name!r:.100} would take {size:,} bytes; a request's tensors take at most "
            f"{most_bytes:,}",
        )
    return size


def check_said(size_bytes: int) -> None:
    """Check the size of all that a request says besides its tensors' data.

    Raises:
        ProtocolError: it is too large.
    """
    if size_bytes > MOST_SAID_BYTES:
        raise ProtocolError(
            Kind.TOO_LARGE,
            "a request's names, shapes and parameters take more than the limit of "
            f"{MOST_SAID_BYTES:,} bytes: leave some out",
        )


def long_json(size_bytes: int, most_bytes: int) -> ProtocolError:
    """Return the error for an inference's JSON that would be parsed for too long, while nobody is answered.

    It may have a quarter of the largest body.
    """
    return ProtocolError(
        Kind.TOO_LARGE,
        f"the JSON of a request takes at most {most_bytes:,} bytes; got {size_bytes:,}: send tensors as "
        "bytes after it (binary_data_size) or over gRPC, or several requests, or start the server with "
        f"--max-body {-(-size_bytes >> 18)}MiB",
    )


def check_unpacked_json(size_bytes: int, sent_bytes: int) -> None:
    """Check the size of an inference's JSON that came compressed, from which few bytes may make much work.

    Args:
        size_bytes: Size of the JSON.
        sent_bytes: Size of the body as it was sent.

    Raises:
        ProtocolError: it is too large.
    """
    most = max(_UNPACKED_JSON_BYTES, _JSON_RATIO * sent_bytes)
    if size_bytes > most:
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"the JSON of a compressed body of {sent_bytes:,} bytes takes at most {most:,}; got "
            f"{size_bytes:,}: send it without Content-Encoding",
        )


def wanted_once(outputs: Iterable[WantedOutput]) -> tuple[WantedOutput, ...]:
    """Return the outputs that a request asks for, each of which is sent once.

    Raises:
        ProtocolError: an output is asked for twice.
    """
    found: dict[str, WantedOutput] = {}
    for each in outputs:
        if each.name in found:
            raise ProtocolError(
                Kind.INVALID, f"output {each.name!r:.100} is asked for twice: ask for it once"
            )
        found[each.name] = each
    return tuple(found.values())


def region_of(name: str, parameters: Mapping[str, Any]) -> Region:
    """Read the parameters that state where in shared memory a tensor lies.

    Raises:
        ProtocolError: a parameter is missing, or has another type.
    """
    region = parameters["shared_memory_region"]
    offset = parameters.get("shared_memory_offset", 0)
    size = parameters.get("shared_memory_byte_size")
    if type(region) is not str or type(offset) is not int or type(size) is not int:
        raise ProtocolError(
            Kind.INVALID,
            f"{name!r:.100}: shared memory is given by shared_memory_region (text), "
            "shared_memory_byte_size and shared_memory_offset (whole numbers)",
        )
    return Region(region, offset, size)


def whole_number(parameters: Mapping[str, Any], name: str) -> int:
    """Read a parameter that is a whole number of at least 0; return 0 if it isn't given.

    Raises:
        ProtocolError: the parameter is something else.
    """
    value = parameters.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ProtocolError(
            Kind.INVALID,
            f"the parameter {name!r} must be a whole number of at least 0; got {short(value)}",
        )
    return value


def sequence_of(parameters: Mapping[str, Any]) -> SequenceStep | None:
    """Read the parameters that say which sequence a request belongs to; None if it is in none.

    Source: Triton's sequence extension. An id of 0 or "" means no sequence.

    Raises:
        ProtocolError: a parameter has another type, or says where in a sequence but not in which.
    """
    id_ = parameters.get("sequence_id", 0)
    whole = type(id_) is int and 0 <= id_ < 2**64
    if not whole and not (type(id_) is str and len(id_) <= MOST_ID):
        raise ProtocolError(
            Kind.INVALID,
            "the parameter 'sequence_id' must be a whole number below 2^64, or a text of at most "
            f"{MOST_ID} characters; got {short(id_)}",
        )
    places = []
    for name in ("sequence_start", "sequence_end"):
        place = parameters.get(name, False)
        if type(place) is not bool:
            raise ProtocolError(
                Kind.INVALID, f"the parameter {name!r} must be true or false; got {short(place)}"
            )
        places.append(place)
    if id_ in (0, ""):
        if any(places):
            raise ProtocolError(
                Kind.INVALID,
                "sequence_start and sequence_end need a sequence_id other than 0 and the empty text",
            )
        return None
    return SequenceStep(id_, *places)
