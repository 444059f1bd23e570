"""Draw what a command prints as an SVG picture of a terminal.

    python examples/clinic/clinic.py | python examples/pictures/draw.py examples/pictures/clinic.svg \
        --title "python examples/clinic/clinic.py"

It reads the output from its standard input, passes it on, and needs the extra `optimize`.
"""

import argparse
import html
import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text


def drawn(lines: list[str], title: str, name: str) -> str:
    """Return an SVG of lines as a terminal shows them.

    Args:
        lines: Lines of the output, without their ends.
        title: Command that printed them.
        name: Word that is unique among the pictures of a page.
    """
    width = max(len(line) for line in lines) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    # rich's own form loads fonts from a server; a reader's own will do.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace(
        "<svg ", f'<svg role="img" aria-label="What {html.escape(title)} prints" ', 1
    )
    return console.export_svg(title=title, code_format=form, unique_id=name)


def main() -> None:
    """Draw the first lines of the standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="SVG file to write")
    parser.add_argument("--title", required=True, help="command, to show above its output")
    parser.add_argument("--first", type=int, default=40, help="number of lines to show")
    given = parser.parse_args()
    lines = []
    for line in sys.stdin:
        sys.stdout.write(line)
        lines.append(line.rstrip("\n"))
    if not lines:
        sys.exit("draw.py: nothing came to draw: pipe a command's output into it")
    given.picture.write_text(drawn(lines[: given.first], given.title, given.picture.stem))


if __name__ == "__main__":
    main()
