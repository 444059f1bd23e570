from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.labels_by_output import joined
from hasten.inputs.metrics import check_outputs, default_metric, parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.choice import forms
from hasten.inputs.metrics.combined import EachOutput
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.outputs import over_samples
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
            "metric 'regression': regression needs a tolerance, as in regression:0.02 or regression:2%",
        ),
        (
            "regression@y",
            "metric 'regression@y': regression needs a tolerance, as in regression:0.02 or regression:2%",
        ),
        (
            "regression@Identity:0",
            "metric 'regression@Identity:0': regression needs a tolerance, as in regression:0.02 or "
            "regression:2%",
        ),
        (
            "regression@537:0.02",
            "metric 'regression@537:0.02': write METRIC:SETTING@OUTPUT, as in regression:0.02@537",
        ),
        (
            "regression@Identity:0:2%",
            "metric 'regression@Identity:0:2%': write METRIC:SETTING@OUTPUT, as in "
            "regression:2%@Identity:0",
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "embedding@pooled:0.98",
            "embedding reads the output 'pooled:0.98', but the model's outputs are pooled: "
            "float32[n, 8]; settings stand before the @: write embedding:0.98@pooled",
        ),
        (
            "ndcg@all:5",
            "ndcg reads the output 'all:5', but the model's outputs are pooled: float32[n, 8]; "
            "settings stand before the @: write ndcg:5@all",
        ),
        (
            "top1@Identity:0",
            "top1 reads the output 'Identity:0', but the model's outputs are pooled: float32[n, 8]",
        ),
    ],
)
def test_settings_behind_an_outputs_name_are_told_from_a_name(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_outputs(parse_metric(text), [TensorSpec("pooled", "float32", ("n", 8))])
    assert str(error.value) == message
    check_outputs(parse_metric(text), [TensorSpec(text.partition("@")[2], "float32", ("n", 8))])


LOGITS = TensorSpec("logits", "float32", ("n", 10))
FEATURES = TensorSpec("features", "float32", ("n", 7, 7))


def test_classes_with_labels_are_top1_and_without_agreement() -> None:
    assert default_metric(np.arange(3), [LOGITS]) == Top1()
    assert default_metric(np.zeros((3, 10), np.int64), [LOGITS]) == Top1()
    assert default_metric(None, [LOGITS]) == Agreement()
    assert default_metric(None, [FEATURES, LOGITS]) == Agreement("logits")


def test_classes_may_be_floats_and_rows_of_floats() -> None:
    assert default_metric(np.array([0.0, 9.0, 2.0], np.float32), [LOGITS]) == Top1()
    assert default_metric(np.eye(10, dtype=np.float32), [LOGITS]) == Top1()
    assert default_metric(np.array([0.0, np.nan]), [LOGITS]) == Top1()


def test_classes_that_the_model_chooses_itself_are_top1_and_without_labels_agreement() -> None:
    chosen = TensorSpec("y", "int64", ("n",))
    assert default_metric(np.arange(3), [chosen]) == Top1()
    assert default_metric(None, [chosen]) == Agreement()
    assert default_metric(np.arange(3), [LOGITS, chosen]) == Top1("logits")


@pytest.mark.parametrize("labels", [None, np.arange(3), np.arange(1.0, 4.0)])
def test_a_whole_number_beside_other_outputs_is_no_class_unless_it_is_named(labels: Any) -> None:
    """It may be the length of an encoding, which no fault of its numbers changes."""
    for shape in (("n",), ("n", 1)):
        with pytest.raises(InputError, match=r"^no metric was named, and "):
            default_metric(labels, [FEATURES, TensorSpec("lengths", "int64", shape)])


ONE = TensorSpec("y", "float32", ("n", 1))
TOKENS = TensorSpec("y", "float32", ("n", 5, 9))
MASKS = TensorSpec("y", "float32", ("n", 3, 4, 4))
HEADS = [TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "float32", ("n", 2))]
ALL = "; docs/reference/metrics.md lists all metrics"
TOLERANCE = 'give metric="regression:0.01" or metric="regression:2%"'


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        (
            None,
            [FEATURES],
            "only you know how far the numbers of features: float32[n, 7, 7] may be off: give a tolerance, as "
            'in metric="regression:0.01" or metric="regression:2%", or a cosine, metric="embedding:0.99"',
        ),
        (
            None,
            HEADS,
            "the model has 2 outputs of class scores, a and b: name one, as in "
            'metric="agreement@a", or all, as in metric="agreement@all"',
        ),
        (
            np.arange(3),
            HEADS,
            "the model has 2 outputs of class scores, a and b, and one array of labels: name the "
            'output that they are for, as in metric="top1@a"',
        ),
        (
            np.array(["", "cat", "dog"]),
            [LOGITS],
            "the labels are words, such as 'cat', and nothing says which class each is: give the "
            "classes' numbers in the model's order, as np.unique(labels, return_inverse=True)[1] "
            'where that is alphabetical; for texts to compare name metric="cer:vocab.txt"',
        ),
        (
            np.array([0.0, 0.5]),
            [LOGITS],
            "the labels are numbers such as 0.5, not classes of 'logits' [n, 10]: give whole numbers "
            'from 0 for classes, labels of the output\'s shape for metric="regression:0.01", or a '
            'function of your own, metric="my.py:function"',
        ),
        (
            np.array([0, 1, 1]),
            [ONE],
            "the labels are 0 or 1, and 'y' gives one number a sample: give metric=\"auroc\" if it "
            'ranks, metric="brier:sigmoid" if it is a logit, or metric="brier" if it is a '
            "probability",
        ),
        (
            np.array([[0.0], [1.0]], np.float32),
            [TensorSpec("y", "float32", ("n",)), FEATURES],
            "the labels are 0 or 1, and 'y' gives one number a sample: give metric=\"auroc@y\" if it "
            'ranks, metric="brier:sigmoid@y" if it is a logit, or metric="brier@y" if it is a '
            "probability",
        ),
        (
            np.array([0.5, 7.0]),
            [ONE],
            f"only you know how far the numbers of 'y' may be off: {TOLERANCE}",
        ),
        (
            np.full((2, 10), 0.5),
            [LOGITS],
            f"only you know how far the numbers of 'logits' may be off: {TOLERANCE}",
        ),
        (
            np.ones((2, 10)),
            [LOGITS],
            "the labels (n, 10) give some samples several classes, or none: give "
            'metric="recall:1", or a function of your own, metric="my.py:function"',
        ),
        (
            np.zeros((2, 5), np.int64),
            [TOKENS],
            "the labels (n, 5) are classes of places in 'y' [n, 5, 9]: give "
            'metric="token_accuracy"',
        ),
        (
            np.zeros((2, 4, 4), np.int64),
            [MASKS],
            "the labels (n, 4, 4) are classes of places in 'y' [n, 3, 4, 4]: give metric=\"iou\"",
        ),
        (
            np.zeros((2, 6, 5)),
            [TensorSpec(n, "float32", ("n", 6)) for n in ("boxes", "scores", "labels")],
            'the labels (n, 6, 5) look like boxes: give metric="detection_f1"',
        ),
        (
            np.zeros((2, 7)),
            [LOGITS],
            "the labels (n, 7) fit no class and no number of logits: float32[n, 10]: give a function "
            'of your own, metric="my.py:function", or metric="agreement", which reads no labels',
        ),
        (
            joined({"a": np.arange(2), "b": np.arange(2)}),
            HEADS,
            "the data has labels of several outputs, labels@a, labels@b: name the metric of each, as "
            'metric="top1@a"',
        ),
    ],
)
def test_where_no_metric_is_the_default_one_line_says_why_and_what_fits(
    labels: Array | None, outputs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(InputError) as error:
        default_metric(labels, outputs)
    assert str(error.value) == f"no metric was named, and {message}{ALL}"


@pytest.mark.parametrize(
    ("taken", "asked", "given", "scored"),
    [
        (("N", 8), (1, 8), ("N", 3), ("N", 3)),
        (("N", 8), (1, 8), ("M", 3), ("M", 3)),
        (("T", "N", 8), (5, 1, 8), ("N", 3), ("N", 3)),
        (("T", "N", 8), (5, 1, 8), ("T", "N", 3), ("n", "T", "N", 3)),
        (("nodes", 8), (5, 8), ("nodes", 3), ("n", "nodes", 3)),
        (("nodes", 8), (5, 8), (1, 3), (1, 3)),
        ((16,), (16,), (3,), ("n", 3)),
        ((16,), (16,), (), ("n",)),
    ],
)
def test_answers_get_an_axis_for_the_samples_where_the_model_has_no_batch(
    taken: Any, asked: Any, given: Any, scored: Any
) -> None:
    found = over_samples(
        [TensorSpec("y", "float32", given)],
        [TensorSpec("x", "float32", taken)],
        [TensorSpec("x", "float32", asked)],
    )
    assert [spec.shape for spec in found] == [scored]
