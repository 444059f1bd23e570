"""Say what an audited answer counts as, and what limit a bundle's answers are held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.bundle import Manifest
from hasten.certificate.monitor import ALPHA, BOUND_ALPHA, Null
from hasten.core.records import from_record
from hasten.core.tensors import Array, Tensors
from hasten.core.varying import of_one_size
from hasten.errors import HastenError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.changes import changed_parts, tells_changes
from hasten.serving.monitoring.kept import Watched

_UNSTATED = "the bundle's certificate states no limit: give --shadow-limit to have it watched"
_ABOUT_A_DROP = (
    "the bundle's certificate is about a drop, and its record states no limit on changed answers: "
    "give --shadow-limit to have them watched"
)
_ROUNDING = 1e-9


class Judging:
    """Limits that the answers of one bundle are held to.

    Args:
        manifest: Manifest of the bundle.
        limit: Limit on the share of changed answers; 0 for the one that follows from the certificate.

    Attributes:
        varying: Names of outputs whose size depends on a sample's values, which nothing is read of.
        answers: Limit on audited answers, without labels; None where nothing states one.
        labelled: Limit on audited answers whose labels came; None where labels say nothing.
        why: Line that says why there is no limit without labels; "" where there is one.
    """

    def __init__(self, manifest: Manifest, limit: float) -> None:
        self.varying = manifest.varying
        self.metric, readable = _metric(manifest)
        certificate = manifest.certificate or {}
        judged = certificate.get("judgement")
        judged = judged if isinstance(judged, Mapping) else {}
        guard, most = judged.get("guard"), judged.get("max_drop")
        certified = isinstance(most, float) and 0 < most < 1
        promised = most if isinstance(most, float) and certified and _by_answer(judged) else 0.0
        self._promised = promised if guard == "changed" or _of_changes(self.metric) else 0.0
        self._seen = _seen(certificate.get("changed")) if certified and readable else 0.0
        # Where the metric itself tells changed answers, one that isn't changed loses nothing.
        least = promised if tells_changes(self.metric) else 0.0
        follows = self._promised or (max(least, self._seen) if self._seen else 0.0)
        limit, estimated = (
            (limit, False) if limit else (follows, not self._promised and follows > least)
        )
        stated = 0 < limit < 1
        by_labels = promised > 0 and guard in ("net", "lost") and _by_labels(self.metric)
        share = ALPHA / 2 if by_labels and stated else ALPHA
        self.answers: Watched | None = None
        self.labelled: Watched | None = None
        if stated:
            alpha = share - BOUND_ALPHA if estimated else share
            self.answers = Watched("changed", Null(limit), alpha)
        if by_labels:
            self.labelled = Watched(str(guard), Null(promised, net=guard == "net"), share)
        self.why = "" if stated else _ABOUT_A_DROP if certified else _UNSTATED

    @property
    def limits(self) -> tuple[Watched, ...]:
        """All limits that there are."""
        return tuple(each for each in (self.answers, self.labelled) if each is not None)

    def meaning(self, what: str, limit: float) -> str:
        """Return what it means that a limit is broken, in words.

        Args:
            what: Quantity that broke its limit: "changed", "lost" or "net".
            limit: Limit.
        """
        if what != "changed" or 0 < self._promised <= limit:
            return "the certificate doesn't hold for this traffic"
        if 0 < self._seen <= limit:
            return "this traffic isn't the traffic that was certified"
        return "no certificate states this limit"

    def changed(self, outputs: Tensors, exact: Tensors) -> float:
        """Return how much of an answer is changed, in [0, 1]: by the metric, where it can tell.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        return float(changed_parts(self.metric, self._sample(outputs), self._sample(exact)).mean())

    def loss(self, outputs: Tensors, exact: Tensors, label: Array) -> float:
        """Return how much score is lost on an answer whose label is known, in [-1, 1].

        Raises:
            InputError: the label isn't of the form that the metric reads.
        """
        assert self.metric is not None
        assert self.labelled is not None
        outputs, exact = self._sample(outputs), self._sample(exact)
        own = self.metric.checked(self.metric.score(exact, exact, label), 1)
        other = self.metric.checked(self.metric.score(outputs, exact, label), 1)
        lost = float(own[0] - other[0])
        return lost if self.labelled.null.net else max(lost, 0.0)

    def _sample(self, outputs: Tensors) -> Tensors:
        """Return an answer as that of one sample, in the form in which the certificate's data was answered."""
        return {
            name: array if array.shape[:1] == (1,) else array[np.newaxis]
            for name, array in of_one_size(outputs, self.varying).items()
        }


def _metric(manifest: Manifest) -> tuple[Metric | None, bool]:
    """Return the bundle's metric, None where it isn't to be run here, and whether it is known here.

    A server doesn't run a user's own code.
    """
    try:
        metric: Metric = from_record(Metric, manifest.metric)
    except HastenError:
        return None, False
    return (None if metric.function is not None else metric), True


def _of_changes(metric: Metric | None) -> bool:
    """Whether a fall of the score is the share of changed answers."""
    return metric is not None and metric.of_changes


def _by_labels(metric: Metric | None) -> bool:
    """Whether the score of one answer can be computed from its label."""
    return metric is not None and metric.needs_labels and not metric.over_set


def _by_answer(judged: Mapping[str, Any]) -> bool:
    """Whether a promise is about the mean over answers, and not over groups, which no server knows.

    Older records don't say; there groups counted once each.
    """
    return judged.get("groups") is None or judged.get("over") == "samples"


def _seen(record: object) -> float:
    """Return the bound on the share of changed answers on the sealed data; 0 where it isn't stated."""
    if not isinstance(record, Mapping):
        return 0.0
    bound, confidence = record.get("bound"), record.get("confidence")
    if not (isinstance(bound, float) and isinstance(confidence, float)):
        return 0.0
    sure = 1 - BOUND_ALPHA - _ROUNDING <= confidence < 1
    return bound if sure and 0 < bound < 1 else 0.0
