"""Define the settings of a server, which its process receives as JSON."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.bundle.signatures import PublicKey, is_key, keys_of
from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.places import ChainPlace
from hasten.serving.protocol.origins import ANY, Origins
from hasten.serving.protocol.rights import Client, Rights
from hasten.serving.protocol.tokens import LEAST_TOKEN, read_clients, read_token
from hasten.serving.state import Limits
from hasten.serving.tls import Tls, read_tls

if TYPE_CHECKING:
    from hasten.serving.models.repository import Registered


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
        # A supervisor reads the settings, too, and starts a server only after its own imports.
        from hasten.serving.models.repository import Registered

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
        token_file: File with a token for all requests, the only one unless there are `tokens`.
        tokens: TOML file with the clients that the server knows, and what each may ask for.
        behind_door: Whether the token is the secret of a door, which sends it for its clients; they need
            none, so web pages are told from others as where there is no token.
        certificate: PEM file of the TLS certificate.
        key: PEM file of the certificate's private key.
        client_ca: PEM file of the certificates of which one must have signed a client's; None to ask
            clients for none.
        revoked: PEM file of lists of revoked certificates of clients; None if there is none.
        shared_memory: Pattern of the POSIX shared memory that clients may register; "" for none.
        control: Whether clients may load and unload registered models, and change the log settings.
        trace: Whether spans are sent, as OpenTelemetry's own environment variables configure it.
        json_logs: Whether logs are written as one JSON object per line.
        hosts: Names of the server that a user gives, besides its own; see `Origins`.
        trusted: Public keys, and paths of files of such, one of which must have signed each bundle; the
            models' settings hold the keys that were read at the start.
    """

    models: tuple[ModelPlace, ...]
    host: str = "127.0.0.1"
    http: int | None = 8000
    grpc: int | None = None
    limits: Limits = field(default_factory=Limits)
    token_file: Path | None = None
    tokens: Path | None = None
    behind_door: bool = False
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    revoked: Path | None = None
    shared_memory: str = ""
    control: bool = False
    trace: bool = False
    json_logs: bool = False
    hosts: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

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

    def clients(self) -> tuple[Client, ...]:
        """Read the clients that the server knows; none to serve all alike.

        Raises:
            InputError: a file can't be read, or states no valid tokens.
        """
        found = () if self.tokens is None else read_clients(self.tokens)
        token = self.token()
        return found if token is None else (*found, Client.of_all_scopes(token))

    def rights(self) -> Rights | None:
        """Return what each client that the server knows may do; None to serve all alike. See `clients`."""
        clients = self.clients()
        return Rights(clients) if clients else None

    def token_files(self) -> list[Path]:
        """Return the files that `rights` reads."""
        return [file for file in (self.token_file, self.tokens) if file is not None]

    def token(self) -> bytes | None:
        """Read the token for all requests; None if there is none.

        Raises:
            InputError: the file can't be read, or its content isn't a valid token.
        """
        if self.token_file is None:
            return None
        return read_token(self.token_file, LEAST_TOKEN).encode()

    def tls_files(self) -> list[Path]:
        """Return the files that `tls` reads."""
        files = (self.certificate, self.key, self.client_ca, self.revoked)
        return [each for each in files if each is not None]

    def tls(self) -> Tls | None:
        """Read what encrypts connections; None if TLS is off.

        Raises:
            InputError: only one of certificate and key is given, or one can't be read.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise InputError(
                "TLS needs both a certificate and its key: give tls_cert= and tls_key="
            )
        return read_tls(self.certificate, self.key, self.client_ca, self.revoked)

    def key_files(self) -> list[Path]:
        """Return the files that `keys` reads."""
        return [Path(each) for each in self.trusted if not is_key(each)]

    def keys(self) -> tuple[PublicKey, ...]:
        """Read the public keys, one of which must have signed each bundle; none to trust any bundle.

        Raises:
            InputError: a file can't be read, or holds no keys.
        """
        return keys_of(self.trusted) if self.trusted else ()
