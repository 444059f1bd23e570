"""Whole runs in which a candidate dies in the middle of a race, by a clock of their own."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs
from tests.support.rivals import Rival

import hasten
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.candidate import Single
from hasten.measure.latency import Round
from hasten.measure.race import AGAIN, BASELINE
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.seconds

LABEL = Single((), Rival(OnnxRuntime(), lossy=True)).label


def optimize(folder: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int, survives: int) -> Result:
    """Run with one rival, eight times as fast; it dies in a race (from 0) after so many rounds."""
    races = itertools.count()

    def rounds(entrants: dict[str, Any], *_: Any, **__: Any) -> Iterator[Round]:
        race = next(races)
        for number in itertools.count():
            dies = race == dies_in and number == survives
            failed = {
                who: "it crashed" for who in entrants if dies and who not in (BASELINE, AGAIN)
            }
            block: dict[str, tuple[int, ...]] = {
                who: (8_000_000 if who in (BASELINE, AGAIN) else 1_000_000,) * 3
                for who in entrants
                if who not in failed
            }
            yield Round(number, block, failed, True)

    monkeypatch.setattr("hasten.measure.race.rounds", rounds)
    with quick_runs(races=False):
        return hasten.optimize(
            models.linear_classifier(folder),
            np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32),
            max_drop=0.05,
            metric="agreement",
            out=folder / "b.hasten",
            engines=("tests.support.rivals:Rival",),
        )


@pytest.mark.parametrize("survives", [0, 1, 3])
def test_who_dies_in_the_race_is_never_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    result = optimize(tmp_path, monkeypatch, 0, survives)
    assert result.status == "exact"
    assert result.judgement is None
    assert result.notes == (f"{LABEL} failed in the race: it crashed",)


@pytest.mark.parametrize("survives", [0, 1, 3])
def test_who_dies_in_the_fresh_rounds_does_not_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    result = optimize(tmp_path, monkeypatch, 1, survives)
    assert result.status == "exact"
    assert result.why.endswith(" was certified, but in the final timing it failed")
    assert [row.role for row in result.rows] == ["default engine", "fastest exact"]
    assert f"{LABEL} failed in the fresh rounds: it crashed" in result.notes


def test_who_outlives_both_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert optimize(tmp_path, monkeypatch, 2, 0).status == "certified"
