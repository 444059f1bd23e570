"""Users who run again until something is certified, simulated in small: the fault, and that it is gone."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from hasten.certificate.exact import clopper_pearson_upper

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def reruns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("certificate_reruns")


def test_without_a_ledger_running_again_wins_false_certificates(reruns: ModuleType) -> None:
    found = reruns.simulated("other seeds", 25, 6, 1, remembers=False)
    surely_above = 1 - clopper_pearson_upper(25 - found.any, 25, 0.01)
    assert surely_above > reruns.ALPHA


@pytest.mark.parametrize("habit", ["other seeds", "commits of a pipeline"])
def test_with_one_it_wins_nothing(reruns: ModuleType, habit: str) -> None:
    found = reruns.simulated(habit, 70, 2, 1, remembers=True)
    assert clopper_pearson_upper(found.fooled, found.paying, 0.05) <= reruns.ALPHA


@pytest.mark.slow
@pytest.mark.parametrize(
    "habit", ["other seeds", "variants of near misses", "raised limits", "a few more data"]
)
def test_over_many_runs_a_user_is_fooled_no_oftener_than_in_one(
    reruns: ModuleType, habit: str
) -> None:
    found = reruns.simulated(habit, 200, 10, 0, remembers=True)
    assert 1 - clopper_pearson_upper(200 - found.any, 200, 0.05) <= reruns.ALPHA
    assert clopper_pearson_upper(found.fooled, found.paying, 0.05) <= reruns.ALPHA / 2


def test_every_habit_runs(reruns: ModuleType) -> None:
    for habit in reruns.HABITS:
        assert reruns.simulated(habit, 1, 2, 0, remembers=True).histories == 1
