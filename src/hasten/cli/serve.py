"""Define `hasten serve`, which serves bundles over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable
from hasten.cli.options import (
    Latency,
    Seconds,
    Share,
    Size,
    custom_ops_option,
    one_line_errors,
    trusted_option,
)
from hasten.errors import InputError

IMAGE = "hasten-models:latest"
_PLAIN = ("http", "grpc", "host", "trace", "json_logs")


@click.command(cls=Configurable, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "bundles",
    nargs=-1,
    required=True,
    metavar="[NAME=]BUNDLE...",
    shell_complete=completing.bundles,
)
@click.option("--http", type=int, default=8000, show_default=True, help="Port of HTTP.")
@click.option("--grpc", type=int, help="Port of gRPC.  [default: no gRPC]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 accepts connections from other machines, which need a token.",
)
@click.option(
    "--no-token",
    is_flag=True,
    help="Serve other machines without asking for a token.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name by which clients and web pages reach the server, such as a proxy's, in addition to localhost, IP addresses and this machine's; *.NAME for all names below it, * for any. May be repeated. With a token or TLS, any name is accepted.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=Latency(),
    help="Deadline of requests that state none, such as 20ms.  [default: none]",
)
@click.option(
    "--max-wait",
    "max_wait_s",
    type=Latency(),
    default="1s",
    show_default=True,
    help="Longest wait in the queue; a request that would wait longer is refused.",
)
@click.option(
    "--max-batch",
    type=int,
    default=32,
    show_default=True,
    help="Largest number of rows in one batch; 1 turns batching off.",
)
@click.option(
    "--any-batch",
    is_flag=True,
    help="Form batches of any size, even if the certificate doesn't cover it.",
)
@click.option(
    "--max-length",
    type=int,
    help="Largest size of a request's open dimensions other than the batch, such as the tokens of a text, or of a batch that can't be divided.  [default: 1024, or twice the largest in the bundle's data if that is more; less if it would take too much memory]",
)
@click.option(
    "--sessions",
    type=int,
    help="Batches that run in parallel.  [default: as the batch curve suggests]",
)
@click.option(
    "--cache",
    "cache_bytes",
    type=Size(),
    default=0,
    help="Size of the cache of answers and prepared samples, such as 64MB.  [default: no cache]",
)
@click.option(
    "--max-sequences",
    type=int,
    default=1024,
    show_default=True,
    help="Largest number of sequences kept at once for a model with states; 0 keeps none.",
)
@click.option(
    "--sequence-bytes",
    type=Size(),
    default="60MiB",
    show_default=True,
    help="Largest size of the states of all models' sequences together, with three copies of one for each step that runs.",
)
@click.option(
    "--sequence-idle",
    "sequence_idle_s",
    type=Seconds(),
    default="60s",
    show_default=True,
    help="Time without a request after which a sequence's state is dropped.",
)
@click.option(
    "--compiled",
    default="",
    metavar="FOLDER",
    help="Folder that keeps compiled models for the next start, or off.  [default: ~/.cache/hasten]",
)
@click.option(
    "--shadow",
    type=Share(),
    default=0.0,
    help="Share of requests that the exact model answers too, to watch the certificate, such as 1%.  [default: none]",
)
@click.option(
    "--shadow-limit",
    type=Share(),
    default=0.0,
    help="Share of changed answers above which an alarm is raised.  [default: the one "
    "that follows from the certificate, if any]",
)
@click.option(
    "--on-alarm",
    type=click.Choice(["tell", "exact"]),
    default="tell",
    show_default=True,
    help="tell reports an alarm; exact also lets the exact model answer, until hasten monitor --clear.",
)
@click.option(
    "--webhook",
    default="",
    metavar="URL",
    help="Address that gets alarms, as a POST of JSON.  [default: none]",
)
@click.option(
    "--monitor-state",
    default="",
    metavar="FOLDER",
    help="Folder that keeps the monitor's evidence, or off.  [default: ~/.local/state/hasten/monitor]",
)
@click.option(
    "--no-standby",
    "standby",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Don't keep the exact model open as a fallback.",
)
@click.option(
    "--shared-memory",
    default="",
    metavar="PATTERN",
    help="Regular expression of the shared memory names that clients may register, such as "
    "/frames-.*.  [default: none]",
)
@click.option(
    "--allow-control",
    is_flag=True,
    help="Let clients load and unload the registered models.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the bearer token that clients must send.",
)
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    help="TOML file with several clients, by tokens or certificates, and what each may do: infer, read, "
    "control.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    help="PEM file of the TLS certificate; needs --tls-key.",
)
@click.option(
    "--tls-key",
    type=click.Path(path_type=Path),
    help="PEM file of the TLS certificate's private key.",
)
@click.option(
    "--tls-client-ca",
    type=click.Path(path_type=Path),
    help="PEM file of certificates; one of them must have signed a client's certificate. Needs --tokens.",
)
@click.option(
    "--tls-crl",
    type=click.Path(path_type=Path),
    help="PEM file of lists of revoked certificates, one from each in --tls-client-ca; clients with a revoked one get no connection. Not with --grpc.",
)
@click.option(
    "--max-body",
    "max_body_bytes",
    type=Size(),
    default="64MiB",
    show_default=True,
    help="Largest body of one request. If it is more than 64 MiB, also the largest answer over gRPC.",
)
@click.option(
    "--sample-bytes",
    type=Size(),
    default="40MiB",
    show_default=True,
    help="Memory that all pictures and sounds may take together, beyond what their own bytes pay for.",
)
@click.option(
    "--max-connections",
    type=int,
    default=1024,
    show_default=True,
    help="Largest number of open connections.",
)
@click.option(
    "--no-fairness",
    "fair",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Don't share places fairly among clients: one client may take all of them while others "
    "wait.",
)
@click.option(
    "--drain",
    "drain_s",
    type=Seconds(),
    default="30s",
    show_default=True,
    help="Longest wait at shutdown for running requests to finish.",
)
@click.option(
    "--max-stall",
    "max_stall_s",
    type=Seconds(),
    default="30s",
    show_default=True,
    help="Longest time without a response from the serving process, for example because an "
    "engine hangs, before it is replaced; 0 for no limit.",
)
@click.option(
    "--trace",
    is_flag=True,
    help="Send OpenTelemetry spans, configured by the OTEL_* environment variables.",
)
@click.option("--json-logs", is_flag=True, help="Write logs as one JSON object per line.")
@click.option(
    "--on", type=click.Choice(["ray"]), help="Serve on this cluster instead of in this process."
)
@click.option(
    "--ray-address", help="Address of the Ray cluster.  [default: a new one on this machine]"
)
@click.option(
    "--min-replicas", type=int, help="Smallest number of replicas on the cluster.  [default: 1]"
)
@click.option(
    "--max-replicas",
    type=int,
    help="Largest number of replicas on the cluster.  [default: --min-replicas]",
)
@click.option(
    "--write-kserve",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a KServe InferenceService and a Dockerfile here instead of serving.",
)
@click.option("--image", help="Image name for --write-kserve.  [default: hasten-models:latest]")
@custom_ops_option
@trusted_option
def serve(
    bundles: tuple[str, ...],
    on: str | None,
    write_kserve: Path | None,
    **options: Any,
) -> None:
    """Serve bundles to any client of the Open Inference Protocol, over HTTP and gRPC.

    A bundle is served under its folder's name, or under another one with NAME=BUNDLE or
    NAME:VERSION=BUNDLE. A chain is served as one model: NAME=det.hasten+crop+ocr.hasten, or
    NAME=chain.yaml. SIGHUP reloads bundles that were replaced on disk; SIGTERM finishes running
    requests and exits.
    """
    cluster = _given(options, "ray_address", "min_replicas", "max_replicas")
    kserve = _given(options, "image")
    with one_line_errors():
        if cluster and on is None:
            raise InputError(f"--{min(cluster).replace('_', '-')} needs a cluster: add --on ray")
        if kserve and write_kserve is None:
            raise InputError("--image needs --write-kserve: add it, with a folder")
        if on is not None and write_kserve is not None:
            raise InputError("--on and --write-kserve can't be combined: leave one of them out")
        keywords = keywords_of(options)
        if write_kserve is not None:
            from hasten.serving.cluster.kserve import write_kserve as write
            from hasten.serving.run import settings_of

            write(write_kserve, settings_of(bundles, **keywords), **kserve)
            click.echo(f"next: docker build --tag {kserve.get('image', IMAGE)} {write_kserve}")
            click.echo(
                "if your package index doesn't have hasten, add: --build-arg "
                "HASTEN=REQUIREMENT_FOR_PIP"
            )
            code = 0
        elif on is not None:
            from hasten.serving.cluster.ray_cluster import deploy
            from hasten.serving.run import settings_of

            address = cluster.pop("ray_address", None)
            code = deploy(
                settings_of(bundles, **keywords), address=address, say=click.echo, **cluster
            )
        else:
            from hasten import serve as run

            code = run(bundles, say=click.echo, **keywords)
    raise SystemExit(code)


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove the named options from `options`, and return those that were given."""
    return {name: value for name in names if (value := options.pop(name)) is not None}


def keywords_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `hasten.serve` that say the same as the command's options.

    Args:
        options: Values of the options. Each has the name of a keyword, or of a field of a value.

    Raises:
        InputError: an option is out of its range, or options contradict each other.
    """
    from hasten import Access, ModelOptions, Monitoring, SequenceLimits, ServerLimits

    kinds = {
        "models": ModelOptions,
        "sequences": SequenceLimits,
        "monitoring": Monitoring,
        "access": Access,
        "limits": ServerLimits,
    }
    values = {
        keyword: kind(**{field.name: options[field.name] for field in fields(kind)})
        for keyword, kind in kinds.items()
    }
    return {**{name: options[name] for name in _PLAIN}, **values}
