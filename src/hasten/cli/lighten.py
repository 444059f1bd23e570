"""Define `hasten lighten`, which trains smaller networks that fit a budget."""

from __future__ import annotations

import time
from typing import Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable, asked
from hasten.cli.options import (
    Latency,
    Share,
    details_option,
    image_options,
    image_pipeline_of,
    one_line_errors,
    order_of_flags,
    order_options,
)
from hasten.core.invocation import typed

_METHODS = ("students", "pruned", "scratch")
_PLAN = ("minutes", "epochs", "batch", "rate", "loss", "features")


@click.command(cls=Configurable, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--train",
    shell_complete=completing.data,
    required=True,
    help="Training data: an .npz file, a folder of images or of sounds, or module:function.",
)
@click.option(
    "--data",
    shell_complete=completing.data,
    required=True,
    help="Evaluation data, which no model may have been trained on.",
)
@click.option(
    "--budget",
    "budget_s",
    type=Latency(),
    required=True,
    help="Longest median latency of one request on this machine, such as 3ms.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(_METHODS),
    help="Try this method only; may be repeated.",
)
@click.option(
    "--students",
    type=int,
    default=1,
    show_default=True,
    help="Number of other architectures to train.",
)
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    help="Choose among these only, named as in hasten shortlist; may be repeated.",
)
@click.option(
    "--minutes",
    type=float,
    default=30.0,
    show_default=True,
    help="Training time of each method, in minutes.",
)
@click.option(
    "--epochs",
    type=float,
    default=100.0,
    show_default=True,
    help="Largest number of passes over the training data.",
)
@click.option("--batch", type=int, default=64, show_default=True, help="Samples per training step.")
@click.option("--rate", type=float, default=2e-3, show_default=True, help="Peak learning rate.")
@click.option("--loss", help="Loss to use instead of the usual one: my.py:loss(outputs, labels).")
@click.option(
    "--features",
    type=Share(),
    help="Weight of the inner layers' features in the loss.  [default: depends on the outputs]",
)
@image_options
@order_options
@details_option
def lighten(
    as_json: bool, details: bool, model: str, train: str, data: str, **options: Any
) -> None:
    """Train smaller networks to replace MODEL, and certify one that fits a budget.

    The exit code is 0 if the model in the bundle is within the budget; it is 1 if no model within the
    budget could be certified.
    """
    began = time.monotonic()
    with one_line_errors("stopped; finished work is kept: continue with --resume"):
        from hasten import TrainingPlan
        from hasten import lighten as run
        from hasten.cli.card import show
        from hasten.cli.commands import as_text
        from hasten.cli.screen import screen

        pipeline = image_pipeline_of(options)
        plan = TrainingPlan(**{name: options.pop(name) for name in _PLAN})
        with typed(asked()), screen() as listen:
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
        if as_json:
            click.echo(as_text(result))
        else:
            show(result, began, with_details=details)
    if not result.within_budget:
        raise SystemExit(1)
