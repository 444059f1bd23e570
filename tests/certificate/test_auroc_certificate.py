"""The promise on the AUROC, simulated: candidates just at the limit pass no more often than allowed.

Scores are normal in each class, so that the AUROC is known: Phi(d / sqrt(2)) for unit variances that
lie d apart, and noise of variance v on the candidate divides d by sqrt(1 + v).
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from hasten.certificate.betting import BettingPrior, betting_certifies, group_means
from hasten.certificate.certification import judge_ladder
from hasten.certificate.exact import clopper_pearson_upper
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.inputs.metrics.auroc import Auroc

METRIC = Auroc()
APART, MAX_DROP, ALPHA = 1.5, 0.02, 0.05
ROWS, POSITIVE, GROUP = 900, 0.25, 3
RUNS = 400

Floats = NDArray[np.float64]


def noise_for(drop: float) -> float:
    """The noise's standard deviation that lowers the AUROC by so much."""
    if drop == 0:
        return 0.0
    lowered = special.ndtri(special.ndtr(APART / 2**0.5) - drop) * 2**0.5
    return float(((APART / lowered) ** 2 - 1) ** 0.5)


@dataclass(frozen=True)
class Draws:
    """Scores of the original and of a candidate as a run gets them, and the draw of each row."""

    original: Floats
    candidate: Floats
    units: NDArray[np.int64]

    @property
    def means(self) -> Floats:
        """Difference of each independent draw."""
        return group_means(self.original - self.candidate, self.units)


def drawn(rng: np.random.Generator, rows: int, drop: float, *, grouped: bool) -> Draws:
    """Draw a set; of a group all rows have the same score and label."""
    count = rows // GROUP if grouped else rows
    classes = (rng.random(count) < POSITIVE).astype(np.int64)
    own = rng.standard_normal(count) + APART * classes
    noisy = own + noise_for(drop) * rng.standard_normal(count)
    units = np.repeat(np.arange(count), GROUP) if grouped else np.arange(count)
    labels = classes[units]
    original, candidate = (METRIC.over(one[units], labels, units) for one in (own, noisy))
    return Draws(original, candidate, METRIC.draws(labels, units))


def judged(sealed: Draws) -> Judgement:
    """Judge a candidate as a run does."""
    ((_, found),) = judge_ladder(
        sealed.original,
        ("a",),
        {"a": sealed.candidate},
        sealed.units,
        {"a": BettingPrior()},
        Promise(METRIC, max_drop=MAX_DROP),
        binary=False,
    )
    assert isinstance(found, Judgement)
    return found


@pytest.mark.parametrize("grouped", [False, True])
def test_a_candidate_at_the_limit_is_certified_no_more_often_than_allowed(grouped: bool) -> None:
    rng, wrong = np.random.default_rng(7), 0
    for _ in range(RUNS):
        search = drawn(rng, ROWS // 4, MAX_DROP, grouped=grouped)  # a prior, as good as it gets
        prior = BettingPrior.from_differences(search.means)
        sealed = drawn(rng, ROWS, MAX_DROP, grouped=grouped).means
        wrong += betting_certifies(sealed, MAX_DROP, ALPHA, prior)
    assert 1 - clopper_pearson_upper(RUNS - wrong, RUNS, 0.01) <= ALPHA


def test_a_candidate_that_ranks_alike_is_certified_and_a_bad_one_refused() -> None:
    rng = np.random.default_rng(8)
    good = judged(drawn(rng, ROWS, 0.0, grouped=False))
    assert good.verdict is Verdict.CERTIFIED
    assert good.in_words().startswith("95% confident that AUROC falls by at most")
    assert "disjoint comparisons: observed 0 points)" in good.in_words()
    bad = judged(drawn(rng, ROWS, 0.2, grouped=False))
    assert bad.verdict is Verdict.NOT_ACCURATE_ENOUGH
    assert "AUROC fell by" in bad.in_words()


def test_samples_of_one_group_count_once() -> None:
    found = drawn(np.random.default_rng(9), ROWS, 0.0, grouped=True).means
    assert len(found) < ROWS / GROUP * POSITIVE * 1.3
