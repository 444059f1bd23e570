"""Serve a page to label samples on, on this machine alone."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from hasten.cli.options import one_line_errors


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port.  [default: a free one]"
)
def label(folder: Path, port: int) -> None:
    """Serve the page in FOLDER, which optimize --ask-labels wrote, and save labels as they arrive."""
    with one_line_errors("stopped; all labels are kept: continue hasten optimize with --resume"):
        from hasten.optimization.labelling.served import served

        with served(folder, port) as url:
            click.echo(f"label on {url} (from this machine only); Ctrl-C ends it")
            threading.Event().wait()
