"""From scores to verdicts: the right method, the three verdicts, and whole sentences."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hasten.certificate.betting import BettingPrior
from hasten.certificate.exact import clopper_pearson_upper, paired_upper_bound
from hasten.certificate.verdict import Guard, Judgement, Verdict, judge
from hasten.core.records import from_record, to_record
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.detection_f1 import DetectionF1

Floats = NDArray[np.float64]


def scores(n: int, lost: int, gained: int) -> tuple[Floats, Floats]:
    original, candidate = np.ones(n), np.ones(n)
    candidate[:lost] = 0
    original[lost : lost + gained] = 0
    return original, candidate


def judged(n: int, lost: int, gained: int, guard: Guard = "net", **settings: Any) -> Judgement:
    original, candidate = scores(n, lost, gained)
    asked: dict[str, Any] = {
        "max_drop": 0.01,
        "confidence": 0.95,
        "metric": "accuracy",
        "prior": BettingPrior(),
    }
    return judge(original, candidate, guard=guard, **(asked | settings))


@pytest.mark.parametrize(
    ("judgement", "words"),
    [
        (
            judged(1204, 4, 3),
            "95% confident that accuracy falls by at most 1 point (n=1,204: 4 lost, 3 gained)",
        ),
        (
            judged(7000, 46, 83),
            "95% confident that accuracy falls by at most 1 point (n=7,000: 46 lost, 83 gained)",
        ),
        (
            judged(299, 0, 0, metric="top1"),
            "95% confident that top-1 accuracy falls by at most 1 point (n=299: 0 lost, 0 gained)",
        ),
        (
            judged(500, 1, 0, "lost", confidence=0.95),
            "95% confident that at most 1% of inputs go from right to wrong (n=500: 1 lost, 0 gained)",
        ),
        (
            judged(800, 1, 0, "changed", confidence=0.99),
            "99% confident that at most 1% of answers change (n=800: 1 changed)",
        ),
        (
            judged(500, 1, 0, metric="agreement"),
            "95% confident that at most 1% of answers change (n=500: 1 changed)",
        ),
        (
            judged(1204, 4, 3, groups=np.arange(1204) // 2),
            "95% confident that accuracy, as a mean over samples, falls by at most 1 point (1,204 samples in 602 groups: observed 0.083 points)",
        ),
        (
            judged(300, 0, 0, max_drop=0.001),
            "not enough data: 300 samples can't show a fall of at most 0.1 points; about 3,000 would",
        ),
        (
            judged(300, 1, 0, "lost"),
            "not enough data: 300 samples can't show losses of at most 1 point; about 1,100 would",
        ),
        (
            judged(500, 0, 0, "changed", groups=np.arange(500) // 2),
            "not enough data: 500 samples in 250 groups can't show that at most 1% of answers change, as a mean over samples; about 340 groups would",
        ),
        (
            judged(10, 1, 0),
            "not enough data: accuracy fell by 10 points, and less than 1 was allowed, but 10 samples can't tell (n=10: 1 lost, 0 gained); more would settle it, either way",
        ),
        (
            judged(10, 1, 0, "changed", groups=np.arange(10) // 5),
            "not enough data: 10% of answers changed, as a mean over samples, and less than 1% was allowed, but 10 samples in 2 groups can't tell (10 samples in 2 groups: 10% changed); more would settle it, either way",
        ),
        (
            judged(300, 12, 2),
            "not accurate enough: accuracy fell by 3.3 points, and less than 1 was allowed (n=300: 12 lost, 2 gained); only a candidate closer to the original would pass, not more data",
        ),
        (
            judged(300, 9, 2, "lost"),
            "not accurate enough: losses alone came to 3 points of accuracy, and less than 1 was allowed (n=300: 9 lost, 2 gained); only a candidate closer to the original would pass, not more data",
        ),
        (
            judged(300, 300, 0, "changed"),
            "not accurate enough: 100% of answers changed, and less than 1% was allowed (n=300: 300 changed); only a candidate closer to the original would pass, not more data",
        ),
    ],
)
def test_a_judgement_in_words(judgement: Judgement, words: str) -> None:
    assert judgement.in_words() == words


def test_binary_scores_are_judged_exactly() -> None:
    net = judged(1204, 4, 3)
    assert net.method == "exact unconditional test, Tango order"
    assert net.bound == paired_upper_bound(4, 3, 1204, 1 - 0.95)
    assert (net.n, net.lost, net.gained, net.groups) == (1204, 4, 3, None)
    assert net.estimate == pytest.approx(1 / 1204)
    for guard in ("lost", "changed"):
        share = judged(1204, 4, 0, guard)
        assert share.method == "Clopper-Pearson"
        assert share.bound == clopper_pearson_upper(4, 1204, 1 - 0.95)


def test_groups_of_one_are_judged_as_samples() -> None:
    assert judged(400, 1, 1, groups=np.arange(400)) == judged(400, 1, 1)


@pytest.mark.parametrize("metric", list(Metric.registry))
def test_every_metric_has_words_for_people(metric: str) -> None:
    if Metric.member(metric).of_changes:
        return
    said = judged(2000, 0, 0, metric=metric).in_words()
    assert f"that {Metric.member(metric).title} falls by at most 1 point" in said
    assert Metric.member(metric).title
    assert f"that {metric} falls" not in said
    assert "_" not in said


def test_a_metric_without_a_title_is_called_by_its_noun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectionF1, "title", "")
    said = judged(2000, 0, 0, metric="detection_f1").in_words()
    assert said.startswith("95% confident that the mean F1 falls by at most 1 point")


def test_grouped_or_fractional_scores_are_judged_by_betting() -> None:
    grouped = judged(1000, 2, 2, groups=np.arange(1000) // 4)
    assert (grouped.method, grouped.n, grouped.groups) == ("betting", 250, 250)
    assert grouped.lost is None
    original = np.full(500, 0.75)
    fractional = judge(
        original,
        original - 0.001,
        guard="net",
        max_drop=0.02,
        confidence=0.95,
        metric="f1",
        prior=BettingPrior(0.001, 0.0, 200),
    )
    assert (fractional.method, fractional.verdict) == ("betting", Verdict.CERTIFIED)
    assert fractional.in_words().startswith("95% confident that f1 falls by at most 2 points")
    assert judged(500, 1, 1, binary=False).method == "betting"


def test_gains_do_not_pay_for_losses_under_the_stricter_guard() -> None:
    assert judged(1000, 20, 40).verdict is Verdict.CERTIFIED
    assert judged(1000, 20, 40, "lost").verdict is Verdict.NOT_ACCURATE_ENOUGH
    grouped = judged(1000, 60, 80, "lost", groups=np.arange(1000) // 2)
    assert grouped.verdict is Verdict.NOT_ACCURATE_ENOUGH


@pytest.mark.parametrize(
    ("guard", "each", "lost"), [("net", 1, 11), ("lost", 1, 7), ("changed", 1, 7), ("net", 2, 22)]
)
def test_no_candidate_is_called_not_accurate_enough_before_the_data_show_it(
    guard: Guard, each: int, lost: int
) -> None:
    groups, gained = np.arange(300 * each) // each, 2 if guard == "net" else 0

    def verdict(lost: int) -> Verdict:
        return judged(300 * each, lost, gained, guard, groups=groups).verdict

    assert verdict(lost) is Verdict.NOT_ACCURATE_ENOUGH
    assert verdict(lost - each) is Verdict.NOT_ENOUGH_DATA


def test_the_order_of_the_file_does_not_decide() -> None:
    n = 400
    original, candidate = np.ones(n), np.ones(n)
    candidate[-12:] = 0.001  # all losses at the end, after a long run that would have certified
    judgement = judge(
        original,
        candidate,
        guard="net",
        max_drop=0.02,
        confidence=0.95,
        metric="f1",
        prior=BettingPrior(),
    )
    assert judgement.verdict is not Verdict.CERTIFIED


@given(
    n=st.integers(1, 500),
    flips=st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)),
    guard=st.sampled_from(["net", "lost"]),
    grouped=st.booleans(),
)
def test_verdict_and_numbers_agree(
    n: int, flips: tuple[float, float], guard: Guard, grouped: bool
) -> None:
    groups = np.arange(n) // 2 if grouped else None
    j = judged(n, int(flips[0] * n), int(flips[1] * n), guard, max_drop=0.05, groups=groups)
    assert j.bound >= j.estimate - 1e-9
    assert (j.verdict is Verdict.CERTIFIED) == (j.bound <= j.max_drop)
    below = j.estimate < j.max_drop
    assert not (below and j.verdict is Verdict.NOT_ACCURATE_ENOUGH)
    assert (j.samples_needed is not None) == (j.verdict is Verdict.NOT_ENOUGH_DATA and below)
    assert j.samples_needed is None or j.samples_needed > j.n
    assert from_record(Judgement, json.loads(json.dumps(to_record(j)))) == j


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 1.0}, "max_drop is a share between 0 and 1: got 1.0; 1% is 0.01"),
        ({"confidence": 95}, "confidence is at least 0.5 and below 1: got 95; 95% is 0.95"),
        ({"guard": "gross"}, "guard is one of net, lost, changed: got gross"),
        (
            {"groups": np.zeros(3)},
            "every sample needs one group: got scores of shape (10,) and groups of shape (3,); give one label per sample",
        ),
        (
            {"guard": "changed"},
            "guard 'changed' compares with the original's own answers: got original scores other than 1; give agreement as candidate and ones as original",
        ),
    ],
)
def test_unusable_limits_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        judged(10, 1, 1, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("original", "candidate", "binary", "message"),
    [
        (
            np.ones(3),
            np.ones(2),
            None,
            "scores come in pairs: got original of shape (3,) and candidate of shape (2,); give one score per sample for each",
        ),
        (
            np.array([]),
            np.array([]),
            None,
            "scores come in pairs: got original of shape (0,) and candidate of shape (0,); give one score per sample for each",
        ),
        (
            np.ones(2),
            np.array([1.0, np.nan]),
            None,
            "scores lie between 0 and 1: got some outside, or not a number; scale the metric",
        ),
        (
            np.ones(2),
            np.array([1.0, 0.5]),
            True,
            "binary scores are 0 or 1: got others; leave out binary if scores lie between them",
        ),
    ],
)
def test_unusable_scores_are_refused(
    original: Floats, candidate: Floats, binary: bool | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        judge(
            original,
            candidate,
            guard="net",
            max_drop=0.01,
            confidence=0.95,
            metric="accuracy",
            prior=BettingPrior(),
            binary=binary,
        )
    assert str(error.value) == message
