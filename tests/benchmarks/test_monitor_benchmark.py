"""The simulation of the monitor, in small: what it counts is what the monitor itself says."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hasten.certificate.monitor import Null

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("monitor")


@pytest.mark.parametrize("nets", [False, True])
def test_streams_hold_the_evidence_that_a_server_would_keep(
    monitor: ModuleType, nets: bool
) -> None:
    nulls = [Null(limit, net=nets) for limit in (0.002, 0.01, 0.2)]
    rng = np.random.default_rng(0)
    values = (rng.random((3, 900)) < 0.02) * rng.choice((0.25, 1.0), (3, 900))
    if nets:
        values -= rng.random((3, 900)) < 0.01
    streams = monitor.Streams(nulls)
    for part in (slice(0, 700), slice(700, 900)):
        streams.add(values[:, part])
    for null, row, value in zip(nulls, values, streams.value, strict=True):
        evidence = null.begun()
        for one in row:
            evidence = evidence.after(null.batch([one]))
        assert np.log(value) == pytest.approx(evidence.log_value, abs=1e-9)


def test_ordinary_traffic_raises_no_alarm_where_the_promise_as_limit_would(
    monitor: ModuleType,
) -> None:
    for name in monitor.ORDINARY:
        row = monitor.ordinary(name, 4, 4000)
        assert (row["streams"], row["alarms"]) == (4, 0)
    assert monitor.ordinary("AUROC", 4, 8000)["by_promise"] == 1


def _small(part: Callable[..., Any], *sizes: int, at: int = 0) -> Callable[..., Any]:
    """Return a part whose sizes, from an argument on, are small whatever is asked for."""
    return lambda *given: part(*given[:at], *sizes, *given[at + len(sizes) :])


def test_each_part_runs(
    monitor: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "false_alarms", _small(monitor.false_alarms, 2, 2000))
    monkeypatch.setattr(monitor, "long", _small(monitor.long, 2, 2000))
    monkeypatch.setattr(monitor, "ordinary", _small(monitor.ordinary, 1, 1000, at=1))
    monkeypatch.setattr(monitor, "delays", _small(monitor.delays, 3))
    monkeypatch.setattr(sys, "argv", ["monitor.py", "--out", str(tmp_path / "found.json")])
    monitor.main()
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert {kind: len(rows) for kind, rows in found.items()} == {
        "false_alarms": 6 + 6 + 2,
        "ordinary": len(monitor.ORDINARY),
        "delays": 10,
    }
    assert all(
        row["low"] <= row["alarms"] / row["streams"] <= row["high"] for row in found["false_alarms"]
    )
