"""The benchmark of credit scores runs once, on a small table with words and missing values."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs

pytest.importorskip("lightgbm")


def latencies_of(asked: Asked) -> Sequence[int]:
    """Compiled C takes a tenth of ONNX Runtime's time, so that it ships."""
    return (10_000,) if asked["engine"]["type"] == "compiled" else (100_000,)


def test_figures_before_and_after_are_of_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    credit = importlib.import_module("credit")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "rownames": np.arange(600),
            "age": rng.integers(18, 80, 600),
            "sum": rng.lognormal(8, 1, 600),
            "housing": rng.choice(["own", "rent", "free"], 600),
        }
    )
    frame.loc[::7, "sum"] = np.nan
    wrong = (frame.age < 35) ^ (frame.housing == "rent") ^ (rng.random(600) < 0.1)
    frame["Status"] = np.where(wrong, "bad", "good")
    data = credit._credits("small", frame, "Status")
    assert list(data.rows) == ["age", "sum", "housing"]
    with quick_runs(), nominal_times(latencies_of):
        row = credit.row_of(data, 4, tmp_path / "small.hasten", engines=["onnxruntime", "compiled"])
    assert credit.line(row).count("|") == credit.line(credit.HEAD).count("|")
    cells = dict(zip(credit.HEAD, row, strict=True))
    assert cells["data"] == "small"
    trained, judged, sealed = cells["rows: trained, judged, sealed"].split(", ")
    assert (trained, judged) == ("300", "300")
    assert 0 < int(sealed) < 300
    assert "none" not in row
    before, after = map(float, cells["AUROC"].split(", "))
    assert before == pytest.approx(
        after, abs=0.01
    )  # last bits decide who is before whom of equal scores
    assert after > 0.6
    assert cells["decisions that change"] == f"0 of {sealed}"
    assert row[-1].endswith(", 0")
