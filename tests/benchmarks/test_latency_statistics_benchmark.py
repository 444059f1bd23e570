"""The simulation of latencies runs once, on little data: what it prints is made, not judged."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_each_table_has_a_row_for_each_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    simulated = importlib.import_module("latency_statistics")
    monkeypatch.setattr(simulated, "LONG", 200)
    rng = np.random.default_rng(0)
    simulated.tails(1, rng, (40,))
    simulated.replicates(2, rng)
    simulated.means(1, rng)
    tails, processes, intervals, means = capsys.readouterr().out.split("\n\n")
    assert len(tails.splitlines()) == 2 + len(simulated.CASES)
    assert len(processes.splitlines()) == 2 + 4 * 3
    assert len(intervals.splitlines()) == 2 + 3
    assert len(means.splitlines()) == 2 + 5
