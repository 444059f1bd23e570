"""Notes for the reader of a result: what stands in place of labels that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hasten.certificate.verdict import Judgement
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.optimization.ready import Ready


def label_notes(
    ready: Ready, verdicts: Sequence[tuple[str, Judgement | str]], unlabelled: Mapping[str, int]
) -> list[str]:
    """Return what labels are missing, what that costs, and what labels would add.

    Args:
        ready: Model and data of the run.
        verdicts: Verdicts of the sealed data.
        unlabelled: Candidate's key -> number of samples that count as lost for want of a label.
    """
    labels, metric = ready.parts.sealed.labels, ready.promise.metric
    judged = [(key, entry) for key, entry in verdicts if isinstance(entry, Judgement)]
    worst = max((unlabelled.get(key, 0) for key, _ in judged), default=0)
    changed = [entry.lost for _, entry in judged if entry.lost is not None]
    if labels is None:
        if not metric.of_changes or ready.promise.guard == "changed" or not changed:
            return []
        if not max(changed):
            return ["no sealed answer changed, so labels would add nothing to the certificate"]
        return [
            f"the data has no labels, so agreement was judged: with {_labels(max(changed))}, for "
            "the sealed samples on which answers differ, the drop in accuracy itself could be "
            "certified (--ask-labels)"
        ]
    missing = missing_labels(metric, labels)
    if missing is None or ready.asking:
        return []
    share = f"{int(missing.sum()):,} of {len(missing):,} sealed samples have no label"
    if not worst:
        return [f"{share}; no judged candidate answers differently there"]
    return [
        f"{share}; up to {worst:,} of them, on which answers differ, count as lost, which is the "
        f"worst case: {_labels(worst)} would settle it (--ask-labels)"
    ]


def _labels(count: int) -> str:
    return f"{count:,} label{'' if count == 1 else 's'}"
