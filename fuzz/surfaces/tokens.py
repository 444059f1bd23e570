"""Files with clients and their tokens, and Authorization headers: nobody gets rights that the file doesn't state."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import tomllib

from fuzz.mutation import changed_bytes, grown
from fuzz.outcomes import refused
from fuzz.surface import Fault, Surface

from hasten.errors import HastenError
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.rights import Client, Rights, Scope
from hasten.serving.protocol.tokens import LEAST_TOKEN, read_clients, read_token

_TOKENS = (b"the-token-to-infer-with", b"the-token-to-read-with")
_ALONE = b"\1"
"""Begin of an input whose file is a token alone, which has all rights."""
_END = b"\0"
"""End of an input's file, after which the header comes."""
_CLIENTS = b"""[asker]
scopes = ["infer"]
token = "%b"

["the reader"]
scopes = ["read", "control"]
sha256 = "%b"

[door]
scopes = ["read"]
certificate = "door.example"
""" % (_TOKENS[0], hashlib.sha256(_TOKENS[1]).hexdigest().encode())
_VALUES = (
    *(b'""', b"[]", b"{}", b"1", b"1e400", b"nan", b"2026-01-01", b"true", b'["infer"]', b'"read"'),
    *(b'"\\u001b[2J"', b'"\\U0000dc80"', b'"""a\nb"""', b"'x'", b'["infer", 1]', b"[[]]", b'["x"]'),
    *(b'"the-token-to-read-with"', b'"' + b"a" * 20_000 + b'"', b"0x" + b"f" * 5000),
)
_LINES = (
    *(b"[a]", b"[asker]", b"[[asker]]", b"[asker.b]", b'["\\u001b[2J"]', b'["\\n"]', b'[""]'),
    *(b"token = 1", b"a.b.c = 1", b'scopes = ["control"]', b'"t\\u006fken" = "x"', b"\xff", b"\r"),
)


class Tokens(Surface):
    """Files of clients or of one token, with the header of a request that is checked for each scope."""

    name = "tokens"

    def seeds(self) -> list[bytes]:
        headers = [b"Bearer " + token for token in _TOKENS]
        files = [_CLIENTS + _END + header for header in headers]
        return [*files, _ALONE + _TOKENS[0] + b"\n" + _END + headers[0]]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        file, _, header = seed.rpartition(_END)
        kind = rng.random()
        if kind < 0.2:
            header = rng.choice((changed_bytes, grown))(header, rng)
        elif kind < 0.4:
            header = rng.choice((b"Basic ", b"bearer", b"BEARER  ", b"Bearer\t", b"")) + rng.choice(
                (
                    *_TOKENS,
                    b"",
                    b" ",
                    b"\xe9",
                    b"door.example",
                    _TOKENS[0] + b", x",
                    _TOKENS[1][:-1],
                )
            )
        if kind > 0.15:
            file = _changed(file, rng)
        return file + _END + header

    def check(self, data: bytes) -> str:
        file, _, header = data.rpartition(_END)
        alone = file.startswith(_ALONE)
        path = self.folder / "tokens"
        path.write_bytes(file[1:] if alone else file)
        path.chmod(0o600)
        try:
            if alone:
                clients: tuple[Client, ...] = (
                    Client.of_all_scopes(read_token(path, LEAST_TOKEN).encode()),
                )
            else:
                clients = read_clients(path)
        except HastenError as error:
            return refused(error)
        rights, allowed = Rights(clients), set()
        for scope in Scope:
            try:
                rights.check(scope, header)
                allowed.add(scope.value)
            except ProtocolError as error:
                refused(error)
        with contextlib.suppress(ProtocolError):
            rights.check(Scope.READ, b"", [header.decode("latin-1")])
        if allowed != _stated(path.read_bytes(), header, alone):
            raise Fault("the header got other rights than the file states")
        return "allowed" if allowed else "read"


def _changed(file: bytes, rng: random.Random) -> bytes:
    """Change a line, a value after an equals sign, or bytes."""
    match rng.randrange(5):
        case 0:
            return rng.choice((changed_bytes, grown))(file, rng)
        case 1:
            lines = file.split(b"\n")
            lines.insert(rng.randrange(len(lines)), rng.choice((*_LINES, *lines)))
            return b"\n".join(lines)
        case 2:
            lines = file.split(b"\n")
            del lines[rng.randrange(len(lines))]
            return b"\n".join(lines)
    places = list(re.finditer(rb"= (.*)", file))
    if not places:
        return changed_bytes(file, rng)
    place = rng.choice(places)
    return file[: place.start(1)] + rng.choice(_VALUES) + file[place.end(1) :]


def _stated(file: bytes, header: bytes, alone: bool) -> set[str]:
    """Return the scopes that a file states for whoever sends a header."""
    found = re.fullmatch(rb"bearer +(.*)", header, re.IGNORECASE | re.DOTALL)
    if found is None:
        return set()
    if alone:
        return {scope.value for scope in Scope} if found[1] == file.strip() else set()
    digest = hashlib.sha256(found[1]).hexdigest()
    for one in tomllib.loads(file.decode()).values():
        token = one.get("token")
        own = one.get("sha256") if token is None else hashlib.sha256(token.encode()).hexdigest()
        if own is not None and own.lower() == digest:
            return set(one["scopes"])
    return set()
