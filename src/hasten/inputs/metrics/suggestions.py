"""Words for data of which no metric is the default: the cause, and the forms that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.inputs.data.labels_by_output import listed as named_labels
from hasten.inputs.metrics.outputs import class_specs, of_samples, whole, words_said

_PAGE = "docs/reference/metrics.md lists all metrics"
_BOXES = {"boxes", "scores", "labels"}


def why_no_default(labels: Array | None, outputs: Sequence[TensorSpec]) -> str:
    """Return in one line why no metric is the default, and at most three forms that fit the data.

    Args:
        labels: Labels of the data, `(n, ...)`; None where it has none.
        outputs: Outputs of the model.
    """
    if labels is not None and labels.dtype.names is not None:
        cause, forms = (
            f"the data has labels of several outputs, {named_labels(labels)}",
            (f'name the metric of each, as metric="top1@{labels.dtype.names[0]}"'),
        )
    elif labels is None:
        cause, forms = _without_labels(outputs)
    elif labels.dtype.kind not in "biuf":
        texts = 'for texts to compare name metric="cer:vocab.txt"'
        return f"no metric was named, and {words_said(labels)}; {texts}; {_PAGE}"
    else:
        cause, forms = _with_numbers(labels, outputs)
    return f"no metric was named, and {cause}: {forms}; {_PAGE}"


def hint_of_chosen(outputs: Mapping[str, tuple[str, Sequence[int | str]]]) -> str:
    """Return a clause on the only output of classes that the model chose itself; "" where there is none.

    Args:
        outputs: Type and shape of each output by name, the batch first.
    """
    found = [
        name
        for name, (dtype, shape) in outputs.items()
        if dtype.startswith(("int", "uint")) and len(shape) and tuple(shape[1:]) in ((), (1,))
    ]
    if len(found) != 1:
        return ""
    return (
        f"; if the labels are the numbers that the output {found[0]!r} gives, name it: "
        f'metric="top1@{found[0]}"'
    )


def _without_labels(outputs: Sequence[TensorSpec]) -> tuple[str, str]:
    scores = class_specs(outputs)
    if len(scores) > 1:
        return _several(scores), (
            f'name one, as in metric="agreement@{scores[0].name}", or all, as in metric="agreement@all"'
        )
    floats = [spec for spec in outputs if spec.dtype.startswith("float")] or outputs
    at = "" if len(outputs) == 1 else f"@{floats[0].name}"
    return (
        f"only you know how far the numbers of {_listed(outputs)} may be off",
        f'give a tolerance, as in metric="regression:0.01{at}" or metric="regression:2%{at}", or a cosine, '
        f'metric="embedding:0.99{at}"',
    )


def _with_numbers(labels: Array, outputs: Sequence[TensorSpec]) -> tuple[str, str]:
    """Return cause and forms where labels are numbers `(n, ...)`."""
    scores, told = class_specs(outputs), of_samples(labels)
    single = labels.ndim == 1 or labels.shape[1:] == (1,)
    if {spec.name for spec in outputs} >= _BOXES and labels.ndim == 3:
        return f"the labels {told} look like boxes", 'give metric="detection_f1"'
    if len(scores) > 1:
        return f"{_several(scores)}, and one array of labels", (
            f'name the output that they are for, as in metric="top1@{scores[0].name}"'
        )
    spec = scores[0] if scores else outputs[0]
    at = "" if len(outputs) == 1 else f"@{spec.name}"
    size, wide = str(spec).partition("[")[2][:-1], len(spec.shape)
    tolerance = f'metric="regression:0.01{at}" or metric="regression:2%{at}"'
    if not scores and single and wide <= 2 and set(np.unique(labels).tolist()) <= {0, 1}:
        return f"the labels are 0 or 1, and {spec.name!r} gives one number a sample", (
            f'give metric="auroc{at}" if it ranks, metric="brier:sigmoid{at}" if it is a logit, or '
            f'metric="brier{at}" if it is a probability'
        )
    if wide == labels.ndim + 1 and wide > 2 and whole(labels):
        kind = "token_accuracy" if wide == 3 else "iou"
        return f"the labels {told} are classes of places in {spec.name!r} [{size}]", (
            f'give metric="{kind}{at}"'
        )
    if scores and single:
        return (
            f"the labels are numbers such as {_odd(labels):g}, not classes of {spec.name!r} [{size}]",
            (
                f"give whole numbers from 0 for classes, labels of the output's shape for "
                f'metric="regression:0.01{at}", or a function of your own, metric="my.py:function"'
            ),
        )
    if scores and spec.shape[1] == labels.shape[1] and labels.ndim == 2:
        if ((labels == 0) | (labels == 1)).all():
            return f"the labels {told} give some samples several classes, or none", (
                f'give metric="recall:1{at}", or a function of your own, metric="my.py:function"'
            )
        return f"only you know how far the numbers of {spec.name!r} may be off", f"give {tolerance}"
    if spec.fits(labels.astype(spec.dtype)) or (single and spec.shape[1:] in ((), (1,))):
        return f"only you know how far the numbers of {spec.name!r} may be off", f"give {tolerance}"
    return f"the labels {told} fit no class and no number of {_listed(outputs)}", (
        'give a function of your own, metric="my.py:function", or metric="agreement", which reads no labels'
    )


def _several(scores: Sequence[TensorSpec]) -> str:
    names = [spec.name for spec in scores]
    return f"the model has {len(names)} outputs of class scores, {', '.join(names[:-1])} and {names[-1]}"


def _listed(outputs: Sequence[TensorSpec]) -> str:
    shown = ", ".join(map(str, outputs[:3]))
    return shown if len(outputs) <= 3 else f"{shown} and {len(outputs) - 3} more"


def _odd(labels: Array) -> float:
    """Return a label that is no class, or else the first."""
    flat = labels.reshape(-1)
    wrong = flat[(flat != np.floor(flat)) & ~np.isnan(flat)]
    return float(wrong[0] if len(wrong) else flat.max())
