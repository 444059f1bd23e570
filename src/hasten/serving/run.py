"""Turn the options for serving bundles into a server's settings, and run the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hasten.bundle.signatures import keys_of, sources_of
from hasten.core.presence import path_text
from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.places import chain_places, places
from hasten.serving.options import (
    Access,
    ModelOptions,
    Monitoring,
    SequenceLimits,
    ServerLimits,
    check_range,
    host_names,
)
from hasten.serving.protocol.origins import is_loopback
from hasten.serving.settings import ModelPlace, ServerSettings
from hasten.serving.state import Limits


def serve(
    bundles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    http: int | None = 8000,
    grpc: int | None = None,
    host: str = "127.0.0.1",
    models: ModelOptions = ModelOptions(),
    sequences: SequenceLimits = SequenceLimits(),
    monitoring: Monitoring = Monitoring(),
    access: Access = Access(),
    limits: ServerLimits = ServerLimits(),
    trace: bool = False,
    json_logs: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Serve bundles until SIGTERM or SIGINT; call it from the main thread.

    Args:
        bundles: Bundles to serve, one or several: folders, NAME=FOLDER or NAME:VERSION=FOLDER; or
            chains, as NAME=det.hasten+crop+ocr.hasten or NAME=chain.yaml.
        http: Port of HTTP; 0 for any free port, None for no HTTP.
        grpc: Port of gRPC; 0 for any free port, None for no gRPC.
        host: Address to listen on. One that other machines can reach needs a token, or
            `Access(no_token=True)`.
        models: Options for the opening of models and for the batching of requests.
        sequences: Limits on the states of each model's sequences.
        monitoring: Options for the watch over the certificate, and for the effect of an alarm.
        access: Rights of clients: their names, and what each may ask for.
        limits: Limits on sizes, counts and times.
        trace: Whether to send OpenTelemetry spans.
        json_logs: Whether to write logs as one JSON object per line.
        say: Callback that is told where the server listens, and when it is ready.

    Returns:
        Exit code: 0 if the server ended because a signal asked it to.

    Raises:
        InputError: options contradict each other, the extra isn't installed, a port isn't available,
            or no model can be loaded.
    """
    check_installed()
    settings = settings_of(
        bundles,
        http=http,
        grpc=grpc,
        host=host,
        models=models,
        sequences=sequences,
        monitoring=monitoring,
        access=access,
        limits=limits,
        trace=trace,
        json_logs=json_logs,
    )
    return supervise(settings, say)


def settings_of(
    bundles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    http: int | None = 8000,
    grpc: int | None = None,
    host: str = "127.0.0.1",
    models: ModelOptions = ModelOptions(),
    sequences: SequenceLimits = SequenceLimits(),
    monitoring: Monitoring = Monitoring(),
    access: Access = Access(),
    limits: ServerLimits = ServerLimits(),
    trace: bool = False,
    json_logs: bool = False,
) -> ServerSettings:
    """Return the options of `serve`, which describes them, as settings of a server.

    Raises:
        InputError: options contradict each other, or a bundle or a key can't be read.
    """
    _check_ports(http, grpc)
    _check_openness(host, access)
    if grpc is not None:
        _check_over_grpc(access, limits)
    return ServerSettings(
        _model_places(bundles, _model_settings(models, sequences, monitoring)),
        host=host,
        http=http,
        grpc=grpc,
        limits=_limits(limits),
        token_file=_path(access.token_file),
        tokens=_path(access.tokens),
        certificate=_path(access.tls_cert),
        key=_path(access.tls_key),
        client_ca=_path(access.tls_client_ca),
        revoked=_path(access.tls_crl),
        shared_memory=access.shared_memory,
        control=access.allow_control,
        trace=trace,
        json_logs=json_logs,
        hosts=host_names(access.allow_host),
        trusted=sources_of(models.trusted),
    )


def _check_ports(http: int | None, grpc: int | None) -> None:
    """Check the ports.

    Raises:
        InputError: a port is out of range, or both are the same.
    """
    check_range("http", http, 0, 65535)
    check_range("grpc", grpc, 0, 65535)
    if http and http == grpc:
        raise InputError(f"http= and grpc= are both {http}: give each its own port")


