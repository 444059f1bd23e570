"""Check of an exact bundle on data: whether it answers as its exact model does."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.bundle import Manifest
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.tensors import Array
from hasten.evaluation.seen import Recheck
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.metrics.agreeing import without_labels
from hasten.inputs.metrics.base import Metric


@dataclass(frozen=True)
class ExactCheck(Recheck):
    """Outcome of asking an exact bundle and its exact model the same data.

    Its judgement counts the answers that changed on these samples and claims nothing of others: the confidence is
    0 and the bound 1, since a candidate becomes exact by answers that didn't change, maybe on these very samples.

    Attributes:
        itself: Whether what the bundle serves is its exact model, so that two sessions of one model
            were compared.
    """

    itself: bool = False

    @property
    def passed(self) -> bool:
        """Whether no answer changed."""
        return self.judgement.verdict is Verdict.CERTIFIED

    @property
    def verdict(self) -> str:
        """Verdict in a word or two."""
        return "exact" if self.passed else "not exact"

    @property
    def asked(self) -> str:
        """Words for the claim that was tested."""
        return "that no answer changes"

    def in_words(self) -> str:
        """Return the outcome in one line, and figures and notes in further ones."""
        more = () if self.comparison is None else self.comparison.in_words()
        return "\n".join((self._first(), *more, *(f"note: {note}" for note in self.notes)))

    def _first(self) -> str:
        if not self.passed:
            changed = self.judgement.lost or 0
            if self.itself:
                return (
                    "not exact here: the bundle serves its exact model itself, and two sessions of it "
                    f"answered {changed:,} of {self.used:,} samples differently; it may draw random "
                    "numbers: export it without them, or give a limit on the drop to test instead"
                )
            return (
                f"not exact here: {changed:,} of {self.used:,} answers "
                f"differ{'s' if changed == 1 else ''} from the exact model's; optimize again on this "
                "machine, or give a limit on the drop to test instead"
            )
        who = "what the bundle serves answered all {} samples as its exact model does"
        if self.itself:
            who = "the bundle serves its exact model itself, and two sessions of it answered all {} samples alike"
        return f"exact, so it needs no certificate: {who.format(f'{self.used:,}')}"


def exactness(changed: Array, *, itself: bool) -> ExactCheck:
    """Return the outcome of a check for equal answers.

    Args:
        changed: Whether each sample's answer changed, bool `(n,)`.
        itself: Whether two sessions of one model were compared.
    """
    count = int(changed.sum())
    judgement = Judgement(
        verdict=Verdict.NOT_ACCURATE_ENOUGH if count else Verdict.CERTIFIED,
        guard="changed",
        metric="agreement",
        method="comparison of every answer",
        max_drop=0.0,
        confidence=0.0,
        n=len(changed),
        groups=None,
        lost=count,
        gained=0,
        bound=1.0,
        estimate=count / max(1, len(changed)),
    )
    return ExactCheck("exact", judgement, len(changed), left_out=0, itself=itself)


def needs_no_limit(manifest: Manifest, *limits: object) -> bool:
    """Whether a bundle is checked for equal answers: it is exact, and nothing of a limit was given."""
    exact = manifest.certificate is None and manifest.status == "exact"
    return exact and all(given is None for given in limits)


def comparing(metric: Metric, data: Dataset) -> Metric:
    """Return the metric to compare answers by: without labels, one of classes compares the classes."""
    return without_labels(metric) if data.labels is None else metric
