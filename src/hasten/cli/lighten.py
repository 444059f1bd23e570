"""hasten lighten."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hasten.cli.options import (
    Latency,
    Share,
    guard_choice,
    image_options,
    image_pipeline_of,
    one_line_errors,
)
from hasten.core.invocation import typed

_METHODS = ("students", "pruned", "scratch")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--train", required=True, help="Training data: .npz, a folder, or module:function.")
@click.option("--data", required=True, help="What judges; none of it was trained on.")
@click.option(
    "--budget",
    "budget_s",
    type=Latency(),
    required=True,
    help="What one request may take on this machine, as 3ms.",
)
@click.option(
    "--max-drop",
    type=Share(),
    default="1%",
    show_default=True,
    help="The most that accuracy may fall.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="model.hasten",
    show_default=True,
    help="The bundle's folder.",
)
@click.option(
    "--metric",
    help="top1, top5, agreement, embedding, regression:TOLERANCE, detection_f1, or my.py:score.",
)
@click.option(
    "--guard",
    type=guard_choice,
    default="net",
    show_default=True,
    help="What is bounded.",
)
@click.option(
    "--confidence", type=Share(), default="95%", show_default=True, help="Of the certificate."
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(_METHODS),
    help="Try this method only; may be repeated.",
)
@click.option("--way", "ways", multiple=True, type=click.Choice(_METHODS), hidden=True)
@click.option(
    "--students", type=int, default=1, show_default=True, help="How many other architectures."
)
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    help="Choose among these, as shortlist names them; may be repeated.",
)
@click.option(
    "--minutes", type=float, default=30.0, show_default=True, help="Each method trains so long."
)
@click.option(
    "--epochs",
    type=float,
    default=100.0,
    show_default=True,
    help="Passes over the training data, at most.",
)
@click.option("--batch", type=int, default=64, show_default=True, help="Samples per step.")
@click.option(
    "--rate", type=float, default=2e-3, show_default=True, help="The highest learning rate."
)
@click.option("--loss", help="my.py:loss, of outputs and labels, in the usual one's place.")
@click.option(
    "--features",
    type=Share(),
    help="How much layers inside count in what is learnt; by default as the outputs need.",
)
@image_options
@click.option("--engine", "engines", multiple=True, help="Try this engine only; may be repeated.")
@click.option(
    "--population",
    default="inputs like the ones in this data",
    help="What the data was drawn from.",
)
@click.option(
    "--calibration",
    type=int,
    default=300,
    show_default=True,
    help="Training samples that set the quantizers' ranges, at most.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all orders.")
@click.option("--no-exact", is_flag=True, help="Leave the exact model out of the bundle.")
@click.option(
    "--accept-uncertified", is_flag=True, help="Ship the fastest even if nothing certifies."
)
@click.option("--resume", is_flag=True, help="Go on with the run that was stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def lighten(as_json: bool, model: str, train: str, data: str, **options: Any) -> None:
    """Train lighter networks in MODEL's place, and certify one within a budget.

    The exit code is 0 if what ships is within it, 1 if nothing that is could be certified.
    """
    began = time.monotonic()
    with one_line_errors("stopped; what is done is kept, go on with --resume"):
        from hasten import lighten as run
        from hasten.cli.commands import as_text
        from hasten.cli.screen import screen, summary
        from hasten.engines.installed import ENGINES

        pipeline = image_pipeline_of(options)
        with typed(click.get_current_context().obj), screen() as listen:
            result = run(
                model,
                train,
                data,
                pipeline=pipeline,
                budget_ms=1e3 * options.pop("budget_s"),
                ways=(*options.pop("methods"), *options.pop("ways")) or _METHODS,
                engines=options.pop("engines") or ENGINES,
                keep_exact=not options.pop("no_exact"),
                listen=listen,
                **options,
            )
        click.echo(as_text(result) if as_json else summary(result, began))
    if not result.within_budget:
        raise SystemExit(1)
