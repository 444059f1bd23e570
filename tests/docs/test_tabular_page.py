"""The page about models of rows: its program runs as it stands, and prints what the page says."""

import re
from pathlib import Path

import pytest
from tests.support.quick import quick_runs

pytestmark = pytest.mark.seconds

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "tabular.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_program_of_the_page_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("lightgbm", "pandas"):
        pytest.importorskip(module, reason="needs the extra tabular")
    (program,) = [block for block in BLOCKS if "import lightgbm" in block]
    said = re.findall(r"This prints `(.*)`\.$", PAGE, re.MULTILINE)
    assert len(said) == 1
    monkeypatch.chdir(tmp_path)
    with quick_runs():
        exec(program, {})
    *_, printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(re.escape(said[0]).replace(re.escape("..."), r"\d+"), printed)
