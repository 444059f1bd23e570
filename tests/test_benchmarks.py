"""The benchmarks run once, untimed: what they print is made, not judged."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.data.arrays import ArrayDataset
from hasten.testing.quick import quick_runs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_overhead_of_a_loaded_bundle_is_printed(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead.py", str(exact_bundle)])
    runpy.run_path(str(BENCHMARKS / "overhead.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"{exact_bundle.name}: load(...)(x) adds ")


def test_the_table_of_speedups_has_a_row_per_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import models  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    data = ArrayDataset({"input": rng.standard_normal((200, 8), np.float32)})
    module = torch.nn.Sequential(torch.nn.Linear(8, 3))
    monkeypatch.setattr(models, "MODELS", {"tiny": (1.0, lambda: (module, data, False))})
    monkeypatch.setattr(sys, "argv", ["speedups.py"])
    with quick_runs():
        runpy.run_path(str(BENCHMARKS / "speedups.py"), run_name="__main__")
    head, _, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| tiny (latency only) | ")
    assert head.count("|") == row.count("|")
