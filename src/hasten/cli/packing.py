"""Pack a bundle into one small file, and unpack it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable
from hasten.cli.lossy import lossy_options, pack_with_loss
from hasten.cli.options import one_line_errors, trusted_option
from hasten.errors import InputError


@click.command(cls=Configurable)
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: the bundle's name with .hastenz, next to it; with -lean if something "
    "is left out]",
)
@click.option(
    "--no-exact", is_flag=True, help="Leave out the exact model, which only certify and serve need."
)
@click.option(
    "--no-evidence", is_flag=True, help="Leave out the records of the run and its report."
)
@click.option("--codecs", help="Codecs to choose from, separated by commas.  [default: all]")
@click.option(
    "--since",
    shell_complete=completing.bundles,
    type=click.Path(path_type=Path),
    help="Older bundle, a folder or a packed one: pack only the difference to it, which hasten unpack "
    "--base needs.",
)
@lossy_options
@click.option("--json", "as_json", is_flag=True, help="Print the sizes as JSON.")
def pack(
    bundle: Path,
    out: Path | None,
    no_exact: bool,
    no_evidence: bool,
    codecs: str | None,
    since: Path | None,
    lossy: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Pack BUNDLE into one small file; the answers stay the same bit for bit.

    With --lossy the answers change a little, which a certificate bounds; the file is then far smaller. The
    exit code is 1 if no smaller form could be certified: the file holds the exact model then.
    """
    kept = "finished work is kept: continue with --resume"
    with one_line_errors(f"stopped; {kept}" if lossy else "stopped; nothing was written"):
        from hasten.bundle.packing.writer import CODING_HELPS
        from hasten.bundle.packing.writer import pack as write
        from hasten.cli.commands import as_text
        from hasten.core.records import to_record

        if lossy:
            if since is not None or codecs is not None or no_exact:
                raise InputError("--lossy can't be combined with --since, --codecs or --no-exact")
            if not pack_with_loss(bundle, out, options, as_json=as_json):
                raise SystemExit(1)
            return
        if strange := [name for name, value in options.items() if value]:
            raise InputError(f"{strange[0]}= is an option for packing with loss: add --lossy")
        names = None if codecs is None else [name.strip() for name in codecs.split(",")]
        made = write(
            bundle,
            out,
            keep_exact=not no_exact,
            keep_evidence=not no_evidence,
            codecs=names,
            since=since,
        )
        if as_json:
            click.echo(as_text({**to_record(made), "note": CODING_HELPS}))
            return
        for line in made.in_words():
            click.echo(line)


@click.command()
@click.argument("packed", shell_complete=completing.bundles)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write.  [default: PACKED's name with .hasten; only the same bundle is replaced there]",
)
@click.option(
    "--base",
    shell_complete=completing.bundles,
    type=click.Path(path_type=Path),
    help="Older bundle, a folder or a packed one, if PACKED is the difference to it; --out may be the "
    "same, and is replaced at once when every file is there.",
)
@trusted_option
def unpack(
    packed: str, out: Path | None, base: Path | None, trusted: tuple[str, ...] | None
) -> None:
    """Unpack PACKED, a file or its address, into a bundle's folder, and check every file."""
    with one_line_errors():
        from hasten.bundle.packing.unpacking import unpack as write

        click.echo(f"{write(packed, out, base=base, trusted=trusted)}: every file is whole")
