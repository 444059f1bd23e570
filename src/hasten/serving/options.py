"""Define the options of a server as values, each of which checks its own fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasten.bundle.signatures import Trusted
from hasten.errors import InputError
from hasten.serving.monitoring.webhook import check_address
from hasten.serving.protocol.origins import NAME

_MOST_ROWS = 64
_HOUR_S, _DAY_S = 3600, 86_400


@dataclass(frozen=True)
class ModelOptions:
    """Options for the opening of a server's models and for the batching of their requests.

    Attributes:
        max_batch: Largest number of rows in a batch, and in a request; 1 turns batching off.
        any_batch: Whether batches are formed in sizes that a certificate doesn't cover, too.
        max_length: Largest size of a request's open dimensions other than the batch, such as the tokens of a
            text, or of a batch that can't be divided. None stands for 1,024, or twice the largest size in the bundle's
            data if that is more; the size is less where it would take too much memory.
        sessions: Number of batches that run in parallel; None for what the batch curve suggests.
        deadline_s: Deadline of requests that state none, in seconds; None for no deadline.
        max_wait_s: Longest wait in the queue, in seconds; a request that would wait longer is refused.
        cache_bytes: Size of the cache of answers and prepared samples, for all models together, in bytes; 0 for
            no cache.
        compiled: Folder that keeps compiled models for the next start, or "off"; by default the one
            that the environment variable HASTEN_CACHE names, else `~/.cache/hasten`.
        standby: Whether to keep the exact model open as a fallback.
        custom_ops: Path of a library with the user's own operators, or several.
        trusted: Public key, its file, or several, one of which must have signed each bundle, whenever
            it is opened; None to accept unsigned bundles. Files of keys are read again when they change.

    Raises:
        InputError: a field, named in the message, is out of its range.
    """

    max_batch: int = 32
    any_batch: bool = False
    max_length: int | None = None
    sessions: int | None = None
    deadline_s: float | None = None
    max_wait_s: float = 1.0
    cache_bytes: int = 0
    compiled: str | Path = ""
    standby: bool = True
    custom_ops: str | Path | Sequence[str | Path] = ()
    trusted: Trusted = None

    def __post_init__(self) -> None:
        check_range("max_batch", self.max_batch, 1, _MOST_ROWS)
        check_range("max_length", self.max_length, 1, (1 << 31) - 1)
        check_range("sessions", self.sessions, 1, 1024)
        check_range("deadline_s", self.deadline_s, 0, _HOUR_S)
        check_range("max_wait_s", self.max_wait_s, 0, _HOUR_S)
        check_range("cache_bytes", self.cache_bytes, 0, 1 << 50)


@dataclass(frozen=True)
class SequenceLimits:
    """Limits on the states that a server keeps for sequences.

    Attributes:
        max_sequences: Largest number of sequences of one model whose states are kept at once; 0 to keep none.
        sequence_bytes: Largest size of the states of all models' sequences together, with the copies of the steps that
            run, in bytes. A step takes three copies of its sequence's state.
        sequence_idle_s: Time without a request after which a sequence's states are dropped, in seconds.

    Raises:
        InputError: a field, named in the message, is out of its range.
    """

    max_sequences: int = 1024
    sequence_bytes: int = 60 << 20
    sequence_idle_s: float = 60.0

    def __post_init__(self) -> None:
        check_range("max_sequences", self.max_sequences, 0, 1 << 30)
        check_range("sequence_bytes", self.sequence_bytes, 0, 1 << 50)
        check_range("sequence_idle_s", self.sequence_idle_s, 0.001, _DAY_S)


@dataclass(frozen=True)
class Monitoring:
    """Options for the watch over the certificate, and for the effect of an alarm.

    Attributes:
        shadow: Share of answered samples that the exact model answers too; 0 for no monitor.
        shadow_limit: Share of changed answers from which the monitor raises an alarm; 0 for the one
            that follows from the certificate.
        on_alarm: Effect of an alarm: "tell" reports it in the log, on the page and in the metrics;
            "exact" also lets the exact model answer, until a person clears the alarm.
        webhook: Address that gets alarms, as a POST of JSON; "" for none.
        monitor_state: Folder that keeps the monitor's evidence, or "off"; by default
            `hasten/monitor` in the user's folder of state.

    Raises:
        InputError: a field, named in the message, is out of its range, or needs `shadow`.
    """

    shadow: float = 0.0
    shadow_limit: float = 0.0
    on_alarm: Literal["tell", "exact"] = "tell"
    webhook: str = ""
    monitor_state: str | Path = ""

    def __post_init__(self) -> None:
        check_range("shadow", self.shadow, 0, 1)
        check_range("shadow_limit", self.shadow_limit, 0, 0.999)
        if self.on_alarm not in ("tell", "exact"):
            raise InputError(f"on_alarm= is 'tell' or 'exact'; got {self.on_alarm!r:.40}")
        asked = {
            "shadow_limit": self.shadow_limit,
            "on_alarm": self.on_alarm != "tell",
            "webhook": self.webhook,
        }
        if not self.shadow and (idle := [name for name, given in asked.items() if given]):
            raise InputError(f"{idle[0]}= needs answers to watch: give shadow=, such as 0.01")
        if self.webhook:
            check_address(self.webhook)


@dataclass(frozen=True)
class Access:
    """Rights of clients: their names, and what each may ask for.

    Attributes:
        token_file: Path of a file with the bearer token that clients must send.
        tokens: Path of a TOML file with several clients, and the scopes of each: "infer", "read",
            "control".
        no_token: Whether to serve other machines without asking for a token.
        tls_cert: Path of the PEM file of the TLS certificate; needs `tls_key`.
        tls_key: Path of the PEM file of the certificate's private key.
        tls_client_ca: Path of a PEM file of certificates, one of which must have signed a client's.
            Clients then need a certificate, and `tokens` says what the names in it may do.
        tls_crl: Path of a PEM file of lists of revoked certificates, one from each certificate in
            `tls_client_ca`; clients with a revoked certificate get no connection. Not with gRPC.
        allow_host: Names of the server besides localhost, IP addresses, the server's `host` and the
            machine's name. Without a token or TLS, requests to other names are refused.
            "*.example.com" stands for all names below example.com, "*" for any name.
        allow_control: Whether clients may load and unload registered models, and change the log
            settings.
        shared_memory: Regular expression of the POSIX shared memory that clients may register; "" for
            none.

    Raises:
        InputError: a field, named in the message, can't be used, or two fields contradict each other.
    """

    token_file: str | Path | None = None
    tokens: str | Path | None = None
    no_token: bool = False
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None
    tls_client_ca: str | Path | None = None
    tls_crl: str | Path | None = None
    allow_host: str | Sequence[str] = ()
    allow_control: bool = False
    shared_memory: str = ""

    def __post_init__(self) -> None:
        given = [f"{name}=" for name in ("token_file", "tokens") if getattr(self, name) is not None]
        if self.no_token:
            given.append("no_token=True")
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} can't be combined: leave one of them out")
        for name in host_names(self.allow_host):
            if not NAME.fullmatch(name):
                raise InputError(
                    "allow_host= takes a host's name, such as example.com or *.example.com, or *; "
                    f"got {name!r:.100}"
                )
        try:
            re.compile(self.shared_memory)
        except re.error as error:
            raise InputError(f"shared_memory= is not a regular expression: {error}") from error
        self._check_certificates()

    def _check_certificates(self) -> None:
        if self.tls_client_ca is not None and None in (self.tls_cert, self.tls_key, self.tokens):
            raise InputError(
                "tls_client_ca= needs tls_cert= and tls_key=, and tokens=, which says what the names in "
                "clients' certificates may do"
            )
        if self.tls_crl is not None and self.tls_client_ca is None:
            raise InputError("tls_crl= is about clients' certificates: give tls_client_ca=, too")


@dataclass(frozen=True)
class ServerLimits:
    """Limits on what a server takes from its clients, and on how long it waits.

    Attributes:
        max_body_bytes: Largest body of one request, in bytes, and of an answer over gRPC, which may always have
            64 MiB; below 2 GiB with gRPC.
        max_connections: Largest number of connections open at once.
        sample_bytes: Memory that all pictures and sounds may take together, beyond what their own bytes pay for,
            in bytes.
        fair: Whether clients are told apart by their addresses or names, so that one doesn't take all
            places while others wait.
        drain_s: Longest wait at shutdown for running requests to finish, in seconds.
        max_stall_s: Longest time without a response from the serving process, for example because an
            engine hangs, before it is replaced, in seconds; 0 for no limit.

    Raises:
        InputError: a field, named in the message, is out of its range.
    """

    max_body_bytes: int = 64 << 20
    max_connections: int = 1024
    sample_bytes: int = 40 << 20
    fair: bool = True
    drain_s: float = 30.0
    max_stall_s: float = 30.0

    def __post_init__(self) -> None:
        check_range("max_body_bytes", self.max_body_bytes, 1, 1 << 40)
        check_range("max_connections", self.max_connections, 1, 1 << 20)
        check_range("sample_bytes", self.sample_bytes, 0, 1 << 50)
        check_range("drain_s", self.drain_s, 0, _HOUR_S)
        check_range("max_stall_s", self.max_stall_s, 0, _DAY_S)


def check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Check that an option is within its range; None always is.

    Raises:
        InputError: it is outside.
    """
    if value is not None and not least <= value <= most:
        raise InputError(f"{name}= must be from {least} to {most}; got {value}")


def host_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in `Access.allow_host`, which may be a single one."""
    return (given,) if isinstance(given, str) else tuple(given)
