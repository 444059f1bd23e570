"""The benchmark of recurrent models runs once, untimed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, with one round of two requests."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    found = importlib.import_module("recurrent")
    monkeypatch.setattr(found, "ROUNDS", 1)
    monkeypatch.setattr(found, "REQUESTS", 2)
    return found


def test_every_way_of_a_recurrent_step_is_in_the_table(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recurrent.py", "GRU 40 -> 128, a step"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "C, bound",
        "C, run",
        "C, session of a bundle",
        "C, session, by name",
        "ONNX Runtime, IO binding",
        "ONNX Runtime, run",
        "OpenVINO, infer request",
    ]


def test_sequences_in_batches_are_checked_and_timed(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "BATCHES", (1, 3))
    name = "sensors in batches: GRU 3 -> 32, 100 steps, 6 classes"
    monkeypatch.setattr(sys, "argv", ["recurrent.py", name])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines if line.startswith(name)] == [
        f"{name}, 1 at once",
        f"{name}, 3 at once",
    ]
    ways = ["C, bound", "C, run", "ONNX Runtime, IO binding", "ONNX Runtime, run"]
    ways.append("OpenVINO, infer request")
    named = [line.split("  ")[0] for line in lines]
    assert [line for line in named if line in ways] == 2 * ways
