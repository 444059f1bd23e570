"""Claims about samples where groups differ in size, or samples repeat one another."""

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from hasten.certificate.betting import BettingPrior
from hasten.certificate.draws import Over, best_cut, drawn
from hasten.certificate.verdict import Judgement, Verdict, judge

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def judged(
    candidate: Floats, groups: Ints, max_drop: float = 0.01, **settings: object
) -> Judgement:
    asked: dict[str, object] = {"guard": "net", "confidence": 0.95, "metric": "top1"}
    asked |= {"prior": BettingPrior(), "groups": groups, "max_drop": max_drop}
    return judge(np.ones(len(candidate)), candidate, **(asked | settings))  # type: ignore[arg-type]


def one_input(share: int, n: int = 1000) -> Ints:
    """Groups of n rows of which the first `share` are one input."""
    return np.concatenate([np.zeros(share, np.int64), 1 + np.arange(n - share)])


@pytest.mark.parametrize("right", [True, False])
def test_one_input_with_much_of_the_rows_is_too_little_data_whether_it_is_right_or_wrong(
    right: bool,
) -> None:
    candidate = np.ones(1000)
    candidate[:300] = right
    verdict = judged(candidate, one_input(300))
    assert verdict.verdict is not Verdict.CERTIFIED
    assert verdict.verdict is Verdict.NOT_ENOUGH_DATA
    if right:
        assert verdict.in_words().startswith(
            "not enough data: 1,000 samples in 701 groups can't show a fall of at most 1 point, "
            "as a mean over samples, because up to 300 samples are equal or belong to one group, and count as one; about "
        )
    assert verdict.estimate == pytest.approx(0.0 if right else 0.3)


def test_few_repeats_count_as_lost_and_cost_little() -> None:
    groups = one_input(3, 800)
    verdict = judged(np.ones(800), groups)
    assert verdict.verdict is Verdict.CERTIFIED
    assert verdict.in_words() == (
        "95% confident that top-1 accuracy, as a mean over samples, falls by at most 1 point (n=800: 0 lost, "
        "0 gained, 2 repeats counted as lost)"
    )
    two_lost = np.ones(800)
    two_lost[100:102] = 0
    alone = judged(two_lost, np.arange(800))
    assert alone.bound == verdict.bound
    changed = judged(np.ones(800), groups, guard="changed")
    assert changed.in_words() == (
        "95% confident that at most 1% of answers change, as a mean over samples (n=800: 0 changed, 2 "
        "repeats counted as changed)"
    )
    lost = judged(np.ones(800), groups, guard="lost")
    assert lost.in_words() == (
        "95% confident that at most 1% of inputs go from right to wrong, as a mean over samples (n=800: 0 "
        "lost, 0 gained, 2 repeats counted as lost)"
    )


def test_the_mean_over_samples_and_the_mean_over_groups_are_two_claims() -> None:
    size = np.where(np.arange(600) < 6, 40, 10)
    groups = np.repeat(np.arange(600), size)
    candidate = np.ones(len(groups))
    candidate[groups < 4] = 0  # large groups
    over_samples = judged(candidate, groups, 0.03)
    over_groups = judged(candidate, groups, 0.03, over="groups")
    assert over_samples.estimate == pytest.approx(160 / len(groups))
    assert over_groups.estimate == pytest.approx(4 / 600)
    assert over_groups.verdict is Verdict.CERTIFIED
    assert over_groups.in_words() == (
        "95% confident that top-1 accuracy, as a mean over groups, falls by at most 3 points (600 groups: "
        "observed 0.67 points)"
    )
    assert over_samples.verdict is not Verdict.CERTIFIED
    assert over_samples.samples == over_groups.samples == len(groups)
    assert judged(candidate, groups, 0.06).in_words() == (
        "95% confident that top-1 accuracy, as a mean over samples, falls by at most 6 points (6,180 samples "
        "in 600 groups: observed 2.6 points, 180 repeats counted as lost)"
    )
    assert (
        judged(candidate, groups, 0.001, over="groups")
        .in_words()
        .startswith(
            "not enough data: top-1 accuracy, as a mean over groups, fell by 0.67 points, and less than 0.1 was "
            "allowed, but 600 groups can't tell"
        )
    )
    lost = {
        over: judged(candidate, groups, 0.06, over=over, guard="lost") for over in get_args(Over)
    }
    for over, judgement in lost.items():
        assert judgement.in_words().startswith(
            f"95% confident that the average loss in top-1 accuracy over {over} is at most 6 points"
        )
    changed = judged(candidate, groups, 0.03, over="groups", guard="changed")
    assert changed.in_words() == (
        "95% confident that at most 3% of answers change, as a mean over groups (600 groups: 0.67% changed)"
    )


def test_equal_groups_make_one_claim() -> None:
    groups = np.arange(1200) // 3
    candidate = np.ones(1200)
    candidate[:3] = 0
    over_samples = judged(candidate, groups, 0.03)
    over_groups = judged(candidate, groups, 0.03, over="groups")
    assert over_samples.bound == over_groups.bound
    assert over_samples.estimate == over_groups.estimate
    assert over_samples.verdict is over_groups.verdict is Verdict.CERTIFIED


def test_a_large_group_that_the_search_had_counts_too() -> None:
    candidate = np.ones(400)
    groups = np.arange(400)
    sizes = np.concatenate([np.ones(500, np.int64), [80]])
    assert judged(candidate, groups).verdict is Verdict.CERTIFIED
    assert judged(candidate, groups, sizes=sizes).verdict is Verdict.NOT_ENOUGH_DATA


def test_a_group_is_cut_by_sizes_alone_to_where_most_can_be_shown() -> None:
    assert best_cut(np.ones(50, np.int64), 0.01) == 1
    assert best_cut(np.full(50, 7), 0.01) == 7
    assert best_cut(np.array([1] * 995 + [2] * 5), 0.01) == 1
    assert best_cut(np.array([1] * 500 + [2] * 500), 0.01) == 2
    assert best_cut(np.array([4] * 1000 + [5] * 3), 0.01) == 4


def test_what_lies_beyond_the_cut_is_neither_certified_nor_refuted_by_it() -> None:
    groups = one_input(5, 600)
    candidate = np.ones(600)
    candidate[:5] = 0
    draws = drawn(
        np.ones(600), candidate, losses_only=False, binary=True, groups=groups, max_drop=0.01
    )
    assert (draws.counts, draws.beyond, draws.samples) == ((1, 0), 4, 600)
    assert draws.estimate == pytest.approx(5 / 600)
    lost = judged(candidate, groups, 0.0083)
    assert lost.verdict is Verdict.NOT_ENOUGH_DATA
