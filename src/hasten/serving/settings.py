"""Define the settings of a server, which its process receives as JSON."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path

from hasten.errors import InputError
from hasten.serving.models.chained import ChainPlace
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.repository import Registered
from hasten.serving.protocol.origins import ANY, Origins
from hasten.serving.protocol.tokens import read_token
from hasten.serving.state import Limits

_LEAST_TOKEN = 16


@dataclass(frozen=True)
class ModelPlace:
    """A version of a model to serve.

    Attributes:
        name: Name of the model for clients.
        version: Version number, as text.
        path: Folder of the bundle.
        settings: Settings that the model is served with.
        chain: Chain that this is, whose `path` is its first bundle's; None for a bundle.
    """

    name: str
    version: str
    path: Path
    settings: ModelSettings
    chain: ChainPlace | None = None

    def registered(self) -> Registered:
        """Return the version as a registered model that isn't loaded yet."""
        return Registered(self.name, self.version, self.path, self.settings, chain=self.chain)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        models: Versions of models to serve.
        host: Address to listen on.
        http: Port of HTTP; 0 for any free port, None for no HTTP.
        grpc: Port of gRPC; 0 for any free port, None for no gRPC.
        limits: Limits on sizes, counts and times.
        token_file: File with the bearer token that clients must send.
        behind_door: Whether the token is the secret of a door, which sends it for its clients; they need
            none, so web pages are told from others as where there is no token.
        certificate: PEM file of the TLS certificate.
        key: PEM file of the certificate's private key.
        shared_memory: Pattern of the POSIX shared memory that clients may register; "" for none.
        control: Whether clients may load and unload registered models, and change the log settings.
        trace: Whether spans are sent, as OpenTelemetry's own environment variables configure it.
        json_logs: Whether logs are written as one JSON object per line.
        hosts: Names of the server that a user gives, besides its own; see `Origins`.
    """

    models: tuple[ModelPlace, ...]
    host: str = "127.0.0.1"
    http: int | None = 8000
    grpc: int | None = None
    limits: Limits = field(default_factory=Limits)
    token_file: Path | None = None
    behind_door: bool = False
    certificate: Path | None = None
    key: Path | None = None
    shared_memory: str = ""
    control: bool = False
    trace: bool = False
    json_logs: bool = False
    hosts: tuple[str, ...] = ()

    def keeping_no_sequences(self) -> ServerSettings:
        """Return the settings for one of several servers: a sequence's next request may reach another."""
        models = tuple(
            replace(model, settings=replace(model.settings, most_sequences=0))
            for model in self.models
        )
        return replace(self, models=models)

    def own_names(self) -> tuple[str, ...]:
        """Return the names that the server has by itself.

        With TLS it is any name: a browser holds the name of a page against the certificate.
        """
        return (self.host, socket.gethostname()) if self.certificate is None else (ANY,)

    def origins(self) -> Origins:
        """Return the names by which requests of foreign web pages are told."""
        return Origins(self.hosts, self.own_names())

    def token(self) -> bytes | None:
        """Read the token; None if clients need none.

        Raises:
            InputError: the file can't be read, or its content isn't a valid token.
        """
        if self.token_file is None:
            return None
        return read_token(self.token_file, _LEAST_TOKEN).encode()

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context that encrypts connections; None without TLS.

        Raises:
            InputError: only one of certificate and key is given, or one can't be read.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise InputError(
                "TLS needs both a certificate and its key: give tls_cert= and tls_key="
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise InputError(
                f"can't use the certificate {self.certificate} with the key {self.key}: {reason}"
            ) from error
        return context
