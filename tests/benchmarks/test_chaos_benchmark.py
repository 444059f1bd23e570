"""The chaos run, for seconds; and its judge, which must not overlook what is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.evaluation.loadtest.traffic import Fate, Traffic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], Any]
S = 1_000_000_000

for _needed in ("httptools", "openvino", "uvloop"):
    pytest.importorskip(_needed)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import one of the benchmark's modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "chaos"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def traffic(fate: Fate | None, due_s: float = 10.0, took_s: float = 0.01) -> Traffic:
    """Return one request that has ended."""
    one = Traffic([round(due_s * S)], lambda _: None, lanes=1)
    one.fates[0] = fate
    one.ended_ns[0] = 0 if fate is None else round((due_s + took_s) * S)
    return one


def wrongs(load: Load, one: Traffic, *events: Any) -> list[str]:
    return list(load("verdict").judge({"HTTP": one}, events, 1.0).wrongs)


@pytest.mark.parametrize("status", ["503", "504", "UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_right_answer_and_a_clear_refusal_are_right(load: Load, status: str) -> None:
    assert not wrongs(load, traffic(Fate("ok", "200")))
    assert not wrongs(load, traffic(Fate("refused", status)))


@pytest.mark.parametrize(
    ("fate", "took_s", "wrong"),
    [
        (Fate("broken", "200"), 0.01, "HTTP: a wrong answer"),
        (Fate("error", "500"), 0.01, "HTTP: status 500, which is no refusal"),
        (Fate("unanswered"), 0.01, "HTTP: no answer within 60 s"),
        (None, 0.01, "HTTP: no answer within 60 s"),
        (Fate("ok", "200"), 61.0, "HTTP: no answer within 60 s"),
        (Fate("refused", "503"), 61.0, "HTTP: no answer within 60 s"),
        (Fate("connection"), 0.01, "HTTP: a connection was closed though nothing was killed"),
        (
            Fate("error", "CANCELLED"),
            0.01,
            "HTTP: a connection was closed though nothing was killed",
        ),
    ],
)
def test_whatever_else_comes_is_wrong(
    load: Load, fate: Fate | None, took_s: float, wrong: str
) -> None:
    assert wrongs(load, traffic(fate, took_s=took_s)) == [wrong]


@pytest.mark.parametrize(
    ("name", "begin_s", "right"),
    [
        ("kill the worker", 10.0, True),
        ("kill the worker", 5.0, True),
        ("kill the worker", 1.0, False),
        ("kill the worker", 11.0, False),
        ("stopped worker", 10.0, False),
    ],
)
def test_a_connection_may_only_break_in_the_time_of_a_kill(
    load: Load, name: str, begin_s: float, right: bool
) -> None:
    event = load("faults").Event(name, round(begin_s * S), round((begin_s + 3) * S))
    assert (not wrongs(load, traffic(Fate("connection")), event)) == right


def test_a_fault_after_which_the_server_stays_away_is_wrong(load: Load) -> None:
    event = load("faults").Event("kill the worker", 0, 1, failed="it wasn't ready again in 120 s")
    found = wrongs(load, traffic(Fate("ok", "200")), event)
    assert found == ["kill the worker: it wasn't ready again in 120 s"]


def test_answers_of_both_generations_are_right_and_nothing_else_is(
    load: Load, tmp_path: Path
) -> None:
    known = load("known").handwriting(tmp_path / "model")
    first, second = (
        np.stack([known.right[turn, generation] for turn in range(2)]) for generation in (0, 2)
    )
    assert not known.fault(0, first[0].tobytes())
    assert not known.fault(load("known").ASKED, second[0].tobytes())
    assert known.fault(0, first[1].tobytes()).endswith("it is the answer to request 1")
    assert known.fault(0, ((first[0] + second[0]) / 2).tobytes()).endswith("no request has it")
    assert known.fault(0, first.tobytes()).endswith("bytes as its answer; 80 came")


@pytest.mark.slow
def test_a_server_beside_faults_gives_no_wrong_answer_and_leaves_nobody_waiting(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each fault at least once, and without a limit of memory: gRPC's library may fail in it (see design/exposed.md)."""
    model, without = load("known").handwriting, ["little memory"]
    monkeypatch.setattr(load("chaos"), "_MEASURED_S", 1.0)
    result = load("chaos").run(model, tmp_path, 11.0, seed=0, gap_s=0.8, without=without)
    assert not result.all_wrongs, result.log
    assert result.calm.counts["no fault"]["right"]
    names = {event.name for event in result.events}
    assert {"kill the worker", "kill the supervisor", "clock jump", "full disk", "swap"} <= names
