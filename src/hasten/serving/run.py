"""Check the options for serving bundles, and run the server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from hasten.bundle.signatures import Trusted, keys_of, sources_of
from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.places import chain_places, places
from hasten.serving.monitoring.webhook import check_address
from hasten.serving.protocol.origins import NAME, is_loopback
from hasten.serving.settings import ModelPlace, ServerSettings
from hasten.serving.state import Limits

_MOST_ROWS = 64


def settings_of(
    bundles: Sequence[str | os.PathLike[str]],
    *,
    http: int | None = 8000,
    grpc: int | None = None,
    host: str = "127.0.0.1",
    max_batch: int = 32,
    any_batch: bool = False,
    sessions: int | None = None,
    deadline_s: float | None = None,
    max_wait_s: float = 1.0,
    cache_bytes: int = 0,
    max_sequences: int = ModelSettings.most_sequences,
    sequence_bytes: int = ModelSettings.sequence_bytes,
    sequence_idle_s: float = ModelSettings.sequence_idle_ns / 1e9,
    compiled: str | os.PathLike[str] = "",
    shadow: float = 0.0,
    shadow_limit: float = 0.0,
    on_alarm: Literal["tell", "exact"] = "tell",
    webhook: str = "",
    monitor_state: str | os.PathLike[str] = "",
    standby: bool = True,
    custom_ops: Sequence[Path] = (),
    shared_memory: str = "",
    allow_control: bool = False,
    allow_host: Sequence[str] = (),
    no_token: bool = False,
    token_file: Path | None = None,
    tokens: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_client_ca: Path | None = None,
    tls_crl: Path | None = None,
    max_body_bytes: int = Limits.body_bytes,
    max_connections: int = Limits.connections,
    sample_bytes: int = Limits.sample_bytes,
    fair: bool = True,
    drain_s: float = 30.0,
    max_stall_s: float = 30.0,
    trace: bool = False,
    json_logs: bool = False,
    trusted: Trusted = None,
) -> ServerSettings:
    """Check the options for serving, and return them as the server's settings.

    Args:
        bundles: Bundles to serve: folders, NAME=FOLDER or NAME:VERSION=FOLDER; or chains, as
            NAME=det.hasten+crop+ocr.hasten or NAME=chain.yaml.
        http: Port of HTTP; 0 for any free port, None for no HTTP.
        grpc: Port of gRPC; 0 for any free port, None for no gRPC.
        host: Address to listen on.
        max_batch: Most rows in a batch, and in a request.
        any_batch: Whether batches are formed in sizes that a certificate doesn't cover, too.
        sessions: Number of batches that run in parallel; None for what the batch curve suggests.
        deadline_s: Deadline of requests that state none, in seconds; None for no deadline.
        max_wait_s: Longest wait in the queue, in seconds; a request that would wait longer is
            refused.
        cache_bytes: Size of the answer cache, in bytes; 0 for no cache.
        max_sequences: Most sequences of one model whose states are kept; 0 to keep none.
        sequence_bytes: Largest size of all states of one model's sequences, in bytes.
        sequence_idle_s: Time without a request after which a sequence's states go, in seconds.
        compiled: Folder that keeps compiled models for the next start, or "off"; by default the one
            that the environment variable HASTEN_CACHE names, else `~/.cache/hasten`.
        shadow: Share of answered samples that the exact model answers too, so that the certificate is
            watched.
        shadow_limit: Share of changed answers from which the monitor raises an alarm; 0 for the one
            that follows from the certificate.
        on_alarm: What an alarm does: "tell" says it in the log, on the page and in the metrics;
            "exact" lets the exact model take over, too, until a person clears it.
        webhook: Address that is told of alarms by a POST of JSON; "" for none.
        monitor_state: Folder that keeps the monitor's evidence, or "off"; by default
            `hasten/monitor` in the user's folder of state.
        standby: Whether to keep the exact model open as a fallback.
        custom_ops: Libraries with the user's own operators.
        shared_memory: Pattern of the POSIX shared memory that clients may register; "" for none.
        allow_control: Whether clients may load and unload registered models, and change the log
            settings.
        allow_host: Names of the server besides localhost, its addresses, `host` and the machine's: other
            ones are refused without a token or TLS. "*.example.com" stands for all below example.com,
            "*" for any.
        no_token: Whether to serve other machines without asking for a token.
        token_file: File with the bearer token that clients must send.
        tokens: TOML file with several tokens, and the scopes of each: "infer", "read", "control".
        tls_cert: PEM file of the TLS certificate.
        tls_key: PEM file of the certificate's private key.
        tls_client_ca: PEM file of the certificates of which one must have signed a client's; clients need
            one then, and `tokens` says what the names in it may do.
        tls_crl: PEM file of lists of revoked certificates, one from each certificate in `tls_client_ca`;
            clients with a revoked certificate get no connection. Not with `grpc`.
        max_body_bytes: Largest body of one request, in bytes.
        max_connections: Most connections open at once.
        sample_bytes: Memory that all pictures and sounds may take together, in bytes, beyond what their own
            bytes pay for.
        fair: Whether clients are told apart by their addresses, so that one doesn't starve the rest.
        drain_s: Longest wait at shutdown for running requests to finish, in seconds.
        max_stall_s: Longest time in seconds for which the serving process may hear nobody, as where an engine
            hangs, before it is replaced; 0 for any.
        trace: Whether to send OpenTelemetry spans.
        json_logs: Whether to write logs as one JSON object per line.
        trusted: Public key, its file, or several, one of which must have signed each bundle, whenever it is
            opened; None where unsigned ones will do. Files of keys are read again when they change.

    Raises:
        InputError: an option is out of range, or options contradict each other.
    """
    for what, value, least, most in (
        ("max_batch", max_batch, 1, _MOST_ROWS),
        ("sessions", 1 if sessions is None else sessions, 1, 1024),
        ("shadow", shadow, 0, 1),
        ("shadow_limit", shadow_limit, 0, 0.999),
        ("deadline_s", deadline_s or 0, 0, 3600),
        ("max_wait_s", max_wait_s, 0, 3600),
        ("drain_s", drain_s, 0, 3600),
        ("max_stall_s", max_stall_s, 0, 86_400),
        ("cache_bytes", cache_bytes, 0, 1 << 50),
        ("max_sequences", max_sequences, 0, 1 << 30),
        ("sequence_bytes", sequence_bytes, 0, 1 << 50),
        ("sequence_idle_s", sequence_idle_s, 0.001, 86_400),
        ("max_body_bytes", max_body_bytes, 1, 1 << 40),
        ("max_connections", max_connections, 1, 1 << 20),
        ("sample_bytes", sample_bytes, 0, 1 << 50),
        ("http", 0 if http is None else http, 0, 65535),
        ("grpc", 0 if grpc is None else grpc, 0, 65535),
    ):
        if not least <= value <= most:
            raise InputError(f"{what}= must be from {least} to {most}; got {value}")
    try:
        re.compile(shared_memory)
    except re.error as error:
        raise InputError(f"shared_memory= is not a regular expression: {error}") from error
    if http and http == grpc:
        raise InputError(f"http= and grpc= are both {http}: give each its own port")
    if grpc is not None and max_body_bytes >= 1 << 31:
        raise InputError(
            "a gRPC message must be smaller than 2 GiB: give a smaller max_body_bytes=, or no grpc="
        )
    if on_alarm not in ("tell", "exact"):
        raise InputError(f"on_alarm= is 'tell' or 'exact'; got {on_alarm!r:.40}")
    _check_openness(host, allow_host, {"token_file": token_file, "tokens": tokens}, no_token)
    if tls_client_ca is not None and None in (tls_cert, tls_key, tokens):
        raise InputError(
            "tls_client_ca= needs tls_cert= and tls_key=, and tokens=, which says what the names in "
            "clients' certificates may do"
        )
    _check_revoking(tls_crl, tls_client_ca, grpc)
    asked = {"shadow_limit": shadow_limit, "on_alarm": on_alarm != "tell", "webhook": webhook}
    if not shadow and (idle := [name for name, given in asked.items() if given]):
        raise InputError(f"{idle[0]}= needs answers to watch: give shadow=, such as 0.01")
    if webhook:
        check_address(webhook)
    keys = keys_of(trusted)
    model = ModelSettings(
        deadline_ns=round(1e9 * (deadline_s or 0)),
        most_wait_ns=round(1e9 * max_wait_s),
        most_rows=max_batch,
        any_batch=any_batch,
        sessions=sessions,
        cache_bytes=cache_bytes,
        most_sequences=max_sequences,
        sequence_bytes=sequence_bytes,
        sequence_idle_ns=round(1e9 * sequence_idle_s),
        compiled=_folder(compiled),
        shadow=shadow,
        shadow_limit=shadow_limit,
        on_alarm=on_alarm,
        webhook=webhook,
        monitor_state=_folder(monitor_state),
        standby=standby,
        custom_ops=tuple(path.absolute() for path in custom_ops),
        trusted=keys,
    )
    plain, chains = chain_places([os.fspath(bundle) for bundle in bundles], keys)
    several = places(plain)
    for name, version, _, _ in chains:
        if any(each[:2] == (name, version) for each in several):
            raise InputError(f"version {version} of {name!r} is given twice")
    models = (
        *(ModelPlace(name, version, path.absolute(), model) for name, version, path in several),
        *(
            ModelPlace(name, version, path.absolute(), model, chain)
            for name, version, path, chain in chains
        ),
    )
    if not models:
        raise InputError("nothing to serve: give a bundle")
    limits = Limits(
        body_bytes=max_body_bytes,
        bodies_bytes=max(Limits.bodies_bytes, 2 * max_body_bytes),
        connections=max_connections,
        sample_bytes=sample_bytes,
        fair=fair,
        drain_ns=round(1e9 * drain_s),
        stall_ns=round(1e9 * max_stall_s),
    )
    return ServerSettings(
        models,
        host=host,
        http=http,
        grpc=grpc,
        limits=limits,
        token_file=token_file,
        tokens=tokens,
        certificate=tls_cert,
        key=tls_key,
        client_ca=tls_client_ca,
        revoked=tls_crl,
        shared_memory=shared_memory,
        control=allow_control,
        trace=trace,
        json_logs=json_logs,
        hosts=tuple(allow_host),
        trusted=sources_of(trusted),
    )


def _check_openness(
    host: str, allow_host: Sequence[str], files: Mapping[str, Path | None], no_token: bool
) -> None:
    """Check who may reach the server, and under which names.

    Raises:
        InputError: strangers would get in unasked, or a name isn't one.
    """
    given = [f"{name}=" for name, file in files.items() if file is not None]
    if no_token:
        given.append("no_token=True")
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} can't be combined: leave one of them out")
    if not given and not is_loopback(host):
        raise InputError(
            f"host={host!r} accepts connections from other machines, which may then do "
            "everything that clients may: give token_file= or tokens=, or no_token=True to serve "
            "all of them"
        )
    for name in allow_host:
        if not NAME.fullmatch(name):
            raise InputError(
                f"allow_host= takes a host's name, such as example.com or *.example.com, or *; got "
                f"{name!r:.100}"
            )


def _check_revoking(tls_crl: Path | None, tls_client_ca: Path | None, grpc: int | None) -> None:
    """Check that lists of revoked certificates hold wherever clients connect.

    Raises:
        InputError: no client has a certificate, or gRPC would let revoked ones in.
    """
    if tls_crl is None:
        return
    if tls_client_ca is None:
        raise InputError("tls_crl= is about clients' certificates: give tls_client_ca=, too")
    if grpc is not None:
        raise InputError(
            "tls_crl= doesn't work with grpc=: gRPC's library reads no lists of revoked certificates, so clients "
            "with revoked ones would get in; leave out grpc=, or remove their names from the file of tokens="
        )


def _folder(compiled: str | os.PathLike[str]) -> str:
    """Return an absolute path, since a server's processes may have other working folders."""
    text = os.fspath(compiled)
    return text if text in ("", "off") else str(Path(text).absolute())


