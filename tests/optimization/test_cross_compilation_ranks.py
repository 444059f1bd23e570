"""How candidates for a device that isn't here are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.certificate.betting import BettingPrior
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, judge
from hasten.engines.estimates import Estimate
from hasten.engines.null import Null
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.passed_over import passed_over
from hasten.optimization.estimated.trials import Estimation, comparable, ranked


def trial(estimate: Estimate) -> Trial:
    return Trial(Single((), Null()), estimate=estimate)


CYCLES = trial(Estimate("compiler estimate", rank=9e6, unit="cycles"))
UNRANKED = trial(Estimate("compiler estimate", figures={"plan_bytes": 100.0}))


def test_whom_the_tools_do_not_rank_is_not_set_beside_whom_they_do() -> None:
    assert comparable([UNRANKED, CYCLES]) == [CYCLES]


def test_where_they_rank_nobody_sizes_are_compared() -> None:
    assert comparable([UNRANKED]) == [UNRANKED]
    assert ranked(UNRANKED) == (100.0, "bytes")


@dataclass(frozen=True)
class Numbered(Null):
    number: int = 0


def judged(lost: int) -> Judgement:
    original = np.ones(400)
    return judge(
        original,
        np.where(np.arange(400) < lost, 0.0, 1.0),
        guard="net",
        max_drop=0.05,
        confidence=0.95,
        metric="top1",
        prior=BettingPrior(),
    )


def test_each_faster_candidate_has_the_reason_why_it_does_not_ship() -> None:
    names = ("wild", "failed", "untested", "ships", "slow")
    trials = Estimation.__new__(Estimation)  # with trials alone: nothing is made or run
    trials.samples, trials._sealed_draws = [None] * 4, 4  # type: ignore[assignment]
    trials.promise = Promise(Top1(), "net", 0.05)
    trials.exact_scores = np.ones(4)
    trials.done = {}
    for place, name in enumerate(names):
        candidate = Single((), Numbered(place))
        scores = (0.0,) * 4 if name == "wild" else (1.0,) * 4
        figures = Estimate("compiler estimate", rank=10.0 * (1 + place), unit="ns")
        trials.done[candidate.key] = Trial(candidate, scores=scores, estimate=figures)
    keys = dict(zip(names, trials.done, strict=True))
    verdicts = [(keys["ships"], judged(0)), (keys["failed"], judged(60))]
    told = passed_over(trials, verdicts, trials.done[keys["ships"]])
    labels = [trials.done[keys[name]].candidate.label for name in names]
    assert [note.partition(" but doesn't ship: ")[0] for note in told] == [
        f"{label} is faster ({10 * (1 + place)} ns)" for place, label in enumerate(labels[:3])
    ]
    reasons = [note.partition(" but doesn't ship: ")[2] for note in told]
    assert reasons[0].startswith("it isn't under the limit in the search (+100.00 points lost on 4")
    assert reasons[1].startswith("not accurate enough: top-1 accuracy fell by 15 points")
    assert reasons[2] == (
        f"it wasn't tested, since the test ended at the safer {labels[1]}, which wasn't certified"
    )
