"""The races of benchmarks/folding.py run once, small: their ways give the same answers, and each figure is printed."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("folding")
    monkeypatch.setattr(module, "SIDE", 32)
    monkeypatch.setattr(module, "SIDES", (16,))
    monkeypatch.setattr(module, "PHOTOS", 2)
    return module


def test_every_race_prints_its_figures(
    folding: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The forms' answers are compared inside, and so are those of the ways to normalize and of ArgMax."""
    out = tmp_path / "figures.json"
    given = ["folding.py", "--rounds", "2", "--calls", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    folding.main()
    said, records = capsys.readouterr().out, json.loads(out.read_text())
    for engine in folding.ENGINES:
        assert records["forms"][engine].keys() == folding.FORMS.keys()
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert all(form in lines for form in folding.FORMS)
    ratios = [
        each["ratio"]
        for race in (records["normalize"], records["argmax"]["21 x 16 x 16"])
        for each in race.values()
    ]
    assert all(least <= estimate <= most for estimate, least, most in ratios)
    for mode in folding.FILTERS:
        smooth, rough = (records["resize"][f"{mode}, antialias={one}"] for one in (1, 0))
        # Without antialiasing far more of a photograph's values differ from Pillow's, and by more.
        assert smooth["values that differ"] < rough["values that differ"]
        assert smooth["largest difference"] < rough["largest difference"]


def test_what_a_way_adds_is_paired_by_rounds(folding: Any) -> None:
    slow = {number: (1_000 * number,) * 3 for number in range(1, 11)}  # the host gets ever slower
    slower = {number: tuple(span + 5_000 for span in each) for number, each in slow.items()}
    assert folding.added(slower, slow) == (5.0, 5.0, 5.0)
    assert np.median(folding.lows(slower)) - np.median(folding.lows(slow)) == 5.0


def test_a_race_that_is_not_there_is_refused(folding: Any) -> None:
    with pytest.raises(SystemExit, match="there is no race 'layout'; there are forms, normalize"):
        list(folding.chosen("forms,layout"))
