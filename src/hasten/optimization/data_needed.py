"""Tell whether the data suffices for a certificate, and how much data would."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hasten.certificate.draws import drawn
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, draws_needed, goal, uneven
from hasten.core.records import type_name
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.splits import Splits
from hasten.inputs.metrics.base import Metric
from hasten.optimization.order import Order
from hasten.optimization.ready import Ready


def calibrating(order: Order, ready: Ready) -> int:
    """Return the most samples of the judging data to calibrate from: none if others were given."""
    return 0 if ready.training is not None else order.calibration


def warnings(
    parts: Parts | Splits,
    promise: Promise,
    calibration: int,
    tested: Promise | None = None,
    binary: bool | None = None,
) -> list[str]:
    """Warn beforehand if even a perfect candidate couldn't be certified on so little data.

    Args:
        parts: Parts of the data.
        promise: Promise that the certificate makes.
        calibration: Largest number of samples of the same data to calibrate from.
        tested: Promise with the confidence at which the sealed data will be tested, where earlier
            looks at it were refused.
        binary: Whether scores are 0 or 1; None for what the metric says of itself. Where it can't say, they
            are taken to be, since that takes the least data.
    """
    metric, guard, max_drop = promise.metric, promise.guard, promise.max_drop
    sure = promise.confidence if tested is None else tested.confidence
    units = metric.draws(parts.sealed.labels, parts.sealed_units)
    counted = metric.binary is not False if binary is None else binary
    zeros = np.zeros(len(units))
    draws = drawn(
        zeros,
        zeros,
        losses_only=guard != "net",
        binary=counted,
        groups=units,
        max_drop=max_drop,
        over=promise.mean_over,
        sizes=parts.unit_sizes,
    )
    least = draws_needed(draws, max_drop, sure)
    sealed = draws.differences.size
    if least is None or sealed >= least:
        return []
    noun = f"{metric.draw or ('group' if draws.grouped else 'sample')}s"
    repeats = ""
    enough = f"so about {_in_all(least, parts, metric, calibration)} in all"
    if sure != promise.confidence:
        fresh = draws_needed(draws, max_drop, promise.confidence)
        enough = f"after what earlier looks spent, or {fresh:,} samples that no run has read"
        repeats = "; a run with the same answers as an earlier one is judged as that one was"
    why, remedy = "", ""
    if promise.mean_over == "samples" and (why := uneven(draws.largest, draws.samples, sealed)):
        remedy = "; or ask for the mean over groups, in which each group counts once"
    return [
        f"{sealed:,} sealed {noun} can't show {goal(guard, type_name(metric), max_drop)}, even if nothing changes{why}: that takes {least:,}, {enough}{remedy}{repeats}"
    ]


def warn_of_scores(ready: Ready, calibration: int, notes: list[str], *, binary: bool) -> None:
    """Mend the warnings of a run where scores turn out to be fractional, which takes more data.

    Args:
        ready: Model and data of the run.
        calibration: Largest number of samples of the same data to calibrate from.
        notes: Notes of the run.
        binary: Whether the original's scores are all 0 or 1.
    """
    if ready.promise.metric.binary is None and not binary:
        before = warnings(ready.parts, ready.promise, calibration, ready.tested)
        after = warnings(ready.parts, ready.promise, calibration, ready.tested, binary=False)
        notes[:] = [*(note for note in notes if note not in before), *after]


def _in_all(draws: int, parts: Parts | Splits, metric: Metric, calibration: int) -> str:
    """Return how much data there must be for a number of draws to be sealed: samples, or groups."""
    sealed, searched = (
        len(np.unique(metric.draws(part.labels, units)))
        for part, units in ((parts.sealed, parts.sealed_units), (parts.search, parts.search_units))
    )
    judging = draws * (1 + searched / sealed)
    samples_each = (len(parts.search) + len(parts.sealed)) / (searched + sealed)
    # The split calibrates on at most a third of all draws, that is half as many as judge.
    count = math.ceil(judging + min(calibration / samples_each, judging / 2))
    if metric.draw:
        return f"{math.ceil(count * samples_each):,} samples"
    return f"{count:,} {'groups' if sealed < len(parts.sealed) else 'samples'}"


def shortfall(
    judged: Sequence[tuple[str, Judgement | str]],
    ready: Ready,
    calibration: int,
    *,
    remembered: bool = False,
) -> list[str]:
    """Return a note on the data that would probably settle what the sealed data couldn't.

    Args:
        judged: Verdicts of the sealed data.
        ready: Model and data of the run.
        calibration: Largest number of samples of the same data to calibrate from.
        remembered: Whether a ledger is kept, so that the next run tests on fresh samples alone.
    """
    entry = judged[0][1] if judged else None  # if the safest passed, something is certified
    if not isinstance(entry, Judgement) or entry.samples_needed is None:
        return []
    short = f"{ready.sealed_draws:,} draws of the data were sealed, but {entry.samples_needed:,} are needed: "
    if remembered:
        fresh = _fresh(entry.samples_needed, ready)
        return [
            f"{short}add about {fresh:,} samples that no run has read, which are then tested "
            "alone at the full confidence (each test on new samples may be wrong anew), or allow a larger "
            "drop in a further look at the present samples"
        ]
    total = _in_all(entry.samples_needed, ready.parts, ready.promise.metric, calibration)
    return [f"{short}give about {total} in all, or allow a larger drop"]


def _fresh(draws: int, ready: Ready) -> int:
    """Return how many fresh samples to add to the data for a number of fresh draws to be sealed.

    What was searched and tested on is for the search, which takes fresh ones too where that is less
    than its share.
    """
    searched, sealed = len(ready.parts.search), len(ready.parts.sealed)
    fresh = draws * sealed / ready.sealed_draws
    return math.ceil(max(fresh, fresh * (searched + sealed) / sealed - (searched + sealed)))
