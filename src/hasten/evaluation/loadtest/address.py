"""Where a server is, and what lets us in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hasten.errors import InputError
from hasten.serving.protocol.tokens import read_token

_PORTS = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_FORMS = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        scheme: "http", "https", "grpc" or "grpcs".
        host: Name or number.
        port: Its own, or the scheme's.
        path: What stands before /v2; empty, or begins with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def grpc(self) -> bool:
        """Whether it is one for gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def encrypted(self) -> bool:
        """Whether it takes TLS."""
        return self.scheme.endswith("s")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(url: str) -> Address:
    """Read a URL.

    Raises:
        InputError: it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the server's address is {_FORMS}: got {url!r} ({error})") from error
    clean = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in _PORTS or not parts.hostname or not clean:
        raise InputError(f"the server's address is {_FORMS}: got {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            f"the server's address is {_FORMS}, without user, query or fragment; a token is read "
            "from a file"
        )
    address = Address(
        parts.scheme,
        parts.hostname,
        _PORTS[parts.scheme] if port is None else port,
        parts.path.rstrip("/"),
    )
    if address.grpc and address.path:
        raise InputError(f"a gRPC address has no path: got {address.path!r}")
    return address


@dataclass(frozen=True)
class Access:
    """What lets us in.

    Attributes:
        token: A bearer token; empty without one.
        ca: A file of certificates that are trusted; None for the system's.
        insecure: Trust any certificate.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    insecure: bool = False

    def tls(self) -> ssl.SSLContext:
        """Return the settings of an encrypted connection.

        Raises:
            InputError: the certificates can't be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"can't read certificates from {self.ca}: {error.strerror or error}"
            ) from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def access(
    address: Address, token_file: Path | None = None, ca: Path | None = None, insecure: bool = False
) -> Access:
    """Return what lets us in at a server.

    Raises:
        InputError: the token can't be read or is none, or a setting of TLS is of no use here.
    """
    if (ca is not None or insecure) and not address.encrypted:
        raise InputError(
            f"certificates are of an encrypted connection, and {address} is none: "
            f"write {address.scheme}s://"
        )
    if insecure and address.grpc:
        raise InputError("gRPC checks the server's certificate always: give it with --ca")
    if insecure and ca is not None:
        raise InputError(
            "--ca says which certificates are trusted, --insecure that all are: give one"
        )
    token = "" if token_file is None else read_token(token_file)
    return Access(token, ca, insecure)
