"""Draw the terminal in which a command runs as SVG pictures: at one moment while it runs, and at its end.

    python scripts/terminal.py docs/pictures/optimize --when "● final timing" -- hasten optimize model.onnx --data eval.npz

writes docs/pictures/optimize-running.svg and docs/pictures/optimize-done.svg. It needs pyte and rich.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import itertools
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

_NAMES = {
    **{"brown": "yellow", "brightbrown": "bright_yellow"},
    **{"bfightmagenta": "bright_magenta"},  # pyte's slip
}
"""Colors that pyte names otherwise than rich."""
_DIM = re.compile(rb"\x1b\[((?:\d+;)*)2(?=[;m])")
"""Sign for dim text, which pyte doesn't know; gray (90) takes its place."""
_PAUSE_S = 0.1
"""Time without output after which a screen is drawn to its end."""


class Terminal:
    """A terminal of a given size, in memory.

    Args:
        columns: Number of columns.
        lines: Number of lines.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)

    def feed(self, data: bytes) -> None:
        """Take what a program wrote."""
        self._stream.feed(_DIM.sub(b"\x1b[\\g<1>90", data))

    def shows(self, text: str) -> bool:
        """Whether a text is on one of the lines."""
        return any(text in line for line in self.screen.display)

    def svg(self, title: str, name: str) -> str:
        """Return the screen as an SVG, without the empty lines at its end.

        Args:
            title: Command, to show above its output.
            name: Word that is unique among the pictures of a page.
        """
        shown = [line.rstrip() for line in self.screen.display]
        last = max((number for number, line in enumerate(shown) if line), default=0)
        console = Console(
            record=True, width=self.screen.columns, file=io.StringIO(), force_terminal=True
        )
        for number in range(last + 1):
            console.print(self._line(number), soft_wrap=True)
        # rich's own form loads fonts from a server; a reader's own will do.
        form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        return console.export_svg(title=title, code_format=form, unique_id=name)

    def _line(self, number: int) -> Text:
        text, row = Text(no_wrap=True), self.screen.buffer[number]
        cells = [row[column] for column in range(self.screen.columns)]
        for style, alike in itertools.groupby(cells, _style):
            text.append("".join(cell.data for cell in alike), style)
        text.rstrip()
        return text


def _style(cell: pyte.screens.Char) -> Style:
    return Style(color=_color(cell.fg), bgcolor=_color(cell.bg), bold=cell.bold)


def _color(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return _NAMES.get(name, re.sub("^bright(?!_)", "bright_", name))


def run(command: Sequence[str], terminal: Terminal, when: str, picture: Callable[[], None]) -> None:
    """Run a command in a terminal until it ends.

    Args:
        command: The command and its arguments.
        terminal: Terminal to show it in.
        when: Text at whose first sight a picture is made; empty for none.
        picture: Function that makes it.
    """
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", terminal.screen.lines, terminal.screen.columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    waits, seen = bool(when), False
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            while True:
                if waits and seen and not select.select([ours], [], [], _PAUSE_S)[0]:
                    waits = False
                    picture()  # not amid a redrawing
                if not (data := _read(ours)):
                    break
                terminal.feed(data)
                seen = seen or (waits and terminal.shows(when))
        except BaseException:
            process.kill()
            raise
    os.close(ours)
    if process.returncode:
        sys.exit(f"terminal.py: {' '.join(command)} ended with {process.returncode}")
    if waits:
        sys.exit(f"terminal.py: {when!r} was never there long enough for a picture")


def _read(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except OSError:  # Linux says so where the other end is closed
        return b""


def main() -> None:
    """Run the command, and write its pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path, help="beginning of the names of the SVG files")
    parser.add_argument("--when", default="", help="text at whose first sight a picture is made")
    parser.add_argument("--title", help="command to show above; by default the one that runs")
    parser.add_argument("--columns", type=int, default=100, help="columns of the terminal")
    parser.add_argument("--lines", type=int, default=40, help="lines of the terminal")
    parser.add_argument("command", nargs="+", help="command to run, after --")
    given = parser.parse_args()
    terminal = Terminal(given.columns, given.lines)
    title = given.title or " ".join(given.command)

    def draw(name: str) -> None:
        file = given.picture.with_name(f"{given.picture.name}-{name}.svg")
        file.write_text(terminal.svg(title, name))
        print(file, flush=True)

    run(given.command, terminal, given.when, lambda: draw("running"))
    draw("done")


if __name__ == "__main__":
    main()
