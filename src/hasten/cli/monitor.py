"""Define `hasten monitor`, which shows and clears what a server's monitor knows of a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli import completing
from hasten.cli.options import one_line_errors
from hasten.errors import InputError

if TYPE_CHECKING:
    from hasten.certificate.monitor import Evidence
    from hasten.serving.monitoring.kept import Record


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option("--clear", is_flag=True, help="Clear alarms, so that the fast model answers again.")
@click.option(
    "--monitor-state",
    default="",
    metavar="FOLDER",
    help="Folder that keeps the monitor's evidence.  [default: ~/.local/state/hasten/monitor]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that is kept, as JSON.")
def monitor(bundle: Path, clear: bool, monitor_state: str, as_json: bool) -> None:
    """Show what hasten serve --shadow found out about a bundle, or clear its alarms.

    It ends with 1 while there is an alarm. After --clear, the evidence starts again, which may raise one
    more false alarm (5%), and a running server looks again at SIGHUP.
    """
    from hasten.bundle import MANIFEST, read, unpacked
    from hasten.core.records import file_digest
    from hasten.serving.monitoring.kept import state_folder

    with one_line_errors():
        bundle = unpacked(bundle)
        read(bundle)
        folder = state_folder(monitor_state)
        if folder is None:
            raise InputError("--monitor-state off keeps no evidence: name the server's folder")
        record, lost = (_cleared if clear else _shown)(file_digest(bundle / MANIFEST), folder)
    for line in lost:
        click.echo(line, err=as_json)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(record), indent=2))
    else:
        for line in record.lines:
            click.echo(line)
        for key, evidence in record.evidence.items():
            click.echo(f"{key.split()[0]}: {_in_words(evidence)}")
        if record.evidence and not record.alarms:
            click.echo("no alarm")
        if not (record.lines or record.evidence or lost):
            click.echo(
                "there is no evidence: no server has watched this bundle, or the server "
                "kept nothing"
            )
    raise SystemExit(1 if record.alarms else 0)


def _shown(digest: str, folder: Path) -> tuple[Record, list[str]]:
    """Return what is kept of a bundle, which stays as it is, and lines on what is lost.

    Raises:
        InputError: what is kept can't be read, or is damaged.
    """
    from hasten.serving.monitoring.kept import Record, loss, peek

    try:
        return peek(digest, folder), []
    except FileNotFoundError:
        return Record(digest), [line for line in (loss(digest, folder),) if line]
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"the monitor's evidence can't be read in {folder}: {why}") from error
    except ValueError as error:
        raise InputError(
            f"the monitor's evidence in {folder} is damaged ({error!s:.200}): give --clear, or start "
            "the server, to set it aside and start again"
        ) from error


def _cleared(digest: str, folder: Path) -> tuple[Record, list[str]]:
    """Clear what is kept of a bundle; return what is kept then, and lines on what was lost.

    Raises:
        InputError: nothing can be kept in the folder.
    """
    from hasten.serving.monitoring.kept import Kept, cleared

    said: list[str] = []
    lost: list[str] = []
    record = Kept(digest, folder, said.append, anew=lost.append).changed(cleared)
    if said:
        raise InputError(said[0])
    return record, lost


def _in_words(evidence: Evidence) -> str:
    """Return the share so far with its interval, and the limit."""
    if evidence.estimate is None:
        return "no audited answers yet"
    low, high = evidence.interval()
    return (
        f"{100 * evidence.estimate:.3g}% of {evidence.n:,} audited answers (95% interval {100 * low:.3g}% to "
        f"{100 * high:.3g}%); the limit is {100 * evidence.limit:.4g}%"
    )
