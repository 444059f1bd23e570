"""Define `hasten open`, which shows a bundle's report in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

import click

from hasten.cli import completing
from hasten.cli.options import one_line_errors
from hasten.errors import InputError


@click.command("open")
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--print", "only_print", is_flag=True, help="Print the page's path, and open nothing."
)
def open_report(bundle: Path, only_print: bool) -> None:
    """Show BUNDLE's report in a browser.

    The page is made again from BUNDLE's records and kept in your cache folder for a day. Without a browser,
    its path is printed.
    """
    with one_line_errors():
        try:
            from hasten.reporting.viewing import page_to_view
        except ModuleNotFoundError as error:
            raise InputError(
                f"hasten open needs the module {error.name}: pip install 'hasten[optimize]'"
            ) from error
        page = page_to_view(bundle)
        if only_print:
            click.echo(page)
        elif _opened(page):
            click.echo(f"opened in a browser: {page}")
        else:
            click.echo(f"no browser here; the report is in {page}")


def _opened(page: Path) -> bool:
    """Open a page in a browser; return False where there is none, or no screen to show it on."""
    screens = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not any(map(os.environ.get, screens)):
        return False
    try:
        return webbrowser.open(page.as_uri())
    except webbrowser.Error:
        return False
