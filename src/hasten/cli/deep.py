"""Checks of a device itself, as the command line prints them."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

import click


def check_deeply(device: str, as_json: bool) -> NoReturn:
    """Check a device, print the page or its record, and end with the exit code that says what holds."""
    from hasten.evaluation.deep import page
    from hasten.evaluation.deep.run import exit_code, run

    if as_json:
        findings = run()
        click.echo(json.dumps(page.record(device, findings), indent=2))
    else:
        click.echo(page.heading(device))
        findings = run(listen=lambda finding: click.echo(page.entry(finding)))
        click.echo(page.ending(findings))
    sys.exit(exit_code(findings))
