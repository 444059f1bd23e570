"""Write a tutorial's notebook from its Markdown, cell by cell.

    python scripts/notebook.py docs/tutorials/first-ten-minutes.md

writes first-ten-minutes.ipynb beside it. A block with a title becomes a cell that writes that file, a block of bash a
cell of bash, and a block of Python without a title a cell of Python, as `tests/docs/test_tutorials.py` runs them. All
else is text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOT_RUN = "<!-- not run:"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook_of(text: str) -> str:
    """Return a page as a notebook's JSON."""
    lines = text.splitlines(keepends=True)
    cells, begin, left_out = [], 0, False
    for token in MarkdownIt().parse(text):
        if token.type == "html_block" and token.content.startswith(NOT_RUN):
            left_out = True
        if token.type != "fence" or token.map is None:
            continue
        magic = _magic(token.info)
        if left_out or magic is None:
            left_out = False
            continue
        cells.append(new_markdown_cell("".join(lines[begin : token.map[0]]).strip()))
        cells.append(new_code_cell(magic + token.content.rstrip("\n")))
        begin = token.map[1]
    cells.append(new_markdown_cell("".join(lines[begin:]).strip()))
    kept = [cell for cell in cells if cell.source]
    for number, cell in enumerate(kept):
        cell.id = str(number)  # else random: the file would change each time
    return str(nbformat.writes(new_notebook(cells=kept, metadata={"kernelspec": KERNEL}))) + "\n"


def _magic(info: str) -> str | None:
    """Return the first line of a block's cell; None where the block isn't run."""
    title = re.search(r'title="([^"]+)"', info)
    if title:
        return f"%%writefile {title[1]}\n"
    return {"bash": "%%bash\n", "python": ""}.get(info.partition(" ")[0])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.with_suffix(".ipynb").write_text(notebook_of(page.read_text()))
