"""The benchmark of int8 networks: what it says of memory, and the processes that it keeps busy."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.onnx import load
from hasten.testing import models


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_the_memory_of_a_call_is_the_most_that_it_held() -> None:
    found = importlib.import_module("memory").grown_bytes(lambda: len(b"x" * (80 << 20)))
    assert 76 << 20 < found < 100 << 20  # the system counts in steps


def test_a_first_and_a_second_opening_are_measured_apart(tmp_path: Path) -> None:
    request = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    model = load(models.small_cnn(tmp_path)).settled_by(request)
    engine, target = CompiledC(), Target.host()
    (tmp_path / "built").mkdir()
    artifact = engine.build(model, target, tmp_path / "built")
    peaks = importlib.import_module("openings").peaks
    told = peaks(engine, artifact, target, tmp_path / "cache", request)
    assert re.fullmatch(r"peak \d+\.\d and \d+\.\d times 0\.\d MB", told)
    assert [*(tmp_path / "cache").rglob("*")]  # the second opening had what the first one kept


def test_processes_are_busy_while_a_block_runs_and_end_with_it() -> None:
    pytest.importorskip("torch")
    benchmark = importlib.import_module("compiled")
    children = Path("/proc/self/task")

    def own() -> set[str]:
        lists = (one / "children" for one in children.iterdir())
        return {child for one in lists for child in one.read_text().split()}

    before = own()
    with benchmark.busy(2):
        during = own() - before
    assert len(during) == 2
    assert not during & own()
