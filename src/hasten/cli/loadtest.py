"""Define `hasten loadtest`, which puts a server under load."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable
from hasten.cli.options import Latency, Seconds, one_line_errors


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """Parse an input's name and shape, written "image:1,3,224,224"."""

    name = "shape"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, _, sizes = str(value).rpartition(":")
        try:
            if not name:
                raise ValueError(value)
            return name, tuple(int(size) for size in sizes.split(",") if sizes)
        except ValueError:
            self.fail(f"{value!r} is not a shape; write image:1,3,224,224", param, ctx)


@click.command(cls=Configurable, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option("--model", required=True, help="Name of the model on the server.")
@click.option(
    "--version", default="", help="Version of the model.  [default: chosen by the server]"
)
@click.option(
    "--rate", "rate_per_s", type=float, required=True, help="Average number of requests per second."
)
@click.option(
    "--for",
    "duration_s",
    type=Seconds(),
    default="30s",
    show_default=True,
    help="Length of the measurement.",
)
@click.option(
    "--warmup",
    "warmup_s",
    type=Seconds(),
    default="1s",
    show_default=True,
    help="Length of the warm-up before the measurement.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="Send requests at random times (poisson) or evenly spaced (constant).",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=Latency(),
    help="Deadline sent with each request, such as 20ms; later answers don't count as goodput.",
)
@click.option(
    "--data",
    shell_complete=completing.data,
    type=click.Path(path_type=Path),
    help="Requests to send: an .npz file, a bundle that keeps some, or a folder of files such as pictures, sounds "
    "or texts, for a chain or a bundle with a pipeline.  [default: random ones]",
)
@click.option(
    "--shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Shape of a random input, such as image:1,3,224,224; may be repeated.",
)
@click.option(
    "--batch", type=int, default=1, show_default=True, help="Rows, or files, in each request."
)
@click.option("--json-tensors", is_flag=True, help="Send tensors as JSON, not as raw bytes.")
@click.option(
    "--connections",
    type=int,
    default=256,
    show_default=True,
    help="Largest number of connections to open; each carries one request at a time.",
)
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(),
    default="10s",
    show_default=True,
    help="Longest wait for the last answers.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the arrival times and of random inputs.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the bearer token to send.",
)
@click.option(
    "--ca", type=click.Path(path_type=Path), help="PEM file with the certificates to trust."
)
@click.option(
    "--client-cert",
    type=click.Path(path_type=Path),
    help="PEM file of the client's own certificate, for a server that asks for one; needs --client-key.",
)
@click.option(
    "--client-key",
    type=click.Path(path_type=Path),
    help="PEM file of that certificate's private key.",
)
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def loadtest(as_json: bool, url: str, shapes: Any, **options: Any) -> None:
    """Put the server at URL under load, sending requests on schedule.

    A request is sent when it is due, whether or not earlier ones were answered.

    The exit code is 1 if no request was answered correctly.
    """
    with one_line_errors():
        from hasten.core.records import to_record
        from hasten.evaluation.loadtest import Bounds, Credentials, Payload, in_words, run

        def taken(*names: str) -> dict[str, Any]:
            return {name: options.pop(name) for name in names}

        result = run(
            url,
            payload=Payload(shapes=dict(shapes), **taken("data", "batch", "json_tensors")),
            bounds=Bounds(**taken("deadline_s", "connections", "grace_s")),
            credentials=Credentials(
                **taken("token_file", "ca", "insecure", "client_cert", "client_key")
            ),
            **options,
        )
        click.echo(
            json.dumps(to_record(result), indent=1) if as_json else "\n".join(in_words(result))
        )
    if not result.latency_ns:
        sys.exit(1)
