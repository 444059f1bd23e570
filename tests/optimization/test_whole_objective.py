"""Whole runs by p50, by the mean and by p99."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


def optimize(folder: Path, **options: Any) -> Result:
    """The rival is quick but for every fourth request, which takes ten times the baseline's time."""
    return hasten.optimize(
        models.linear_classifier(folder),
        np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32),
        out=folder / "b.hasten",
        engines=("tests.support.rivals:Stalling",),
        max_drop=0.05,
        **options,
    )


def stalls(bundle: Path) -> bool:
    return bool(read(bundle).winner.engine["stall_every"])


@pytest.mark.parametrize("objective", ["p50", "mean"])
def test_what_stalls_does_not_ship_whatever_its_median(tmp_path: Path, objective: str) -> None:
    result = optimize(tmp_path, objective=objective)
    assert not stalls(result.bundle)
    assert result.objective == objective
    stalled = "times the mean latency of the fastest exact form" in result.why
    assert stalled == (objective == "p50")  # by the mean it isn't even on the ladder


def test_a_p99_that_a_few_rounds_do_not_show_leaves_the_choice_to_the_mean(
    tmp_path: Path,
) -> None:
    with quick_runs(rounds=4, races=False):
        result = optimize(tmp_path, objective="p99")
    assert not stalls(result.bundle)
    assert result.objective == "mean"
    assert result.notes[-1] == (
        "p99 can't be estimated from 12 fresh rounds, so means are compared instead"
    )


def test_another_objective_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hasten.InputError) as error:
        optimize(tmp_path, objective="p95")
    assert str(error.value) == "the objective is p50, p99 or mean: got 'p95'"
    assert not (tmp_path / "b.hasten.work").exists()
