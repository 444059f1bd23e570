"""Run a tutorial from its own code blocks, in an empty folder, as a reader would run it.

A block with a title is a file of that name, a block of bash is typed into one shell, and a block of Python without a
title is a program. Blocks of other kinds are what a reader sees. A block after the comment
`<!-- not run: REASON -->` is left out.

The blocks are typed as they are. Only `hasten optimize` times its candidates for less long than a reader's would, and
ends within `SEARCH` where its page gives it minutes; such a page says that its steps work with any outcome. Elsewhere
it tries of all passes `PASS` alone. And
`hasten lighten` counts what networks compute where a reader's would time them, since a page's budget is for its
author's machine; it trains for `TRAINING`, and its search is as short as the other's and tries no int8 but `PASS`.
`hasten loadtest` sends requests for `LOAD`, and for `LASTING` where a page says 15 s: that load must last while a model
is replaced. HASTEN_TUTORIALS=whole does all as a reader's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
LIMIT_S = 1500
"""Below the limit of a slow test: a busy machine takes several times as long as an idle one."""
SEARCH = "10s"
PASS = "static_quantization"
TRAINING = "0.1"
"""In minutes, as the option says it."""
LOAD, LASTING = "1s", "8s"
_HASTEN = """#!/bin/sh
export PATH="{programs}"
case "$1 $*" in
optimize*--time-limit*) set -- -m tests.support.quick "$@" --time-limit {search} ;;
optimize*) set -- -m tests.support.quick "$@" --pass {only} ;;
lighten*) set -- -c "{lighten}" "$@" --minutes {training} --pass {only} ;;
loadtest*"--for 15s"*) exec hasten "$@" --for {lasting} ;;
loadtest*) exec hasten "$@" --for {load} ;;
*) exec hasten "$@" ;;
esac
export PYTHONPATH="$PYTHONPATH:{root}"
HASTEN_TEST_PLOTS=1 exec python "$@"
"""
_LIGHTEN = """
from hasten.cli import main
from tests.lightening.conftest import by_counts
from tests.support.quick import quick_runs
with quick_runs(plots=True), by_counts(0.03):
    main()
"""


def script_of(text: str) -> str:
    """Return a page's blocks as one bash script."""
    from markdown_it import MarkdownIt

    parts = ["set -euo pipefail"]
    left_out = False
    for token in MarkdownIt().parse(text):
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


def path_of_a_reader(home: Path) -> str:
    """Return the PATH on which a reader finds the programs of this environment, with shorter searches.

    Args:
        home: Folder for the program that stands in for `hasten`.
    """
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if os.environ.get("HASTEN_TUTORIALS") == "whole":
        return programs
    script = home / "programs" / "hasten"
    script.parent.mkdir()
    short = {"search": SEARCH, "only": PASS, "training": TRAINING, "load": LOAD, "lasting": LASTING}
    script.write_text(_HASTEN.format(programs=programs, root=ROOT, lighten=_LIGHTEN, **short))
    script.chmod(0o755)
    return f"{script.parent}:{programs}"


def follow(page: Path, home: Path) -> None:
    """Run a page's blocks in an empty folder in `home`, with the programs of this environment.

    Raises:
        AssertionError: a block failed; the message is the end of what was printed.
        subprocess.TimeoutExpired: the page takes longer than `LIMIT_S` seconds.
    """
    folder = home / "empty"
    folder.mkdir()
    environment = os.environ | {
        "PATH": path_of_a_reader(home),
        "PYTHONPATH": str(ROOT / "src"),
        "HOME": str(home),
    }
    with (home / "said").open("w+") as said:
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
