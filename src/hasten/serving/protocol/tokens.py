"""The bearer token that a server asks for, out of a file."""

from __future__ import annotations

from pathlib import Path

from hasten.errors import InputError

_MOST_BYTES = 16_384


def read_token(file: Path, least: int = 1) -> str:
    """Read a token: one word of ASCII, with nothing else in its file.

    Args:
        file: Where it is.
        least: Characters that it must have.

    Raises:
        InputError: the file can't be read, or what is in it is no token; what it is isn't said.
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
            f"{file} has no token: one word of {least} to {_MOST_BYTES:,} characters of ASCII"
        )
    return token
