"""Read the tokens that a server takes, of one client or of many, from a file."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.errors import InputError
from hasten.serving.protocol.rights import Client, Scope, digest_of, folded

LEAST_TOKEN = 16
"""Fewest characters of a token that a server takes."""
_MOST_BYTES = 16_384
_MOST_FILE_BYTES = 1 << 20
_MOST_CLIENTS = 1024
"""Largest number of clients in a file."""
_FORMS = {
    "token": f"one word of {LEAST_TOKEN} to {_MOST_BYTES:,} ASCII characters",
    "sha256": "the SHA-256 of a token, in 64 hexadecimal digits",
    "certificate": "a name in the client's certificate, as text",
}
"""Keys in a file by which a client is known, and what must stand there."""
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


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
    if len(data) > _MOST_BYTES or not _is_token(token, least):
        raise InputError(
            f"{file} has no token, which is one word of {least} to {_MOST_BYTES:,} ASCII characters"
        )
    return token


def _is_token(text: str, least: int) -> bool:
    return least <= len(text) <= _MOST_BYTES and all("!" <= char <= "~" for char in text)


def read_clients(file: Path) -> tuple[Client, ...]:
    """Read clients with their scopes from a TOML file with one table for each.

    Args:
        file: File that only its owner can read.

    Raises:
        InputError: others can read the file, or it doesn't state clients; no token is ever shown.
    """
    try:
        record = tomllib.loads(_private(file).decode())
    except tomllib.TOMLDecodeError as error:
        where = str(error).rpartition("(at ")[2].rstrip(")")
        raise InputError(f"{file} isn't TOML: see its {where}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} isn't TOML: it isn't UTF-8, or is nested too deeply") from error
    if not 1 <= len(record) <= _MOST_CLIENTS:
        raise InputError(
            f"{file} must state 1 to {_MOST_CLIENTS:,} clients, with a table [NAME] for each; "
            f"got {len(record):,}"
        )
    clients = tuple(_client(file, name, record[name]) for name in record)
    for key in ("digest", "certificate"):
        seen: dict[Any, str] = {}
        for one in clients:
            value = getattr(one, key)
            if value and seen.setdefault(value, one.name) != one.name:
                what = "token" if key == "digest" else key
                raise InputError(
                    f"{file}: {seen[value]!r} and {one.name!r} have the same {what}: give each its own"
                )
    return clients


def clients_text(clients: Sequence[Client]) -> str:
    """Return clients as `read_clients` reads them, without their tokens.

    Args:
        clients: Clients that are known by tokens.
    """
    return "".join(
        f"[{_quoted(one.name)}]\nscopes = {json.dumps(sorted(each.value for each in one.scopes))}\n"
        f'sha256 = "{one.digest.hex()}"\n'
        for one in clients
    )


def _quoted(text: str) -> str:
    """Quote a name for TOML, whose strings are JSON's but for one control character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _private(file: Path) -> bytes:
    """Read a file whose owner is this user or root, and which others can't read.

    Root's may be read by a group, as is usual for a secret that is mounted for another user.
    """
    try:
        with file.open("rb") as opened:
            found = os.fstat(opened.fileno())
            data = opened.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"can't read the tokens in {file}: {error.strerror or error}") from error
    if found.st_uid not in (0, os.getuid()):
        raise InputError(f"{file} belongs to another user, who may change its tokens: chown it")
    mode = stat.S_IMODE(found.st_mode)
    if mode & (0o077 if found.st_uid else 0o037):
        raise InputError(f"others may read {file}, whose mode is {mode:03o}: chmod 600 it")
    if len(data) > _MOST_FILE_BYTES:
        raise InputError(f"{file} has over {_MOST_FILE_BYTES:,} bytes, too many for tokens")
    return data


def _client(file: Path, name: str, record: Any) -> Client:
    """Read the table of one client.

    Raises:
        InputError: the table doesn't say what the client may do, and how it is known.
    """
    if not isinstance(record, dict):
        raise InputError(
            f"{file} has a line outside of a table: write [NAME] above each client's lines"
        )
    where = f"{file}: [{name}]"
    if unknown := sorted(record.keys() - {"scopes", *_FORMS}):
        raise InputError(
            f"{where} can't have {unknown[0]!r:.40}: it takes scopes, and one of "
            f"{', '.join(_FORMS)}"
        )
    scopes = _scopes(where, record.get("scopes"))
    given = [key for key in _FORMS if key in record]
    if len(given) != 1:
        raise InputError(
            f"{where} needs one of {', '.join(_FORMS)}; got {' and '.join(given) or 'none'}"
        )
    value = record[given[0]]
    text = value if isinstance(value, str) else ""
    if given == ["token"] and _is_token(text, LEAST_TOKEN):
        return Client(name, scopes, digest_of(text.encode()))
    if given == ["sha256"] and _DIGEST.fullmatch(text):
        return Client(name, scopes, bytes.fromhex(text))
    if given == ["certificate"] and text.strip():
        return Client(name, scopes, certificate=folded(text))
    raise InputError(f"{where}: {given[0]} must be {_FORMS[given[0]]}")


def _scopes(where: str, given: Any) -> frozenset[Scope]:
    known = {scope.value: scope for scope in Scope}
    if isinstance(given, list) and given and all(str(each) in known for each in given):
        return frozenset(known[each] for each in given)
    raise InputError(
        f'{where} needs scopes, a list of any of {", ".join(known)}, such as scopes = ["infer"]'
    )
