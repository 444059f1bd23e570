"""Decode the JSON of an inference, without making objects for more parts than a request may have."""

from __future__ import annotations

from typing import Any

import msgspec

from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.wire.checks import check_said

_PART_BYTES = 256
"""Size that each input and output counts with, beside its texts: so much memory it takes."""


class _Said:
    """Size of the request that is being decoded, without its tensors' data; for use by one thread only."""

    size_bytes = 0

    @classmethod
    def add(cls, *parts: Any) -> None:
        """Count a part of the request.

        Raises:
            ProtocolError: the request is too large.
        """
        cls.size_bytes += _PART_BYTES + sum(map(len, parts))
        check_said(cls.size_bytes)


class Tensor(msgspec.Struct):
    """An input, whose shape, data and parameters aren't decoded yet."""

    name: str
    datatype: str = ""
    shape: msgspec.Raw = msgspec.Raw(b"[]")
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: msgspec.Raw = msgspec.Raw(b"")

    def __post_init__(self) -> None:
        _Said.add(self.name, self.datatype, self.shape, self.parameters)


class Wanted(msgspec.Struct):
    """An output that is asked for, whose parameters aren't decoded yet."""

    name: str
    parameters: msgspec.Raw = msgspec.Raw(b"")

    def __post_init__(self) -> None:
        _Said.add(self.name, self.parameters)


class Body(msgspec.Struct):
    """A whole request."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[Wanted] | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"")

    def __post_init__(self) -> None:
        _Said.add(self.id or "", self.parameters)


_PLAIN = "; a picture, a sound or a text needs its own Content-Type, such as image/jpeg"
"""Remedy where the body is no object, as where curl is told no content type."""
_body = msgspec.json.Decoder(Body)
_shape = msgspec.json.Decoder(list[int])
_parameters = msgspec.json.Decoder(dict[str, bool | int | float | str | None] | None)
"""The protocol has no other parameters; a list or an object is refused before any of it is made."""


def decoded_body(data: Any) -> Body:
    """Decode the JSON of a request.

    Raises:
        ProtocolError: it isn't JSON, doesn't follow the protocol, or is too large without its data.
    """
    _Said.size_bytes = 0
    body: Body = _decoded(_body, data)
    return body


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Decode the shape of an input.

    Raises:
        ProtocolError: it is no list of whole numbers.
    """
    return tuple(_decoded(_shape, tensor.shape))


def parameters_of(raw: msgspec.Raw) -> dict[str, Any]:
    """Decode parameters; none are given where the text is empty, or null.

    Raises:
        ProtocolError: they aren't an object, or one of them is a list or an object.
    """
    if not raw:
        return {}
    try:
        return _parameters.decode(raw) or {}
    except msgspec.ValidationError as error:
        raise ProtocolError(
            Kind.INVALID,
            "the request doesn't follow the protocol: parameters are an object, and each is a number, a "
            f"text, true or false: {error}",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(Kind.INVALID, f"the request is not JSON: {error}") from error


def _decoded(decoder: msgspec.json.Decoder[Any], data: Any) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            Kind.INVALID, f"the request doesn't follow the protocol: {error}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        first = bytes(data[:1]).strip()
        remedy = _PLAIN if first not in (b"", b"{") else ""
        raise ProtocolError(Kind.INVALID, f"the request is not JSON: {error}{remedy}") from error
