"""The benchmark of small models runs once, untimed: each model is answered alike by all contenders."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_every_contender_answers_every_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("small_models")
    monkeypatch.setattr(benchmark, "BATCHES", (1, 2))
    monkeypatch.setattr(benchmark, "ROWS", 8)
    monkeypatch.setattr(benchmark, "_BUDGET_S", 0.0)
    monkeypatch.setattr(benchmark, "_ROUNDS", 1)
    for name in ("mlp", "transformer"):
        benchmark.compare(name, benchmark.MODELS[name])
    lines = [one for one in capsys.readouterr().out.splitlines() if not one.startswith("without ")]
    for name in ("mlp", "transformer"):
        for batch in (1, 2):
            told = [one for one in lines if one.split()[:2] == [name, str(batch)]]
            assert [one[19:43].strip() for one in told][:4] == [
                "hasten bind",
                "ONNX Runtime IO binding",
                "ONNX Runtime run",
                "OpenVINO",
            ]
