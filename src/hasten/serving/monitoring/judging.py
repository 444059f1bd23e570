"""Say what an audited answer counts as, and what limit a bundle's answers are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hasten.bundle import Manifest
from hasten.certificate.monitor import ALPHA, Null
from hasten.core.records import from_record
from hasten.core.tensors import Array, Tensors, rows_of
from hasten.errors import HastenError
from hasten.inputs.metrics.base import Metric
from hasten.serving.monitoring.kept import Watched

_NOTHING = 1e-18
"""Share of a sum below which a further part of it doesn't count."""


class Judging:
    """What the answers of one bundle are held to.

    Args:
        manifest: Manifest of the bundle.
        limit: Limit on the share of changed answers; 0 for the one that follows from the certificate.
        otherwise: Function that finds the rows with another decision, where the metric can't tell.

    Attributes:
        answers: Limit on audited answers, without labels; None where nothing states one.
        labelled: Limit on audited answers whose labels came; None where labels say nothing.
        why: Line that says why there is no limit; "" where there is one.
    """

    def __init__(
        self, manifest: Manifest, limit: float, otherwise: Callable[[Tensors, Tensors], Array]
    ) -> None:
        self._otherwise = otherwise
        self.metric = _metric(manifest)
        judged = (manifest.certificate or {}).get("judgement")
        judged = judged if isinstance(judged, Mapping) else {}
        guard, most = judged.get("guard"), judged.get("max_drop")
        certified = isinstance(most, float) and 0 < most < 1
        self.answers: Watched | None = None
        self.labelled: Watched | None = None
        self.why = ""
        needs = self.metric is not None and self.metric.needs_labels and not self.metric.over_set
        if certified and guard in ("net", "lost") and needs and self.metric is not None:
            assert isinstance(most, float)
            self.labelled = Watched(guard, Null(most, net=guard == "net"), ALPHA / 2)
        if not limit and certified:
            assert isinstance(most, float)
            limit = most if self.labelled is None else max(most, _certified_flips(judged))
        if 0 < limit < 1:
            alpha = ALPHA if self.labelled is None else ALPHA / 2
            self.answers = Watched("changed", Null(limit), alpha)
        else:
            self.why = (
                "the bundle's certificate states no limit: give --shadow-limit to have it watched"
            )

    @property
    def limits(self) -> tuple[Watched, ...]:
        """All limits that there are."""
        return tuple(each for each in (self.answers, self.labelled) if each is not None)

    def changed(self, outputs: Tensors, exact: Tensors) -> float:
        """Return how much of an answer is changed, in [0, 1]: by the metric, where it can tell.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        metric = self.metric
        if metric is None or metric.over_set or (metric.needs_labels and not metric.binary):
            return float(self._otherwise(outputs, exact).mean())
        rows = rows_of(exact)
        if metric.needs_labels:
            return float(1 - np.asarray(metric.unchanged(outputs, exact), np.float64).mean())
        own = metric.checked(metric.score(exact, exact, None), rows)
        other = metric.checked(metric.score(outputs, exact, None), rows)
        return float(np.maximum(own - other, 0).mean())

    def loss(self, outputs: Tensors, exact: Tensors, label: Array) -> float:
        """Return how much score is lost on an answer whose label is known, in [-1, 1].

        Raises:
            InputError: the label isn't of the form that the metric reads.
        """
        assert self.metric is not None
        assert self.labelled is not None
        own = self.metric.checked(self.metric.score(exact, exact, label), 1)
        other = self.metric.checked(self.metric.score(outputs, exact, label), 1)
        lost = float(own[0] - other[0])
        return lost if self.labelled.null.net else max(lost, 0.0)


def _metric(manifest: Manifest) -> Metric | None:
    """Return the bundle's metric; None where it is a user's own code, which a server doesn't run."""
    try:
        metric: Metric = from_record(Metric, manifest.metric)
    except HastenError:
        return None
    return None if metric.function is not None else metric


def _certified_flips(judged: Mapping[str, Any]) -> float:
    """Return a 95% upper bound (Clopper-Pearson) on the answers that flipped on the sealed data."""
    n, lost, gained = (judged.get(name) for name in ("n", "lost", "gained"))
    if not (isinstance(n, int) and isinstance(lost, int) and isinstance(gained, int)):
        return 0.0
    flips = lost + gained
    if not 0 <= flips < n:
        return 0.0
    low, high = flips / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(flips, n, middle) > 0.05 else (low, middle)
    return high


def _at_most(count: int, n: int, share: float) -> float:
    """Return the chance of at most `count` of n at a share above count / n; a server has no scipy for it.

    Chances fall from `count` down, so those that no longer matter aren't added: a manifest may state any n.
    """
    whole = 0.0
    for k in range(count, -1, -1):
        chance = math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(share)
            + (n - k) * math.log1p(-share)
        )
        whole += chance
        if chance <= _NOTHING * whole:
            break
    return whole
