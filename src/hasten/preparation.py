"""What a run does before it tries anything, whatever the device: the metric, and what the data can show."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hasten.certificate.draws import BETTING, EXACT, ONE_SHARE
from hasten.certificate.planning import samples_needed
from hasten.certificate.verdict import Guard, Judgement, goal
from hasten.errors import InputError, full_disk
from hasten.metrics import default_metric, parse_metric
from hasten.metrics.base import Metric
from hasten.metrics.detection_f1 import DetectionF1
from hasten.model import Model
from hasten.records import type_name
from hasten.search.journal import Journal
from hasten.workspace import Parts


@contextlib.contextmanager
def cleared_up(folder: Path, journal: Journal) -> Iterator[None]:
    """Remove the work folder of a run that came to nothing; one with trials stays, to be resumed.

    Raises:
        InputError: as what it is around, or the disk is full.
    """
    try:
        yield
    except (InputError, OSError) as error:
        full = None if isinstance(error, InputError) else full_disk(error)
        if not isinstance(error, InputError) and full is None:
            raise
        if journal.last("trial") is None:
            shutil.rmtree(folder, ignore_errors=True)
        if full is None:
            raise
        raise InputError(f"can't write {full.filename or folder}: {full.strerror}") from error


def metric_for(metric: str | Metric | None, parts: Parts, model: Model) -> Metric:
    """The metric asked for, or what labels and outputs suggest."""
    if isinstance(metric, Metric):
        chosen = metric
    elif metric is not None:
        chosen = parse_metric(metric)
    else:
        chosen = default_metric(parts.search.labels, model.outputs)
    if chosen.needs_labels and parts.search.labels is None:
        raise InputError(
            f"the metric {type_name(chosen)} needs labels and the data has none; give labels, or "
            "use --metric agreement"
        )
    return chosen


def warnings(
    parts: Parts,
    scored: Metric,
    guard: Guard,
    max_drop: float,
    confidence: float,
    calibration: int,
) -> list[str]:
    """Say beforehand when even a perfect candidate couldn't be certified on so little data.

    Args:
        parts: The data, split.
        scored: What is scored.
        guard: What is bounded.
        max_drop: The limit, in absolute share.
        confidence: Of the certificate.
        calibration: How many samples of this same data calibrate, at most.
    """
    sealed = len(np.unique(parts.sealed_units))
    grouped = sealed < len(parts.sealed)
    method = ONE_SHARE if guard != "net" else EXACT
    if grouped or isinstance(scored, DetectionF1):
        method = BETTING
    least = samples_needed(0.0, 0.0, max_drop, confidence, method=method)
    if sealed >= least:
        return []
    noun = "groups" if grouped else "samples"
    return [
        f"{sealed:,} sealed {noun} can't show {goal(guard, type_name(scored), max_drop)}, even where "
        f"nothing changes: that takes {least:,}, so some {_in_all(least, parts, calibration):,} {noun} "
        "in all"
    ]


def _in_all(draws: int, parts: Parts, calibration: int) -> int:
    """Return how many draws the data must have for so many of them to be sealed."""
    sealed, searched = (len(np.unique(u)) for u in (parts.sealed_units, parts.search_units))
    judging = draws * (1 + searched / sealed)
    samples_each = (len(parts.search) + len(parts.sealed)) / (searched + sealed)
    # The split calibrates on a third of all draws at most: on half as many as judge.
    return math.ceil(judging + min(calibration / samples_each, judging / 2))


def shortfall(
    judged: Sequence[tuple[str, Judgement | str]], parts: Parts, calibration: int
) -> list[str]:
    """Say how much data would probably settle what the sealed data couldn't."""
    entry = judged[0][1] if judged else None  # where the safest passed, something is certified
    if not isinstance(entry, Judgement) or entry.samples_needed is None:
        return []
    sealed = len(np.unique(parts.sealed_units))
    total = _in_all(entry.samples_needed, parts, calibration)
    return [
        f"{sealed:,} draws were sealed of the data; for {entry.samples_needed:,} of them it takes some "
        f"{total:,} in all, or a larger limit"
    ]
