"""hasten lighten."""

from __future__ import annotations

import time
from typing import Any

import click

from hasten.cli.options import (
    Latency,
    Share,
    image_options,
    image_pipeline_of,
    one_line_errors,
    order_of_flags,
    order_options,
)
from hasten.core.invocation import typed

_METHODS = ("students", "pruned", "scratch")
_PLAN = ("minutes", "epochs", "batch", "rate", "loss", "features")


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
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(_METHODS),
    help="Try this method only; may be repeated.",
)
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
@order_options
def lighten(as_json: bool, model: str, train: str, data: str, **options: Any) -> None:
    """Train lighter networks in MODEL's place, and certify one within a budget.

    The exit code is 0 if what ships is within it, 1 if nothing that is could be certified.
    """
    began = time.monotonic()
    with one_line_errors("stopped; what is done is kept, go on with --resume"):
        from hasten import TrainingPlan
        from hasten import lighten as run
        from hasten.cli.commands import as_text
        from hasten.cli.screen import screen, summary

        pipeline = image_pipeline_of(options)
        plan = TrainingPlan(**{name: options.pop(name) for name in _PLAN})
        with typed(click.get_current_context().obj), screen() as listen:
            result = run(
                model,
                train,
                data,
                methods=options.pop("methods") or _METHODS,
                plan=plan,
                pipeline=pipeline,
                listen=listen,
                **order_of_flags(options),
            )
        click.echo(as_text(result) if as_json else summary(result, began))
    if not result.within_budget:
        raise SystemExit(1)
