"""Share of changed answers on the sealed data, which the monitor of a served bundle goes by.

A certificate about a drop of the score doesn't bound how many answers change. So its record keeps this
share, with an upper bound on it in such data: Clopper and Pearson's where an answer is changed or isn't
and samples stand alone, else by betting, where a group is one draw that counts by its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hasten.certificate.betting import BettingPrior
from hasten.certificate.draws import Method, bounded, drawn
from hasten.certificate.monitor import BOUND_ALPHA
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.changes import changed_parts, changes_wholly, own_scores


@dataclass(frozen=True)
class ChangedShare:
    """Share of answers that are changed, as the monitor counts them.

    Attributes:
        share: Share of the sealed samples.
        bound: Upper bound on the share in such data; 1 where nothing is known.
        confidence: Confidence of the bound, whichever of the tested candidates ships.
        n: Number of draws: samples, or groups where data is grouped.
        method: Method of the bound.
    """

    share: float
    bound: float
    confidence: float
    n: int
    method: Method


def changed_share(
    metric: Metric,
    changed: Array,
    units: Array,
    sizes: Array | None,
    *,
    max_drop: float,
    models: int,
    spent: float = 1.0,
) -> ChangedShare:
    """Return the share of changed answers, with its bound.

    Args:
        metric: Metric of the bundle, which decides on the method: the answers don't choose it.
        changed: Changed share of each sample's answer, each in [0, 1], `(n,)`.
        units: Number of each sample's group, `(n,)`; equal numbers were drawn together.
        sizes: Number of samples in each group of all data that these were drawn from, `(groups,)`; by
            default of these alone.
        max_drop: Limit of the certificate, which decides how groups of unequal size are cut.
        models: Number of candidates of which one ships, by what these samples said.
        spent: Level of the look at these samples by the level of a first look.
    """
    draws = drawn(
        np.ones_like(changed),
        1 - changed,
        losses_only=True,
        binary=changes_wholly(metric),
        groups=units,
        max_drop=max_drop,
        sizes=sizes,
    )
    _, bound = bounded(draws, max_drop, spent * BOUND_ALPHA / models, BettingPrior())
    return ChangedShare(
        share=float(changed.mean()),
        bound=min(bound, 1.0),
        confidence=1 - BOUND_ALPHA,
        n=draws.differences.size,
        method=draws.method,
    )


class ChangedAnswers:
    """Callback for outputs on the sealed data, which gathers how much of each answer is changed.

    Args:
        metric: Metric of the bundle.
        keys: Models that are compared with the original.
    """

    def __init__(self, metric: Metric, keys: Iterable[str]) -> None:
        self._metric = metric
        self._parts: dict[str, list[Array]] = {key: [] for key in keys}
        self._own: Tensors = {}
        self._own_scores: Array | None = None

    def __call__(self, key: str, outputs: Tensors) -> None:
        """Take a model's outputs on a chunk; those of the original, under "", come first."""
        if key == "":
            self._own, self._own_scores = outputs, None
        elif key in self._parts:
            try:
                if self._own_scores is None:
                    self._own_scores = own_scores(self._metric, self._own)
                self._parts[key].append(
                    changed_parts(self._metric, outputs, self._own, self._own_scores)
                )
            except (
                InputError
            ):  # without labels the metric can't read them, and the monitor can't either
                del self._parts[key]

    def of(self, samples: int) -> dict[str, Array]:
        """Return how much of each answer is changed, `(samples,)`, by model; some may be left out."""
        whole = {key: np.concatenate(parts) for key, parts in self._parts.items() if parts}
        return {key: parts for key, parts in whole.items() if len(parts) == samples}
