"""The benchmark of the ceilings runs once, untimed, on small kernels: what it prints is made, not judged."""

import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hasten.measure import ceilings, kernels

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ceilings.py"
TOOLS = ("numpy (OpenBLAS), product", "torch (oneDNN), bf16 product", "the same around the caches")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("tools", "turns"),
    [
        (TOOLS[:1], "2"),
        pytest.param(TOOLS[1:], "1", marks=pytest.mark.slow),
    ],
)
def test_each_tool_has_a_row_beside_what_it_is_compared_with(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tools: Sequence[str],
    turns: str,
) -> None:
    for module, name, value in (
        (kernels, "_SIDE", 64),
        (kernels, "_CHANNELS", 16),
        (kernels, "_PIXELS", 8),
        (ceilings, "TURNS", 1),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *tools, "--turns", turns, "--threads", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert f" 1 thread(s), {turns} turns in " in said
    assert [row.split(" | ")[3] for row in rows] == list(tools)
    assert {row.count("|") for row in rows} == {head.count("|")}
    interval = r"\([\d.]+ to [\d.]+\) \|" if turns == "2" else r"\|"
    assert re.search(rf"\| [\d.]+ \| [\d.]+ \| [\d.]+ {interval}$", rows[0])


def test_of_several_turns_the_mean_ratio_has_its_interval() -> None:
    ratio = runpy.run_path(str(SCRIPT))["ratio"]
    assert ratio([3.0], [2.0]) == "1.50"
    assert ratio([4.0, 4.0], [2.0, 2.0]) == "2.00 (2.00 to 2.00)"
    assert ratio([2.0, 8.0, 4.0], [2.0, 2.0, 2.0]) == "2.00 (0.36 to 11.19)"


def test_a_tool_that_fails_says_why_in_its_row() -> None:
    line = runpy.run_path(str(SCRIPT))["line"]
    assert line("numpy (OpenBLAS), product", [], ["ImportError: no numpy"]) == (
        "| f32 | 0.0 | not on this processor | numpy (OpenBLAS), product | - | - | "
        "ImportError: no numpy |"
    )
