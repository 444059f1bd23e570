"""How often claims about samples are false where groups differ in size or samples repeat one another.

400 runs each of the simulations in benchmarks/certificate.py, whose tables come from 20,000.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from hasten.certificate.exact import clopper_pearson_upper

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS, ALPHA = 400, 0.05


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("certificate")


def surely_above(false: int) -> float:
    """Return a share of false certificates above which the true one lies with 97.5% confidence."""
    return 1 - clopper_pearson_upper(RUNS - false, RUNS, 0.025)


@pytest.mark.parametrize("path", ["unequal_groups", "few_repeats", "copied_rows"])
def test_a_claim_about_samples_is_false_in_at_most_5_percent_of_runs(
    simulated: ModuleType, path: str
) -> None:
    false = simulated.count(getattr(simulated, path), RUNS, 0)
    assert surely_above(false) <= ALPHA
    before = simulated.count(getattr(simulated, f"{path}_before"), RUNS, 0)
    assert surely_above(before) > ALPHA


@pytest.mark.parametrize(
    ("attack", "setting"),
    [
        (
            "groups of unequal size",
            {
                "count": 400,
                "limit": 0.2,
                "share": 0.3,
                "size": 3,
                "fails": "small",
                "whole": True,
            },
        ),
        ("repeats", {"n": 1000, "limit": 0.01, "share": 0.005, "inputs": 3, "wrong": True}),
        ("rows copied", {"count": 400, "limit": 0.05, "most": 8, "growing": True}),
    ],
)
def test_nor_is_it_where_an_attack_came_closest(
    simulated: ModuleType, attack: str, setting: dict[str, object]
) -> None:
    attacks = importlib.import_module("certificate_attacks")
    (found,) = (one for one in attacks.ATTACKS if one.name == attack)
    assert setting in found.settings
    false = simulated.count(lambda rng: found.false(rng, **setting), RUNS, 0)
    assert false > 0  # such data can be certified at all
    assert surely_above(false) <= ALPHA
