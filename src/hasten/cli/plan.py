"""Say how much data a promise takes, before anyone collects it."""

from __future__ import annotations

import click

from hasten.cli.config import Configurable
from hasten.cli.options import GUARD_HELP, Share, guard_choice, one_line_errors


@click.command(cls=Configurable)
@click.option(
    "--max-drop",
    type=Share(),
    default="1%",
    show_default=True,
    help="Largest accepted drop in accuracy.",
)
@click.option(
    "--expect-flips",
    type=Share(),
    default="2%",
    show_default=True,
    help="Expected share of changed answers: right ones lost and wrong ones gained together.",
)
@click.option(
    "--expect-drop",
    type=Share(),
    default="0%",
    show_default=True,
    help="Expected drop in accuracy: right answers lost minus wrong ones gained.",
)
@click.option("--guard", type=guard_choice, default="net", show_default=True, help=GUARD_HELP)
@click.option(
    "--confidence",
    type=Share(),
    default="95%",
    show_default=True,
    help="Confidence of the certificate.",
)
@click.option(
    "--power",
    type=Share(),
    default="80%",
    show_default=True,
    help="Chance of a certificate if the expectations are right.",
)
@click.option(
    "--groups",
    is_flag=True,
    help="The data has groups, or scores are between 0 and 1, so that the test is by betting.",
)
@click.option(
    "--calibration",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Largest number of samples with which the quantizers' ranges are calibrated.",
)
@click.option(
    "--training",
    is_flag=True,
    help="Other data is for calibration, so all of this data is for judging.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(as_json: bool, **options: object) -> None:
    """Say how many samples and labels a promise takes, before anyone collects data."""
    with one_line_errors():
        from hasten.cli.commands import as_text
        from hasten.evaluation.plan import in_words, plan_for

        found = plan_for(**options)  # type: ignore[arg-type]
        click.echo(as_text(found) if as_json else "\n".join(in_words(found)))
