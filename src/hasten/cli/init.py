"""Begin a project: a folder with a data script, its options, a Makefile and a CI file for a model."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli import completing
from hasten.cli.options import one_line_errors


@click.command()
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write; it must not exist.  [default: the model's name with -project]",
)
def init(model: str, out: Path | None) -> None:
    """Write a project folder for MODEL: a data script with its inputs, hasten.toml, a Makefile, a CI file."""
    with one_line_errors("stopped; nothing was written"):
        from hasten.evaluation.project import has_placeholder
        from hasten.evaluation.project import init as write

        place = write(model, out)
        click.echo(
            f"{place}: `make try` needs no data; fill in the data, then `make bundle`; "
            "`make plan` says how much data you need; the options are in hasten.toml"
        )
        if has_placeholder(place):
            click.echo(
                f"{place / 'data.py'} has a placeholder for the inputs, since the model doesn't state their shapes "
                "and types: fill them in"
            )
