"""The drop seen on the search split: an estimate with an interval, for orientation only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hasten.certificate.betting import group_means
from hasten.certificate.draws import Over

Floats: TypeAlias = NDArray[np.float64]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Drop:
    """Drop of a candidate's scores below the original's; no certificate, since it was one of many.

    Attributes:
        estimate: Mean over samples, or over groups, as an absolute share; negative where accuracy rose.
        low: Lower end of an approximate 95% interval.
        high: Upper end of that interval.
        draws: Number of samples, or of groups where data is grouped.
        lost: Number of samples that became wrong; None for grouped scores or scores not 0/1.
        gained: Number of samples that became right; None for grouped scores or scores not 0/1.
    """

    estimate: float
    low: float
    high: float
    draws: int
    lost: int | None = None
    gained: int | None = None


def observed_drop(
    differences: Floats,
    groups: NDArray[np.generic],
    *,
    binary: bool,
    only_falls: bool = False,
    over: Over = "samples",
) -> Drop:
    """Estimate a drop from paired differences original - candidate.

    Args:
        differences: Differences in [-1, 1], shape (n,), at least one.
        groups: Label of each sample's group, shape (n,); a group is one draw.
        binary: Whether scores are 0 or 1.
        only_falls: Whether gains are impossible or not counted.
        over: Units of the mean: all samples, or all groups, each counting once.

    Source: Wald's interval with one half added to the numbers lost and gained, Agresti and Min,
    Stat. Med. 24:729, 2005; squared differences stand for the counts where scores are fractions.
    """
    draws = group_means(differences, groups)
    if over == "samples":  # a group counts by its size
        sizes = np.unique(groups, return_counts=True)[1]
        draws = draws * (sizes / sizes.mean())
    n, total, squares = draws.size, float(draws.sum()), float(np.square(draws).sum())
    middle = total / (n + 2)
    variance = (squares + 1) / (n + 2) - middle**2
    student = float(special.stdtrit(max(1, n - 1), (1 + _CONFIDENCE) / 2))
    half = student * math.sqrt(variance / (n + 2))
    estimate = total / n
    counted = binary and n == differences.size
    return Drop(
        estimate=estimate,
        low=max(min(middle - half, estimate), 0.0 if only_falls else -1.0),
        high=min(max(middle + half, estimate), 1.0),
        draws=n,
        lost=int(np.sum(differences > 0)) if counted else None,
        gained=int(np.sum(differences < 0)) if counted else None,
    )
