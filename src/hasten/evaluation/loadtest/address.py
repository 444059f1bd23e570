"""Address of a server, and the credentials to access it."""

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
    """Address of a server.

    Attributes:
        scheme: "http", "https", "grpc" or "grpcs".
        host: Host's name or IP address.
        port: Port that was given, or the scheme's.
        path: Prefix of the path before /v2; empty, or beginning with a slash.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """Return the host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def grpc(self) -> bool:
        """Whether the address is for gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def encrypted(self) -> bool:
        """Whether the connection takes TLS."""
        return self.scheme.endswith("s")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(url: str) -> Address:
    """Parse a URL.

    Raises:
        InputError: it isn't the address of a server.
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
    """Credentials for a server.

    Attributes:
        token: Bearer token; empty where there is none.
        ca: File of certificates to trust; None for the system's.
        insecure: Whether to trust any certificate.
        client: Files of the client's own certificate and of its private key; None where it has none.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    insecure: bool = False
    client: tuple[Path, Path] | None = None

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings of an encrypted connection.

        Raises:
            InputError: the certificates can't be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"can't read certificates from {self.ca}: {error.strerror or error}"
            ) from error
        if self.client is not None:
            try:
                context.load_cert_chain(*self.client, password="")  # never asked for on a terminal
            except (OSError, ssl.SSLError) as error:
                raise InputError(
                    f"can't read the client's certificate {self.client[0]} with the key {self.client[1]}: "
                    f"{error.strerror or error}"
                ) from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True)
class Credentials:
    """Files with the credentials for a server.

    Attributes:
        token_file: File whose content is sent as a bearer token.
        ca: File of certificates to trust, in PEM; by default the system's.
        insecure: Whether to trust any certificate.
        client_cert: File of the client's own certificate, in PEM, for a server that asks for one.
        client_key: File of that certificate's private key, in PEM.
    """

    token_file: Path | None = None
    ca: Path | None = None
    insecure: bool = False
    client_cert: Path | None = None
    client_key: Path | None = None


def access(address: Address, given: Credentials) -> Access:
    """Read the credentials for a server from their files.

    Raises:
        InputError: the token can't be read or is no token, or a TLS setting has no use here.
    """
    ca, insecure = given.ca, given.insecure
    client_cert, client_key = given.client_cert, given.client_key
    used = insecure or any(one is not None for one in (ca, client_cert, client_key))
    if used and not address.encrypted:
        raise InputError(
            f"only encrypted connections use certificates, and {address} isn't encrypted: write "
            f"{address.scheme}s://"
        )
    if insecure and address.grpc:
        raise InputError("gRPC always checks the server's certificate: give it with --ca")
    if insecure and ca is not None:
        raise InputError(
            "--ca says which certificates are trusted, and --insecure trusts all of them: give "
            "only one of the two"
        )
    if (client_cert is None) != (client_key is None):
        raise InputError(
            "a client's certificate needs its private key: give both --client-cert and --client-key"
        )
    client = None if client_cert is None or client_key is None else (client_cert, client_key)
    token = "" if given.token_file is None else read_token(given.token_file)
    return Access(token, ca, insecure, client)
