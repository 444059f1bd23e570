"""From what a person writes to a metric, and the metric where nothing is said."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1, Top5

FORMS = (
    "top1, top5, agreement, each with :OUTPUT or not; embedding:COSINE, regression:TOLERANCE, "
    "regression:PERCENT%, detection_f1, or my.py:function"
)


def parse_metric(text: str) -> Metric:
    """Read a metric as it is written on a command line.

    "top1", "top5" and "agreement" may name an output: "top1:logits". "embedding:0.98" states
    the least cosine, "regression:0.01" an absolute tolerance, "regression:2%" one relative to
    the truth, "detection_f1:0.5" the least IoU. "my.py:score" or "package.module:score" is a
    function.

    Raises:
        InputError: it is none of these.
    """
    name, _, setting = text.partition(":")
    if name == "top1":
        return Top1(setting or None)
    if name == "top5":
        return Top5(setting or None)
    if name == "agreement":
        return Agreement(setting or None)
    if name == "regression":
        if setting.endswith("%"):
            return Regression(relative=_number(text, setting[:-1]) / 100)
        return Regression(_number(text, setting) if setting else 0.0)
    if name == "embedding":
        return Embedding(_number(text, setting)) if setting else Embedding()
    if name == "detection_f1":
        return DetectionF1(_number(text, setting)) if setting else DetectionF1()
    if setting:
        return Custom(text)
    raise InputError(f"there is no metric {text!r}; there are {FORMS}")


def _number(text: str, setting: str) -> float:
    try:
        return float(setting)
    except ValueError as error:
        raise InputError(f"metric {text!r}: {setting!r} is no number") from error


def default_metric(labels: Array | None, outputs: Sequence[TensorSpec]) -> Metric:
    """Choose a metric where none was asked for.

    One class per sample and one output of class scores give top-1; the same without labels,
    agreement. Anything else needs a tolerance that nobody but the user knows.

    Args:
        labels: The data's labels.
        outputs: The model's outputs.

    Raises:
        InputError: nothing can be assumed, and what to ask for.
    """
    scores = [
        spec for spec in outputs if len(spec.shape) == 2 and spec.shape[1] != 1 and _float(spec)
    ]
    listed = ", ".join(map(str, outputs))
    if len(scores) != 1:
        raise InputError(
            f"no metric fits the outputs {listed} by itself: say which with --metric ({FORMS})"
        )
    if labels is None:
        return Agreement(None if len(outputs) == 1 else scores[0].name)
    one_hot = labels.ndim == 2 and labels.shape[1] in (1, scores[0].shape[1])
    if labels.dtype.kind not in "biu" or not (labels.ndim == 1 or one_hot):
        raise InputError(
            f"no metric fits the labels {labels.dtype} {list(labels.shape)} and the outputs {listed} "
            f"by itself: say which with --metric ({FORMS})"
        )
    return Top1(None if len(outputs) == 1 else scores[0].name)


def _float(spec: TensorSpec) -> bool:
    return "float" in spec.dtype
