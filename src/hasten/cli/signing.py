"""Make keys, and sign bundles with them."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli import completing
from hasten.cli.options import one_line_errors


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="File of the secret key, without a password: made by hasten keygen or by minisign -G -W.",
)
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE, a folder or a packed file, so that others can tell who made it.

    The signature is the bundle's file manifest.json.minisig, in the format of minisign. It says who made
    the bundle, not that its answers are right.
    """
    with one_line_errors():
        from hasten import sign as run

        public = run(bundle, key)
        click.echo(f"{bundle}: signed by the key {public.name}")
        click.echo(f"to trust it, give: --trusted {public.text}")


@click.command()
@click.argument("key", type=click.Path(path_type=Path))
def keygen(key: Path) -> None:
    """Make a pair of keys: the secret one in the file KEY, the public one next to it with the suffix .pub.

    Anyone who can read the secret key can sign in your name: it has no password. Neither file may be there
    yet.
    """
    with one_line_errors():
        from hasten.bundle.signatures import new_keys

        file, public = new_keys(key)
        click.echo(f"{key}: the secret key; keep it to yourself")
        click.echo(f"{file}: the public key {public.name}, for those who check your bundles")
