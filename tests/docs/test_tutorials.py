"""Each tutorial runs from its own code blocks, in an empty folder, as a reader would run it.

A block with a title is a file of that name, a block of bash is typed into one shell, and a block of Python without a
title is a program. Blocks of other kinds are what a reader sees. A block after the comment
`<!-- not run: REASON -->` is left out.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

markdown_it = pytest.importorskip("markdown_it")

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(page for page in TUTORIALS.glob("*.md") if page.name != "index.md")
LIMIT_S = 600


def script_of(text: str) -> str:
    """Return a page's blocks as one bash script."""
    parts = ["set -euo pipefail"]
    left_out = False
    for token in markdown_it.MarkdownIt().parse(text):
        if token.type == "html_block" and token.content.startswith("<!-- not run:"):
            left_out = True
        if token.type != "fence":
            continue
        language = token.info.partition(" ")[0]
        title = re.search(r'title="([^"]+)"', token.info)
        if left_out:
            left_out = False
        elif title:
            parts.append(
                f"mkdir -p $(dirname {title[1]}); {_typed(f'cat > {title[1]}', token.content)}"
            )
        elif language == "bash":
            parts.append(token.content)
        elif language == "python":
            parts.append(_typed("python -", token.content))
    return "\n".join(parts)


def _typed(command: str, text: str) -> str:
    return f"{command} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_tutorial_runs_from_its_own_blocks(tmp_path: Path, page: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(TUTORIALS.parents[1] / "src"),
        "HOME": str(tmp_path),
    }
    with (tmp_path / "said").open("w+") as said:
        shell = subprocess.Popen(
            ["bash", "-c", script_of(page.read_text())],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what it leaves running ends with it
        )
        try:
            code = shell.wait(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        said.seek(0)
        assert code == 0, said.read()[-5000:]


def test_a_script_has_files_commands_and_programs_and_nothing_else() -> None:
    page = """
```python title="a.py"
x = 1
```

<!-- not run: it needs a GPU -->
```bash
never
```

```text
output
```

```bash
python a.py
```
"""
    assert script_of(page) == (
        "set -euo pipefail\nmkdir -p $(dirname a.py); cat > a.py <<'END_OF_BLOCK'\nx = 1\nEND_OF_BLOCK\n"
        "python a.py\n"
    )
