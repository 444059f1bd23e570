"""The benchmark of rows runs once, untimed: each way is asked, in this process and in batches."""

import importlib
from pathlib import Path

import pytest

import hasten

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_each_way_of_asking_is_timed_and_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rows = importlib.import_module("rows")
    path = rows.bundle(tmp_path)
    with hasten.load(path, cache=tmp_path) as fast:
        times = rows.in_process(fast, 1)
    assert all(len(spent) == 1 for spent in times.values())
    monkeypatch.setattr(rows, "BATCHES", (64,))
    shared = rows.batches(path, 2, tmp_path)
    assert {len(spent) for spent in shared.values()} == {2}
    rows.table({name: spent * 20 for name, spent in times.items()}, "bind: the call alone")
    assert "bind_row: JSON" in capsys.readouterr().out
    asked = {name: [1.0] for name in (rows.ROW, rows.OWN_ECHO, rows.ECHO)}
    rows.table(rows.whole_path(times, asked), blocks=1)
    path = capsys.readouterr().out.splitlines()
    assert path[0].startswith("the model's own call ")
    assert path[-1].startswith("over HTTP, the row's JSON ")
