"""Read the bearer token that a server requires from a file, and compare it with a client's."""

from __future__ import annotations

import hmac
from pathlib import Path

from hasten.errors import InputError

_MOST_BYTES = 16_384


def read_token(file: Path, least: int = 1) -> str:
    """Read a token: one word of ASCII, which must be all that its file holds.

    Args:
        file: File that holds the token.
        least: Fewest characters that the token must have.

    Raises:
        InputError: the file can't be read, or doesn't hold a token; its content is never shown.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"can't read the token in {file}: {error.strerror or error}") from error
    token = data.strip().decode("latin-1")
    whole = len(data) <= _MOST_BYTES and all("!" <= char <= "~" for char in token)
    if not whole or len(token) < least:
        raise InputError(
            f"{file} has no token, which is one word of {least} to {_MOST_BYTES:,} ASCII characters"
        )
    return token


def is_bearer(given: bytes, token: bytes) -> bool:
    """Return whether a client's Authorization header holds the token.

    Args:
        given: Value of the header; the scheme's case doesn't matter (RFC 9110, 11.1).
        token: Token that the server requires.
    """
    scheme, _, credentials = given.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(credentials.lstrip(b" "), token)
