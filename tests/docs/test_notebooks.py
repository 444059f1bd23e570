"""The notebook of a tutorial is its page, cell by cell, and runs."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tests.support.tutorials import path_of_a_reader

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
IDS = [notebook.stem for notebook in NOTEBOOKS]
LIMIT_S = 1500


def script() -> Any:
    """Import the program that writes notebooks, which is in no package."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "scripts" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_notebook_has_a_cell_for_each_block_that_is_run() -> None:
    page = """# Title

Text.

```python title="a.py"
x = 1
```

<!-- not run: it opens a browser -->
```bash
xdg-open a.html
```

```bash
python a.py
```

```text
output
```

```python
print(1)
```
"""
    cells = nbformat.reads(script().notebook_of(page), as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        ("markdown", "# Title\n\nText."),
        ("code", "%%writefile a.py\nx = 1"),
        ("markdown", "<!-- not run: it opens a browser -->\n```bash\nxdg-open a.html\n```"),
        ("code", "%%bash\npython a.py"),
        ("markdown", "```text\noutput\n```"),
        ("code", "print(1)"),
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_is_what_its_page_says(notebook: Path) -> None:
    page = notebook.with_suffix(".md").read_text()
    assert notebook.read_text() == script().notebook_of(page), "write it anew by make notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", path_of_a_reader(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "empty"
    folder.mkdir()
    cells = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        cells,
        timeout=LIMIT_S,
        startup_timeout=LIMIT_S,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
