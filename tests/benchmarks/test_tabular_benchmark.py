"""The benchmark of models for rows runs once, untimed; answers are compared before anything is timed."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("lightgbm")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with little work, and without what compiles for seconds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    made = importlib.import_module("tabular")
    for name, value in {"TRAINED": 400, "ROWS": 64, "BLOCK": 8, "BATCHES": (4,)}.items():
        monkeypatch.setattr(made, name, value)
    monkeypatch.setattr(made, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(made, "MAKERS", made.MAKERS[:4])
    small = {"trees": 3, "num_leaves": 4}
    monkeypatch.setattr(made, "CASES", {"small": made._of_lightgbm(odd=True, **small)})
    monkeypatch.setattr(sys, "argv", ["tabular.py", "--seconds", "0"])
    return made


def test_every_way_to_answer_is_in_both_tables(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main()
    said = capsys.readouterr().out
    assert "left out" not in said
    assert "otherwise" not in said
    lines = [line[:38].strip() for line in said.splitlines()]
    ways = ["hasten, bind", "hasten, load(...)(rows)", "LightGBM, predict"]
    runtime = ["ONNX Runtime, run", "ONNX Runtime, IO binding"]
    assert [one for one in lines if ", " in one and "us a call" not in one] == [
        *ways,
        "LightGBM, raw",
        *runtime,
        *ways,
        *runtime,
    ]


def test_a_wrong_answer_of_its_own_ends_the_benchmark(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(model: object) -> object:
        right = benchmark.of_lightgbm(model)
        return lambda rows: np.where(np.arange(len(rows)) == 7, 0.5, right(rows))

    case = functools.partial(benchmark.Case, "LightGBM", "lightgbm")
    train = benchmark.CASES["small"].train
    monkeypatch.setattr(benchmark, "CASES", {"small": case(train, moved, True)})
    with pytest.raises(AssertionError, match=r"hasten, bind answers 1\.56% of rows otherwise"):
        benchmark.main()