class Options(TypedDict, total=False):
    """Keyword arguments of `settings_of`, whose docstring describes them."""

    http: int | None
    grpc: int | None
    host: str
    max_batch: int
    any_batch: bool
    sessions: int | None
    deadline_s: float | None
    max_wait_s: float
    cache_bytes: int
    max_sequences: int
    sequence_bytes: int
    sequence_idle_s: float
    compiled: str | os.PathLike[str]
    shadow: float
    shadow_limit: float
    on_alarm: Literal["tell", "exact"]
    webhook: str
    monitor_state: str | os.PathLike[str]
    standby: bool
    custom_ops: Sequence[Path]
    shared_memory: str
    allow_control: bool
    allow_host: Sequence[str]
    no_token: bool
    token_file: Path | None
    tokens: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    tls_crl: Path | None
    max_body_bytes: int
    max_connections: int
    sample_bytes: int
    fair: bool
    drain_s: float
    max_stall_s: float
    trace: bool
    json_logs: bool
    trusted: Trusted


def serve(
    bundles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    say: Callable[[str], None] = lambda text: None,
    **options: Unpack[Options],
) -> int:
    """Serve bundles until SIGTERM or SIGINT; call it from the main thread.

    Args:
        bundles: Folder, NAME=FOLDER or NAME:VERSION=FOLDER, or several of them.
        say: Callback that is told where the server listens, and when it is ready.
        **options: Options of the server, as `settings_of` takes them.

    Returns:
        Exit code: 0 if the server ended because a signal asked it to.

    Raises:
        InputError: the extra isn't installed, a port isn't available, or no model can be loaded.
    """
    check_installed()
    several = [bundles] if isinstance(bundles, (str, os.PathLike)) else bundles
    return supervise(settings_of(several, **options), say)


def supervise(settings: ServerSettings, say: Callable[[str], None] = lambda text: None) -> int:
    """Serve according to settings until SIGTERM or SIGINT; see `serve`.

    Raises:
        InputError: the extra isn't installed, a port isn't available, or no model can be loaded.
    """
    from hasten.serving.logs import log_to_stderr
    from hasten.serving.supervision.supervisor import Supervisor

    log_to_stderr(as_json=settings.json_logs)
    return Supervisor(settings, say).run()


def check_installed() -> None:
    """Check that the extra "serve" is installed.

    Raises:
        InputError: a module is missing; the message names it.
    """
    try:
        import httptools  # noqa: F401
        import orjson  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"serving needs the module {error.name}: pip install 'hasten[serve]'"
        ) from error
