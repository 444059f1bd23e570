"""The simulation of figures over a set runs once, on little data: what it prints is made, not judged."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_both_tables_have_a_row_for_each_kind_of_data_and_each_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulated = importlib.import_module("set_metrics")
    monkeypatch.setattr(simulated, "LARGE", 2000)
    simulated.certificates(10, np.random.default_rng(0))
    simulated.intervals(1, np.random.default_rng(0))
    certified, held = capsys.readouterr().out.split("\n\n")
    assert len(certified.splitlines()) == 2 + len(simulated.CELLS)
    assert [line.split("|")[1].strip() for line in held.splitlines()[2:]] == [
        "AUROC",
        "KS",
        "Brier score",
        "log loss",
        "calibration error",
        "average precision",
        "macro F1",
    ]
