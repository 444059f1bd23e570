"""Say what each client may ask for, and check it before anything of a request is received."""

from __future__ import annotations

import enum
import hashlib
import secrets
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hasten.serving.protocol.errors import Kind, ProtocolError

_FOLDING = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Scope(enum.Enum):
    """Kind of requests; each route of HTTP and each method of gRPC is of exactly one."""

    INFER = "infer"
    """Inferences, and labels for them."""
    READ = "read"
    """Readiness, metadata, statistics, metrics, settings and the live page."""
    CONTROL = "control"
    """Scope of requests that change the server for others: models, shared memory and settings."""


@dataclass(frozen=True)
class Client:
    """Client that a server knows, by a token or by a certificate.

    Attributes:
        name: Name by which people know the client.
        scopes: Scopes of the requests that it may send.
        digest: SHA-256 of its token; b"" for a client that is known by its certificate.
        certificate: Name in its certificate, folded; "" for a client that is known by its token.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes = b""
    certificate: str = ""

    @classmethod
    def of_all_scopes(cls, token: bytes) -> Client:
        """Return the client that the only token of a server stands for."""
        return cls("all", frozenset(Scope), digest_of(token))


def digest_of(token: bytes) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token).digest()


def folded(name: str) -> str:
    """Return a name in a certificate with ASCII letters in lower case, as DNS compares names (RFC 4343).

    Other letters stay, since Unicode has some whose lower case is an ASCII letter.
    """
    return name.translate(_FOLDING)


class Rights:
    """Clients that a server knows, and what each may ask for.

    Args:
        clients: Clients with different tokens and certificates.
    """

    def __init__(self, clients: Iterable[Client]) -> None:
        known = list(clients)
        self._several = len(known) > 1
        self._key = secrets.token_bytes(32)
        self._by_token = {self._keyed(one.digest): one for one in known if one.digest}
        self._by_certificate = {one.certificate: one for one in known if one.certificate}

    def check(
        self,
        scope: Scope | None,
        authorization: bytes,
        names: Sequence[str] | None = None,
        header: str = "Authorization",
    ) -> str:
        """Check that a client may send a request.

        A request with a token has the rights of the token, another one those of the client's certificate.

        Args:
            scope: Scope of the request; None for one that gets an error from whoever it comes.
            authorization: Value of the request's Authorization header; b"" without.
            names: Names in the client's certificate; None if it has none.
            header: Spelling of the header.

        Returns:
            Name of the client, by which it can be told from the others; "" where the server knows only one.

        Raises:
            ProtocolError: the client isn't known, or may not send this.
        """
        if authorization or names is None:
            one = self._bearer(authorization)
            if one is None:
                raise ProtocolError(
                    Kind.UNAUTHENTICATED,
                    f"this server requires a token: send {header}: Bearer TOKEN",
                )
            clients = [one]
        else:
            wanted = dict.fromkeys(map(folded, names))
            clients = [self._by_certificate[n] for n in wanted if n in self._by_certificate]
            if not clients:
                raise ProtocolError(
                    Kind.FORBIDDEN,
                    "this server knows no client with this certificate: got "
                    f"{', '.join(wanted)!r:.200}",
                )
        if scope is not None and not any(scope in each.scopes for each in clients):
            raise _lacking(scope, clients)
        return clients[0].name if self._several else ""

    def _bearer(self, authorization: bytes) -> Client | None:
        """Return the client whose token a header holds, after a time that doesn't tell which is like it.

        The scheme's case doesn't matter (RFC 9110, 11.1).
        """
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._by_token.get(self._keyed(digest_of(token.lstrip(b" "))))

    def _keyed(self, digest: bytes) -> bytes:
        """Return a digest of a digest by this object's key: how far it is like others tells nothing of a token."""
        return hashlib.blake2b(digest, key=self._key, digest_size=32).digest()


def _lacking(scope: Scope, clients: Sequence[Client]) -> ProtocolError:
    names = " and ".join(repr(one.name) for one in clients)
    given = {each for one in clients for each in one.scopes}
    has = " and ".join(each.value for each in Scope if each in given)
    return ProtocolError(
        Kind.FORBIDDEN, f"this needs the scope {scope.value}, but {names} has only {has}"
    )