def _check_openness(host: str, access: Access) -> None:
    """Check that other machines get in only if they have a token, or the user said that they need none.

    Raises:
        InputError: clients on other machines would get in without a token.
    """
    asked = access.no_token or access.token_file is not None or access.tokens is not None
    if not asked and not is_loopback(host):
        raise InputError(
            f"host={host!r} accepts connections from other machines, which may then do "
            "everything that clients may: give token_file= or tokens=, or no_token=True to serve "
            "all of them"
        )


def _check_over_grpc(access: Access, limits: ServerLimits) -> None:
    """Check that options hold for clients of gRPC, too.

    Raises:
        InputError: bodies may be too large, or clients with revoked certificates would get in.
    """
    if limits.max_body_bytes >= 1 << 31:
        raise InputError(
            "a gRPC message must be smaller than 2 GiB: give a smaller max_body_bytes=, or no grpc="
        )
    if access.tls_crl is not None:
        raise InputError(
            "tls_crl= doesn't work with grpc=: gRPC's library reads no lists of revoked certificates, so clients "
            "with revoked ones would get in; leave out grpc=, or remove their names from the file of tokens="
        )


def _model_settings(
    models: ModelOptions, sequences: SequenceLimits, monitoring: Monitoring
) -> ModelSettings:
    """Return the settings that each model is served with.

    Raises:
        InputError: a public key can't be read.
    """
    return ModelSettings(
        deadline_ns=round(1e9 * (models.deadline_s or 0)),
        most_wait_ns=round(1e9 * models.max_wait_s),
        most_rows=models.max_batch,
        any_batch=models.any_batch,
        most_length=models.max_length,
        sessions=models.sessions,
        cache_bytes=models.cache_bytes,
        most_sequences=sequences.max_sequences,
        sequence_bytes=sequences.sequence_bytes,
        sequence_idle_ns=round(1e9 * sequences.sequence_idle_s),
        compiled=_folder(models.compiled),
        shadow=monitoring.shadow,
        shadow_limit=monitoring.shadow_limit,
        on_alarm=monitoring.on_alarm,
        webhook=monitoring.webhook,
        monitor_state=_folder(monitoring.monitor_state),
        standby=models.standby,
        custom_ops=_paths(models.custom_ops),
        trusted=keys_of(models.trusted),
    )


def _model_places(
    bundles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], settings: ModelSettings
) -> tuple[ModelPlace, ...]:
    """Return the bundles and chains to serve, with the names and versions that clients ask for.

    Raises:
        InputError: there is none, one can't be read, or a version is given twice.
    """
    several = (
        bundles if isinstance(bundles, Iterable) and not isinstance(bundles, str) else [bundles]
    )
    plain, chains = chain_places([path_text(bundle) for bundle in several], settings.trusted)
    alone = [
        ModelPlace(name, version, path.absolute(), settings)
        for name, version, path in places(plain)
    ]
    for name, version, _, _ in chains:
        if any((one.name, one.version) == (name, version) for one in alone):
            raise InputError(f"version {version} of {name!r} is given twice")
    chained = [
        ModelPlace(name, version, path.absolute(), settings, chain)
        for name, version, path, chain in chains
    ]
    if not (alone or chained):
        raise InputError("nothing to serve: give a bundle")
    return (*alone, *chained)


def _limits(limits: ServerLimits) -> Limits:
    return Limits(
        body_bytes=limits.max_body_bytes,
        bodies_bytes=max(Limits.bodies_bytes, 2 * limits.max_body_bytes),
        connections=limits.max_connections,
        sample_bytes=limits.sample_bytes,
        fair=limits.fair,
        drain_ns=round(1e9 * limits.drain_s),
        stall_ns=round(1e9 * limits.max_stall_s),
    )


def _folder(given: str | Path) -> str:
    """Return an absolute path, since a server's processes may have other working folders."""
    text = os.fspath(given)
    return text if text in ("", "off") else str(Path(text).absolute())


def _paths(given: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    several = [given] if isinstance(given, (str, Path)) else given
    return tuple(Path(path).absolute() for path in several)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


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
