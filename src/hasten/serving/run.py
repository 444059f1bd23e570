"""Serve bundles: from what a person says to a server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.repository import places
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
    sessions: int | None = None,
    deadline_s: float | None = None,
    max_wait_s: float = 1.0,
    cache_bytes: int = 0,
    shadow: float = 0.0,
    standby: bool = True,
    custom_ops: Sequence[Path] = (),
    shared_memory: str = "",
    allow_control: bool = False,
    token_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    max_body_bytes: int = Limits.body_bytes,
    max_connections: int = Limits.connections,
    drain_s: float = 30.0,
    trace: bool = False,
    json_logs: bool = False,
) -> ServerSettings:
    """Check what is asked for.

    Args:
        bundles: Folders, NAME=FOLDER or NAME:VERSION=FOLDER.
        http: The port of HTTP; 0 for any that is free, None for no HTTP.
        grpc: The same of gRPC.
        host: Where to listen.
        max_batch: The largest batch, and the most rows of a request.
        sessions: How many batches run side by side; None as the batch curve advises.
        deadline_s: Of requests that state none.
        max_wait_s: A request that would wait longer for others is refused.
        cache_bytes: Of answers to keep.
        shadow: The share of requests that the exact model is asked, too.
        standby: Keep the exact model open, to fall back on.
        custom_ops: Libraries with operators of the user's own.
        shared_memory: Pattern of the POSIX shared memory that clients may register; "" for none.
        allow_control: Clients may load and unload what is registered here, and set what is logged.
        token_file: A file with the token that clients must bring.
        tls_cert: PEM file of the certificate.
        tls_key: PEM file of its key.
        max_body_bytes: Of one request.
        max_connections: At once.
        drain_s: What is under way at the end has so long.
        trace: Send OpenTelemetry spans.
        json_logs: One JSON object a line.

    Raises:
        InputError: what can't be.
    """
    for what, value, least, most in (
        ("--max-batch", max_batch, 1, _MOST_ROWS),
        ("--sessions", 1 if sessions is None else sessions, 1, 1024),
        ("--shadow", shadow, 0, 1),
        ("--deadline", deadline_s or 0, 0, 3600),
        ("--max-wait", max_wait_s, 0, 3600),
        ("--drain", drain_s, 0, 3600),
        ("--cache", cache_bytes, 0, 1 << 50),
        ("--max-body", max_body_bytes, 1, 1 << 40),
        ("--max-connections", max_connections, 1, 1 << 20),
        ("--http", 0 if http is None else http, 0, 65535),
        ("--grpc", 0 if grpc is None else grpc, 0, 65535),
    ):
        if not least <= value <= most:
            raise InputError(f"{what} is from {least} to {most}; got {value}")
    try:
        re.compile(shared_memory)
    except re.error as error:
        raise InputError(f"--shared-memory is no pattern: {error}") from error
    if http and http == grpc:
        raise InputError(f"--http and --grpc are both {http}: give each a port of its own")
    if grpc is not None and max_body_bytes >= 1 << 31:
        raise InputError(
            "a message of gRPC is below 2 GiB: give a smaller --max-body, or no --grpc"
        )
    model = ModelSettings(
        deadline_ns=round(1e9 * (deadline_s or 0)),
        most_wait_ns=round(1e9 * max_wait_s),
        most_rows=max_batch,
        sessions=sessions,
        cache_bytes=cache_bytes,
        shadow=shadow,
        standby=standby,
        custom_ops=tuple(path.absolute() for path in custom_ops),
    )
    models = tuple(
        ModelPlace(name, version, path.absolute(), model)
        for name, version, path in places([os.fspath(bundle) for bundle in bundles])
    )
    if not models:
        raise InputError("nothing to serve: give a bundle")
    limits = Limits(
        body_bytes=max_body_bytes,
        bodies_bytes=max(Limits.bodies_bytes, 2 * max_body_bytes),
        connections=max_connections,
        drain_ns=round(1e9 * drain_s),
    )
    return ServerSettings(
        models,
        host=host,
        http=http,
        grpc=grpc,
        limits=limits,
        token_file=token_file,
        certificate=tls_cert,
        key=tls_key,
        shared_memory=shared_memory,
        control=allow_control,
        trace=trace,
        json_logs=json_logs,
    )


class Options(TypedDict, total=False):
    """What `settings_of` takes beside bundles; that says what they mean."""

    http: int | None
    grpc: int | None
    host: str
    max_batch: int
    sessions: int | None
    deadline_s: float | None
    max_wait_s: float
    cache_bytes: int
    shadow: float
    standby: bool
    custom_ops: Sequence[Path]
    shared_memory: str
    allow_control: bool
    token_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    max_body_bytes: int
    max_connections: int
    drain_s: float
    trace: bool
    json_logs: bool


def serve(
    bundles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    say: Callable[[str], None] = lambda text: None,
    **options: Unpack[Options],
) -> int:
    """Serve bundles until SIGTERM or SIGINT; from the main thread.

    Args:
        bundles: A folder, NAME=FOLDER or NAME:VERSION=FOLDER, or several of them.
        say: Told where it listens, and when it is ready.
        **options: As `settings_of` takes them.

    Returns:
        The exit code: 0 where it ended because it was asked to.

    Raises:
        InputError: the extra isn't installed, a port can't be had, or no model can be loaded.
    """
    check_installed()
    several = [bundles] if isinstance(bundles, (str, os.PathLike)) else bundles
    return supervise(settings_of(several, **options), say)


def supervise(settings: ServerSettings, say: Callable[[str], None] = lambda text: None) -> int:
    """Serve what settings say; see `serve`.

    Raises:
        InputError: the extra isn't installed, a port can't be had, or no model can be loaded.
    """
    from hasten.serving.logs import log_to_stderr
    from hasten.serving.supervision.supervisor import Supervisor

    log_to_stderr(as_json=settings.json_logs)
    return Supervisor(settings, say).run()


def check_installed() -> None:
    """Check that the extra is there.

    Raises:
        InputError: which module isn't.
    """
    try:
        import httptools  # noqa: F401
        import orjson  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"serving needs the module {error.name}: pip install 'hasten[serve]'"
        ) from error
