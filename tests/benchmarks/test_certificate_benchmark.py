"""The simulations of certificates: their tables are made, sums are right, and attacks find what is wrong."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from hasten.certificate import draws
from hasten.certificate.betting import BettingPrior, betting_certifies
from hasten.certificate.exact import clopper_pearson_upper

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Module = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_every_path_has_a_row(module: Module, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = module("certificate")
    certificate.false_rates(2, "")
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split("|")[1].strip() for row in rows] == [path.name for path in certificate.PATHS]


def test_every_attack_runs_by_its_first_and_its_last_setting(module: Module) -> None:
    attacks = module("certificate_attacks")
    rng = np.random.default_rng(0)
    with attacks.deciding_alone():
        for attack in attacks.ATTACKS:
            for setting in (attack.settings[0], attack.settings[-1]):
                assert attack.false(rng, **setting) in (False, True), attack.name


def test_an_attack_reports_the_worst_setting_by_runs_of_its_own(
    module: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = module("certificate_attacks")
    planted = attacks.Attack(
        "planted",
        lambda rng, chance: rng.random() < chance,
        attacks.settings(chance=(0.0, 0.01, 0.3, 0.1)),
        slowness=2,
    )
    found = attacks.attacked(planted, 8000)
    assert (found.worst, found.scanned, found.runs) == ({"chance": 0.3}, 400, 4000)
    assert found.share.low < 0.3 < found.share.high
    monkeypatch.setattr(attacks, "ATTACKS", (planted,))
    attacks.attack(400, "planted")
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| planted | 4 | chance 0.3 | ")
    assert row.endswith(", 200 runs |")


def test_an_attack_finds_a_test_at_three_times_its_level(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = module("certificate_attacks")
    (lost,) = (one for one in attacks.ATTACKS if one.name == "lost")
    assert attacks.attacked(lost, 500).share.low <= attacks.ALPHA
    monkeypatch.setattr(
        draws,
        "clopper_pearson_upper",
        lambda count, n, alpha: clopper_pearson_upper(count, n, 3 * alpha),
    )
    assert attacks.attacked(lost, 500).share.low > attacks.ALPHA


def test_the_chance_that_a_test_of_counts_certifies_is_the_sum_over_all_outcomes(
    module: Module,
) -> None:
    rivals = module("certificate_rivals")
    n, limit, lose, gain = 30, 0.15, 0.04, 0.05
    for test in (rivals.exact, rivals.lost_alone, rivals.wald, rivals.bootstrap, rivals.mcnemar):
        whole = sum(
            stats.multinomial.pmf([lost, gained, n - lost - gained], n, [lose, gain, 0.91])
            for lost in range(13)
            for gained in range(13)
            if test(lost, gained, n, limit)
        )
        assert rivals.chance(test, n, limit, lose, gain) == pytest.approx(whole, abs=1e-7)


def test_the_bootstrap_by_sums_is_the_one_by_resamples(module: Module) -> None:
    rivals, rng = module("certificate_rivals"), np.random.default_rng(0)
    n, limit = 200, 0.03
    for lost, gained in ((1, 0), (4, 1), (9, 5), (12, 8)):
        falls = np.repeat([1.0, -1.0, 0.0], [lost, gained, n - lost - gained])
        resampled = rng.choice(falls, (20_000, n)).mean(axis=1)
        share = float((resampled >= limit - 1e-9).mean())
        assert abs(share - rivals.ALPHA) > 0.005  # far enough from the level to tell
        assert rivals.bootstrap(lost, gained, n, limit) == (share <= rivals.ALPHA)


def test_betting_on_many_runs_at_once_is_the_betting_of_a_run(module: Module) -> None:
    rivals, rng = module("certificate_rivals"), np.random.default_rng(0)
    drops = rng.choice([1.0, -1.0, 0.0], (60, 400), p=[0.01, 0.01, 0.98])
    each = [betting_certifies(one, 0.03, rivals.ALPHA, BettingPrior()) for one in drops]
    assert 0 < sum(each) < 60
    assert rivals.betting(drops, 0.03).tolist() == each
    n = round(400 / (1 + rivals.SEARCHED))
    known = [
        betting_certifies(one[:n], 0.03, rivals.ALPHA, BettingPrior.from_differences(one[n:]))
        for one in drops
    ]
    assert rivals.betting_after_search(drops, 0.03).tolist() == known


@pytest.mark.parametrize("name", ["hedged_capital", "star"])
def test_published_bets_keep_to_their_level_and_certify_what_is_good(
    module: Module, name: str
) -> None:
    rivals, rng = module("certificate_rivals"), np.random.default_rng(0)
    test = getattr(rivals, name)
    bad = rng.choice([1.0, -1.0, 0.0], (1000, 400), p=[0.035, 0.015, 0.95])
    assert module("certificate_power").Share.of(int(test(bad, 0.02).sum()), 1000).low <= 0.05
    assert test(np.zeros((1, 800)), 0.02).all()
    assert not test(np.zeros((1, 60)), 0.02).any()


def test_the_exact_test_needs_the_fewest_samples_of_those_that_keep_to_their_level(
    module: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    power = module("certificate_power")
    case = limit, lose, gain = 0.04, 0.01, 0.01
    by_name = {rival.name: rival for rival in power.RIVALS}
    own = power.RIVALS[0]
    n = power.fewest(own, *case, 150, 100)
    assert own.passes(limit, n, lose, gain, 1).value >= power.POWER
    assert own.passes(limit, n - 1, lose, gain, 1).value < power.POWER
    assert power.worst(own, limit, n, 1)[1].value <= 0.05
    assert n < power.fewest(by_name["exact binomial on the lost alone"], *case, 150, 100)
    wald = by_name["Wald"]
    assert power.worst(wald, limit, power.fewest(wald, *case, 150, 100), 1)[1].value > 0.05
    monkeypatch.setattr(power, "CASES", (case,))
    power.power(100)
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split("|")[2].strip() for row in rows] == list(by_name)
