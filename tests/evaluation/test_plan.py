"""Plans: the chance of a certificate is the one that the tests themselves give."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import special, stats

from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.planning import samples_needed
from hasten.cli import main
from hasten.errors import InputError
from hasten.evaluation.plan import in_words, paired_power, plan_for


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.02), (0.05, 0.01), (0.0, 0.1), (0.03, 0.0)])
def test_the_power_of_the_paired_test_is_the_sum_over_what_it_certifies(
    lost: float, gained: float
) -> None:
    n, limit, alpha = 60, 0.1, 0.05
    whole = 0.0
    for b in range(25):
        for c in range(25):
            weights = special.xlogy([b, c], [lost, gained]).sum()
            rest = special.xlogy(n - b - c, 1 - lost - gained)
            ways = math.lgamma(n + 1) - sum(map(math.lgamma, (b + 1, c + 1, n - b - c + 1)))
            chance = math.exp(ways + weights + rest)
            if chance > 1e-6 and paired_certifies(b, c, n, limit, alpha):
                whole += chance
    assert paired_power(n, lost, gained, limit, alpha) == pytest.approx(whole, abs=3e-4)


@pytest.mark.parametrize(("guard", "share"), [("lost", 0.005), ("changed", 0.01)])
def test_one_share_has_the_power_of_its_binomial(guard: Any, share: float) -> None:
    plan = plan_for(max_drop=0.03, expect_flips=0.01, guard=guard)
    for point in plan.by_size:
        counts = np.arange(point.samples + 1)
        passes = [clopper_pearson_upper(int(c), point.samples, 0.05) <= 0.03 for c in counts[:60]]
        chance = stats.binom.pmf(counts[:60], point.samples, share)[passes].sum()
        assert point.power == pytest.approx(float(chance), abs=1e-6)
        assert point.exact
    assert plan.needed.power >= 0.8
    assert plan.needed.labels == (0 if guard == "changed" else math.ceil(plan.needed.samples / 100))


def test_a_plan_has_the_asked_chance_and_as_many_labels_as_answers_change() -> None:
    plan = plan_for(max_drop=0.03, expect_flips=0.02)
    needed = plan.needed
    assert needed.exact
    assert 0.8 <= needed.power < 0.9
    assert paired_power(needed.samples, 0.01, 0.01, 0.03, 0.05) == pytest.approx(needed.power)
    assert needed.labels == math.ceil(0.02 * needed.samples)
    assert needed.in_all > needed.samples / 0.7
    assert [p.power for p in plan.by_size] == sorted(p.power for p in plan.by_size)
    assert [p.samples for p in plan.by_flips] == sorted(p.samples for p in plan.by_flips)
    assert needed in plan.by_flips


def test_other_data_that_calibrates_leaves_all_of_this_to_judge() -> None:
    own = plan_for(max_drop=0.05, expect_flips=0.01, guard="lost")
    other = plan_for(max_drop=0.05, expect_flips=0.01, guard="lost", training=True)
    assert other.needed.samples == own.needed.samples
    assert own.needed.in_all > other.needed.in_all == math.ceil(own.needed.samples / 0.7)


def test_groups_are_planned_for_betting_and_said_to_be_approximate() -> None:
    plan = plan_for(max_drop=0.02, expect_flips=0.01, groups=True)
    assert plan.method == "betting"
    assert plan.needed.samples == samples_needed(0.01, 0.0, 0.02, 0.95, method="betting")
    assert not plan.needed.exact
    assert plan.by_size == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"expect_flips": 0.01, "expect_drop": 0.02}, "expect_flips is at most 1, and at least "
        "the size of expect_drop: got expect_flips=0.01 and expect_drop=0.02"),
        ({"expect_flips": 2.0}, "expect_flips is at most 1, and at least the size of "
        "expect_drop: got expect_flips=2.0 and expect_drop=0.0"),
        ({"expect_drop": 0.01}, "no number of samples certifies a drop of 0.01 as less than 0.01; raise max_drop"),
        ({"max_drop": 1.0}, "max_drop is a share between 0 and 1: got 1.0; 1% is 0.01"),
        ({"confidence": 0.2}, "confidence is at least 0.5 and below 1: got 0.2; 95% is 0.95"),
    ],
)  # fmt: skip
def test_what_no_data_could_show_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        plan_for(**asked)
    assert str(error.value) == said


@pytest.mark.seconds
def test_one_of_a_thing_is_singular() -> None:
    said = in_words(plan_for(max_drop=0.01, expect_flips=0.02))[0]
    assert said.startswith(
        "to show that accuracy falls by at most 1 point with 95% confidence, where 2% of "
    )
    assert said.endswith(" falls by 0 points:")


def test_the_command_prints_the_curve_or_json() -> None:
    words = ["plan", "--max-drop", "5%", "--expect-flips", "1%", "--guard", "lost"]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    needed = found["needed"]
    assert f"{needed['samples']:,} sealed samples, {needed['in_all']:,} in all" in shown.output
    assert f"about {needed['labels']:,} label" in shown.output
    for point in (*found["by_flips"], *found["by_size"]):
        assert (
            f"{point['samples']:>9,}  {point['in_all']:>9,}  {point['labels']:>8,}" in shown.output
        )
