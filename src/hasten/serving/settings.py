"""What a server is told when it starts; handed to its process as JSON."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.repository import Registered
from hasten.serving.protocol.tokens import read_token
from hasten.serving.state import Limits

_LEAST_TOKEN = 16


@dataclass(frozen=True)
class ModelPlace:
    """A version of a model to serve.

    Attributes:
        name: As clients call it.
        version: A number, as text.
        path: The bundle's folder.
        settings: How to serve it.
    """

    name: str
    version: str
    path: Path
    settings: ModelSettings

    def registered(self) -> Registered:
        """Return it, not yet loaded."""
        return Registered(self.name, self.version, self.path, self.settings)


@dataclass(frozen=True)
class ServerSettings:
    """A server.

    Attributes:
        models: What it serves.
        host: Where it listens.
        http: The port of HTTP; 0 for any that is free, None for no HTTP.
        grpc: The same of gRPC.
        limits: How much of anything is taken.
        token_file: A file with the token that clients must bring.
        certificate: PEM file, for TLS.
        key: PEM file of its key.
        shared_memory: Pattern of the POSIX shared memory that clients may register; "" for none.
        control: Whether clients may load and unload registered models, and set what is logged.
        trace: Whether spans are sent, by OpenTelemetry's own environment variables.
        json_logs: One JSON object a line.
    """

    models: tuple[ModelPlace, ...]
    host: str = "127.0.0.1"
    http: int | None = 8000
    grpc: int | None = None
    limits: Limits = field(default_factory=Limits)
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    shared_memory: str = ""
    control: bool = False
    trace: bool = False
    json_logs: bool = False

    def token(self) -> bytes | None:
        """Read the token.

        Raises:
            InputError: the file can't be read, or what is in it is no token.
        """
        if self.token_file is None:
            return None
        return read_token(self.token_file, _LEAST_TOKEN).encode()

    def tls(self) -> ssl.SSLContext | None:
        """Return what encrypts connections.

        Raises:
            InputError: only one of certificate and key, or one can't be read.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise InputError("TLS needs both a certificate and its key: --tls-cert and --tls-key")
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
