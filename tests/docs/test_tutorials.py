"""Each tutorial runs from its own code blocks; `tests/support/tutorials.py` says how."""

from pathlib import Path

import pytest
from tests.support.tutorials import TUTORIALS, follow, script_of

pytest.importorskip("markdown_it")

ELSEWHERE = ("index", "fpga", "first-ten-minutes")
"""The FPGA's tools are in another environment: make test-fpga. The last is run as its notebook, which has the same blocks."""
PAGES = sorted(page for page in TUTORIALS.glob("*.md") if page.stem not in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_tutorial_runs_from_its_own_blocks(tmp_path: Path, page: Path) -> None:
    follow(page, tmp_path)


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
