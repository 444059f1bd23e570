"""Define `hasten completion`, which prints the script that completes commands in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print a script for SHELL that completes commands, options, names and files at the Tab key.

    \b
    For every shell from now on, type the line of yours once:
      echo 'eval "$(hasten completion bash)"' >> ~/.bashrc
      echo 'eval "$(hasten completion zsh)"' >> ~/.zshrc
      hasten completion fish > ~/.config/fish/completions/hasten.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "hasten", "_HASTEN_COMPLETE").source())
