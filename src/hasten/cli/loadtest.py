"""The command that puts a server under load."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hasten.cli.options import Latency, Seconds, one_line_errors


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """An input's shape, written "image:1,3,224,224"."""

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
            self.fail(f"{value!r} is no shape; write image:1,3,224,224", param, ctx)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option("--model", required=True, help="Its name at the server.")
@click.option("--version", default="", help="Of the model; by default the server chooses.")
@click.option(
    "--rate", "rate_per_s", type=float, required=True, help="Requests a second, on average."
)
@click.option(
    "--for",
    "duration_s",
    type=Seconds(),
    default="30s",
    show_default=True,
    help="How long requests count.",
)
@click.option(
    "--warmup",
    "warmup_s",
    type=Seconds(),
    default="1s",
    show_default=True,
    help="How long they are sent before.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="At random times, or evenly spaced.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=Latency(),
    help="Sent with each request, as 20ms; what comes later is no goodput.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Requests: an .npz, or a bundle that keeps some; made up without.",
)
@click.option(
    "--shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Of a random input, as image:1,3,224,224; may be repeated.",
)
@click.option("--batch", type=int, default=1, show_default=True, help="Rows of each request.")
@click.option("--json-tensors", is_flag=True, help="Send tensors as JSON, not as raw bytes.")
@click.option(
    "--connections",
    type=int,
    default=256,
    show_default=True,
    help="At most; each has one request under way.",
)
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(),
    default="10s",
    show_default=True,
    help="How long to wait for the last answers.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the times and of random numbers."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Its word is sent as a bearer token."
)
@click.option("--ca", type=click.Path(path_type=Path), help="Certificates to trust, in PEM.")
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def loadtest(as_json: bool, url: str, shapes: Any, **options: Any) -> None:
    """Put a server at URL under load: requests come when they are due, answered or not.

    Ends with 1 where not one was answered rightly.
    """
    with one_line_errors():
        from hasten.core.records import to_record
        from hasten.evaluation.loadtest import in_words, run

        result = run(url, shapes=dict(shapes), **options)
        click.echo(
            json.dumps(to_record(result), indent=1) if as_json else "\n".join(in_words(result))
        )
    if not result.latency_ns:
        sys.exit(1)
