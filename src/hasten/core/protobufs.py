"""Error that protobuf raises for bytes that are no message."""

from __future__ import annotations


def parse_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that protobuf raises for bytes that it can't parse.

    Its compiled code raises `DecodeError` for all of them. Its Python code, which runs where the
    package has no compiled code or where PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION asks for it, raises
    `UnicodeDecodeError` for text that isn't UTF-8.

    Raises:
        ImportError: protobuf isn't installed.
    """
    from google.protobuf.message import DecodeError

    return DecodeError, UnicodeDecodeError
