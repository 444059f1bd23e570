"""hasten serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hasten.cli.options import (
    Latency,
    Seconds,
    Share,
    Size,
    custom_ops_option,
    one_line_errors,
)
from hasten.errors import InputError

IMAGE = "hasten-models:latest"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--http", type=int, default=8000, show_default=True, help="The port of HTTP.")
@click.option("--grpc", type=int, help="The port of gRPC; none without.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for everybody.")
@click.option(
    "--deadline",
    "deadline_s",
    type=Latency(),
    help="Of requests that state none, as 20ms.",
)
@click.option(
    "--max-wait",
    "max_wait_s",
    type=Latency(),
    default="1s",
    show_default=True,
    help="Who would wait longer for others is refused.",
)
@click.option("--max-batch", type=int, default=32, show_default=True, help="1 to serve one by one.")
@click.option("--sessions", type=int, help="Batches side by side; by default as the curve advises.")
@click.option(
    "--cache", "cache_bytes", type=Size(), default=0, help="Keep answers, so many bytes, as 64MB."
)
@click.option("--shadow", type=Share(), default=0.0, help="Ask the exact model, too, as 1%.")
@click.option(
    "--no-standby",
    "standby",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Don't keep the exact model open to fall back on.",
)
@click.option(
    "--shared-memory",
    default="",
    metavar="PATTERN",
    help="What clients may register, a regular expression as /frames-.*; none without.",
)
@click.option(
    "--allow-control", is_flag=True, help="Clients may load and unload what is registered here."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Clients must bring this token."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM file; with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file.")
@click.option(
    "--max-body",
    "max_body_bytes",
    type=Size(),
    default="64MiB",
    show_default=True,
    help="Of one request.",
)
@click.option("--max-connections", type=int, default=1024, show_default=True, help="At once.")
@click.option(
    "--drain",
    "drain_s",
    type=Seconds(),
    default="30s",
    show_default=True,
    help="What is under way has so long to end.",
)
@click.option("--trace", is_flag=True, help="Send OpenTelemetry spans, as its OTEL_ variables say.")
@click.option("--json-logs", is_flag=True, help="One JSON object a line.")
@click.option("--on", type=click.Choice(["ray"]), help="A cluster, instead of this process.")
@click.option("--ray-address", help="Of a Ray cluster; one of this machine's own without.")
@click.option("--min-replicas", type=int, help="Of a cluster; 1 by default.")
@click.option("--max-replicas", type=int, help="Of a cluster; as many as at least by default.")
@click.option(
    "--write-kserve",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write an InferenceService and a Dockerfile instead.",
)
@click.option("--image", help="Of --write-kserve; hasten-models:latest by default.")
@custom_ops_option
def serve(
    bundles: tuple[str, ...],
    on: str | None,
    write_kserve: Path | None,
    **options: Any,
) -> None:
    """Serve bundles to any client of the Open Inference Protocol, over HTTP and gRPC.

    A bundle is served under its folder's name, or as NAME=BUNDLE or NAME:VERSION=BUNDLE. SIGHUP
    loads what was replaced on disk; SIGTERM answers what is under way and ends.
    """
    cluster = _given(options, "ray_address", "min_replicas", "max_replicas")
    kserve = _given(options, "image")
    with one_line_errors():
        if cluster and on is None:
            raise InputError(f"--{min(cluster).replace('_', '-')} is of a cluster: add --on ray")
        if kserve and write_kserve is None:
            raise InputError("--image is of --write-kserve: name a folder")
        if on is not None and write_kserve is not None:
            raise InputError("--on and --write-kserve are two ways to serve: leave one of them out")
        if write_kserve is not None:
            from hasten.serving.cluster.kserve import write_kserve as write
            from hasten.serving.run import settings_of

            write(write_kserve, settings_of(bundles, **options), **kserve)
            click.echo(f"next: docker build --tag {kserve.get('image', IMAGE)} {write_kserve}")
            click.echo("where hasten isn't on your index: --build-arg HASTEN=what pip installs")
            code = 0
        elif on is not None:
            from hasten.serving.cluster.ray_cluster import deploy
            from hasten.serving.run import settings_of

            address = cluster.pop("ray_address", None)
            settings = settings_of(bundles, **options)
            code = deploy(settings, address=address, say=click.echo, **cluster)
        else:
            from hasten import serve as run

            code = run(bundles, say=click.echo, **options)
    raise SystemExit(code)


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take options out that were given."""
    return {name: value for name in names if (value := options.pop(name)) is not None}
