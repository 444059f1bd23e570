import numpy as np
import pytest

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics import default_metric, parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.choice import forms
from hasten.inputs.metrics.combined import EachOutput
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.ranking import Ndcg
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1, Top5

FORMS = forms()


def test_every_metric_says_how_it_is_written() -> None:
    written = FORMS.split(", ")
    assert {"top1[:OUTPUT]", "regression:PERCENT%", "my.py:function"} <= {*written}
    assert [s for kind in Metric.members().values() for s in kind.spellings] == written


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("top1", Top1()),
        ("top1:logits", Top1("logits")),
        ("top5", Top5()),
        ("agreement:logits", Agreement("logits")),
        ("regression:0.01", Regression(0.01)),
        ("regression:2%", Regression(relative=0.02)),
        ("embedding", Embedding()),
        ("embedding:0.98", Embedding(0.98)),
        ("detection_f1", DetectionF1()),
        ("detection_f1:0.75", DetectionF1(0.75)),
        ("top1@logits", Top1("logits")),
        ("top1@Identity:0", Top1("Identity:0")),
        ("regression:0.02@537", Regression(0.02, output="537")),
        ("embedding@pooler_output", Embedding(output="pooler_output")),
        ("embedding:0.98@pooler_output", Embedding(0.98, "pooler_output")),
        ("brier:softmax@y", Brier("softmax", "y")),
        ("iou:last@mask", Iou(last=True, output="mask")),
        ("regression:2%@all", EachOutput(Regression(relative=0.02))),
        ("ndcg:5@scores", Ndcg(5, "scores")),
        ("my.py:score", Custom("my.py:score")),
        ("package.module:score", Custom("package.module:score")),
    ],
)
def test_a_metric_is_read_as_it_is_written(text: str, metric: Metric) -> None:
    assert parse_metric(text) == metric


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top2", f"there is no metric 'top2'; there are {FORMS}"),
        ("", f"there is no metric ''; there are {FORMS}"),
        ("regression:x", "metric 'regression:x': 'x' isn't a number"),
        (
            "regression",
            "regression: tolerance 0 and relative 0; give one above 0, as in regression:0.01",
        ),
        ("top1@", "metric 'top1@' names no output after the @: write one, or leave out the @"),
        ("top1:a@b", "metric 'top1:a@b' names two outputs, a and b: name one"),
        (
            "detection_f1@boxes",
            "metric 'detection_f1@boxes': detection_f1 reads several outputs with fixed names; "
            "leave out @boxes",
        ),
        (
            "my.py:score@y",
            "metric 'my.py:score@y': a function of your own gets all outputs by name: read outputs['y'] in "
            "it, and leave out @y",
        ),
        (
            "auroc@all",
            "metric 'auroc@all': auroc compares samples with each other, by one output: name it",
        ),
        (
            "all_of",
            "metric 'all_of': give the metrics of the outputs one by one, as in --metric "
            "top1@logits --metric regression:0.02@boxes",
        ),
        (
            "each_output",
            "metric 'each_output': name the metric that reads each output, as in agreement@all",
        ),
        ("ndcg:0", "metric 'ndcg:0': '0' isn't a number of places; give one from 1 on"),
        (
            "pck:2",
            "pck:2: the largest distance, as a share of the box, must be above 0 and at most 1",
        ),
        ("cer:,x", "metric 'cer:,x': 'x' isn't a setting; write the blank's class as blank=0"),
        ("cer:no.txt", "metric 'cer:no.txt': the vocabulary no.txt: no such file"),
        ("embedding:2", "embedding:2: the least cosine must be above -1 and at most 1"),
    ],
)
def test_what_is_no_metric_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_metric(text)
    assert str(error.value) == message


LOGITS = TensorSpec("logits", "float32", ("n", 10))
FEATURES = TensorSpec("features", "float32", ("n", 7, 7))


def test_classes_with_labels_are_top1_and_without_agreement() -> None:
    assert default_metric(np.arange(3), [LOGITS]) == Top1()
    assert default_metric(np.zeros((3, 10), np.int64), [LOGITS]) == Top1()
    assert default_metric(None, [LOGITS]) == Agreement()
    assert default_metric(None, [FEATURES, LOGITS]) == Agreement("logits")


@pytest.mark.parametrize(
    "outputs", [[FEATURES], [LOGITS, LOGITS], [TensorSpec("y", "float32", ("n", 1))]]
)
def test_a_tolerance_is_never_assumed(outputs: list[TensorSpec]) -> None:
    with pytest.raises(InputError) as error:
        default_metric(None, outputs)
    assert str(error.value) == (
        f"no metric fits the outputs {', '.join(map(str, outputs))} automatically: choose one with metric= ({FORMS})"
    )


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((3, 4, 5), np.int64)])
def test_labels_that_are_no_classes_need_a_metric(labels: Array) -> None:
    with pytest.raises(InputError) as error:
        default_metric(labels, [LOGITS])
    assert str(error.value) == (
        f"no metric fits the labels float64 [3] and the outputs {LOGITS} automatically: choose one with metric= ({FORMS})"
        if labels.ndim == 1
        else f"no metric fits the labels int64 [3, 4, 5] and the outputs {LOGITS} automatically: choose one with metric= ({FORMS})"
    )
