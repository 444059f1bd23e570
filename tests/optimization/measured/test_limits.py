"""Which latencies are set against a floor, and what is said of the others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import hasten.optimization.measured.limits
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.bandwidth import Level
from hasten.measure.candidate import Single
from hasten.measure.deadline import Deadline
from hasten.measure.race import BASELINE, Standings
from hasten.measure.roofline import Ceilings, LayerWork
from hasten.optimization.measured.racing import Racing
from hasten.reporting.result import Limit

MEMORY = Level("memory", None, copied_bytes_per_s=1e12, read_bytes_per_s=1e12)
CEILINGS = Ceilings(1, {"f32": 1e9}, {"f32": "some kernel"}, (MEMORY,), empty_call_ns=100)
CONV = LayerWork("conv", "Conv", operations=1000)


def limited(
    monkeypatch: pytest.MonkeyPatch, p50_ns: int, *layers: LayerWork
) -> tuple[tuple[Limit, ...], list[str]]:
    """Set one model of some layers against a machine of 1 operation/ns; return what is said."""
    monkeypatch.setattr(hasten.optimization.measured.limits, "measure", lambda *_, **rest: CEILINGS)
    notes: list[str] = []
    run: Any = SimpleNamespace(
        bench=SimpleNamespace(target=Target.host(), folder=Path(), work=lambda passes: layers),
        trials=SimpleNamespace(done={}, measured=list),
        candidate=lambda key: Single((), OnnxRuntime()),
        job=SimpleNamespace(notes=notes, deadline=Deadline()),
        ready=SimpleNamespace(steps_each=1.0),
    )
    final = Standings("final", threads=1, rounds={BASELINE: dict.fromkeys(range(2), (p50_ns,))})
    shown = dict.fromkeys(("default engine", "winner"), ("key", BASELINE))
    of_roles, _ = hasten.optimization.measured.limits.limits(cast(Racing, run), final, shown, {})
    return of_roles, notes


def test_a_latency_is_set_against_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    found, notes = limited(monkeypatch, 2200, CONV)
    assert found == (
        Limit("default engine", 1100, 2.0, "arithmetic"),
        Limit("winner", 1100, 2.0, "arithmetic"),
    )
    assert not notes


def test_no_floor_above_a_latency_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limited(monkeypatch, 1000, CONV) == (
        (),
        [
            "it isn't known how far default engine and winner are from the machine's limit: they "
            "took less time than the machine's ceilings allow, so the ceilings were measured too "
            "low: run again while nothing else runs"
        ],
    )


def test_no_floor_of_a_part_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limited(monkeypatch, 10**9, CONV, LayerWork("own", "Own")) == (
        (),
        [
            "it isn't known how far default engine and winner are from the machine's limit: the work of "
            "1 of 2 layers can't be counted: 'own'"
        ],
    )
