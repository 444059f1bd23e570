"""The certificate: sealed data is read once, and a frozen ladder tested from safest to fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hasten.certificate.betting import BettingPrior, group_means
from hasten.certificate.draws import Over
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard, Judgement, Verdict, judge
from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.metrics.agreeing import agreeing
from hasten.inputs.metrics.base import Metric
from hasten.measure.accuracy import score_once
from hasten.measure.workbench import Bench, OpenWorker


def guarded(metric: Metric, guard: Guard) -> Metric:
    """Return the metric to score under a guard: agreement under "changed", else the given one.

    Raises:
        InputError: the guard is "changed", and one of several metrics reads no classes.
    """
    return agreeing(metric) if guard == "changed" else metric


def prior_of(differences: Array, units: Array, over: Over = "samples") -> BettingPrior:
    """Return the prior from the search split, by its groups where it is grouped."""
    labels = units[: len(differences)]
    sizes = np.unique(labels, return_counts=True)[1].astype(np.float64)
    means = group_means(differences, labels)
    return BettingPrior.from_differences(means, sizes if over == "samples" else None)


def sealed_scores(
    bench: Bench,
    exact: OpenWorker,
    rungs: Mapping[str, OpenWorker],
    sealed: Dataset,
    metric: Metric,
    listen: Callable[[int], None] = lambda done: None,
    *,
    units: Array | None = None,
    watch: Callable[[str, Tensors], None] = lambda key, outputs: None,
    exact_takes: Callable[[Dataset], Dataset] | None = None,
    apart: Mapping[str, Dataset] = MappingProxyType({}),
) -> tuple[Array, dict[str, Array | str]]:
    """Score the exact model and every rung on the sealed data, in one pass over it.

    Args:
        bench: Workbench that runs the models.
        exact: The exact model, open.
        rungs: Key -> open candidate.
        sealed: Sealed data, read once, in chunks.
        metric: Metric that is scored.
        listen: Callback that receives the number of samples scored so far.
        units: Number of each sample's group, `(n,)`; by default every sample stands alone.
        watch: Callback that receives the outputs of each model on each chunk; the exact model's key
            is "".
        exact_takes: Function of a chunk that returns it as the exact model takes it; by default all
            models take the same.
        apart: Key -> the same samples, in the same order, as a rung takes them that takes others.

    Returns:
        Scores of the exact model, `(n,)`; and of each rung, or the reason why it failed.
    """
    own: list[Array] = []
    theirs: dict[str, list[Array]] = {key: [] for key in rungs}
    failed: dict[str, str] = {}
    for part, scores in score_once(bench, exact, rungs, sealed, metric, watch, exact_takes, apart):
        own.append(part)
        for key, score in scores.items():
            if isinstance(score, str):
                failed[key] = score
            else:
                theirs[key].append(score)
        listen(sum(map(len, own)))
    groups = np.arange(len(sealed)) if units is None else units

    def over(parts: Sequence[Array]) -> Array:
        return metric.over(np.concatenate(parts), sealed.labels, groups)

    whole: dict[str, Array | str] = {
        key: failed[key] if key in failed else over(parts) for key, parts in theirs.items()
    }
    return over(own), whole


def judge_ladder(
    original: Array,
    rungs: Sequence[str],
    scores: Mapping[str, Array | str],
    units: Array,
    priors: Mapping[str, BettingPrior],
    promise: Promise,
    *,
    binary: bool = True,
    sizes: Array | None = None,
    holds: Callable[[str, Judgement], bool] = lambda key, judgement: True,
) -> list[tuple[str, Judgement | str]]:
    """Test rungs from safest to fastest, each at the same level, and stop at the first failure.

    This is fixed-sequence testing: the chance of any false certificate is at most 1 - confidence.

    Args:
        original: Scores of the exact model, `(n,)`.
        rungs: Keys, safest first, as frozen.
        scores: Key -> scores of the rung, or the reason why it failed.
        units: Number of each sample's group, `(n,)`; equal numbers were drawn together.
        priors: Key -> prior by which its bets are set.
        promise: Promise that each rung is tested for.
        binary: Whether scores were 0/1 on the search split. Where they weren't, or aren't here,
            betting judges: the sealed data alone doesn't choose its test.
        sizes: Number of samples in each group of all data that these were drawn from, `(groups,)`; by
            default of these alone.
        holds: Predicate that tests a certified rung further, as in batches; after one that it fails, no
            rung is tested.

    Returns:
        Key and judgement (or reason of failure) of each rung, up to the first that isn't certified, or
        doesn't hold further.
    """
    alone = np.ones(1) if sizes is None else sizes
    grouped = len(np.unique(units)) < len(units) or int(alone.max()) > 1
    judged: list[tuple[str, Judgement | str]] = []
    for key in rungs:
        score = scores[key]
        if isinstance(score, str):
            judged.append((key, score))
            break
        judgement = judge(
            np.ones_like(original) if promise.guard == "changed" else original,
            score,
            guard=promise.guard,
            max_drop=promise.max_drop,
            confidence=promise.confidence,
            metric=type_name(promise.metric),
            prior=priors.get(key, BettingPrior()),
            groups=units if grouped else None,
            binary=None if binary else False,
            over=promise.mean_over,
            sizes=sizes,
        )
        judged.append((key, judgement))
        if judgement.verdict is not Verdict.CERTIFIED or not holds(key, judgement):
            break
    return judged


def judge_with_fallen(
    original: Array,
    fallen: Sequence[str],
    rungs: Sequence[str],
    scores: Mapping[str, Array | str],
    units: Array,
    priors: Mapping[str, BettingPrior],
    promise: Promise,
    *,
    binary: bool = True,
    sizes: Array | None = None,
    holds: Callable[[str, Judgement], bool] = lambda key, judgement: True,
) -> list[tuple[str, Judgement | str]]:
    """Test a ladder below which stands an exact candidate that turned out to change answers.

    The exact candidate was frozen with the ladder, as its safest rung: where it changed no answer there is
    nothing to test, since unchanged answers pass. Where so little data is sealed that even they wouldn't,
    it is left out, so that it is never certified. So the sequence that is tested is the frozen one, and
    the chance of any false certificate stays at most 1 - confidence.

    Args:
        original: Scores of the exact model, `(n,)`.
        fallen: Key of the exact candidate whose answers changed; empty where none did.
        rungs: Keys, safest first, as frozen.
        scores: Key -> scores of the candidate, or the reason why it failed.
        units: Number of each sample's group, `(n,)`; equal numbers were drawn together.
        priors: Key -> prior by which its bets are set.
        promise: Promise that each is tested for.
        binary: Whether scores were 0/1 on the search split.
        sizes: Number of samples in each group of all data that these were drawn from, `(groups,)`.

        holds: Predicate that tests a certified rung further, as in batches.

    Returns:
        Key and judgement (or reason of failure) of each, up to the first that isn't certified.
    """

    def judged(
        keys: Sequence[str],
        found: Mapping[str, Array | str],
        holds: Callable[[str, Judgement], bool] = lambda key, judgement: True,
    ) -> list[tuple[str, Judgement | str]]:
        return judge_ladder(
            original,
            keys,
            found,
            units,
            priors,
            promise,
            binary=binary,
            sizes=sizes,
            holds=holds,
        )

    if not last_certified(judged(fallen, dict.fromkeys(fallen, original))):
        fallen = ()
    return judged((*fallen, *rungs), scores, holds)


def last_certified(judged: Sequence[tuple[str, Judgement | str]]) -> tuple[str, Judgement] | None:
    """Return the fastest certified rung with its judgement; None where none is certified."""
    passed = [
        (key, judgement)
        for key, judgement in judged
        if isinstance(judgement, Judgement) and judgement.verdict is Verdict.CERTIFIED
    ]
    return passed[-1] if passed else None
