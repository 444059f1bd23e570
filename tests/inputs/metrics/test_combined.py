"""Several outputs scored at once: the lowest score counts, and labels find their output."""

from pathlib import Path

import numpy as np
import pytest

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.labels_by_output import joined
from hasten.inputs.metrics import check_outputs, named_metric, parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.combined import AllOf, EachOutput
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.exactness import Changes

LOGITS = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
SIZES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
OWN = {"logits": LOGITS, "sizes": SIZES}
BOTH = named_metric(["top1@logits", "regression:0.1@sizes"])


def moved(rows: list[int]) -> dict[str, Array]:
    """Outputs whose first size of some samples is off."""
    sizes = SIZES.copy()
    sizes[rows, 0] += 1
    return {"logits": LOGITS, "sizes": sizes}


def test_the_lowest_score_of_the_outputs_counts() -> None:
    labels = np.array([0, 1, 1])
    assert BOTH.score(moved([0]), OWN, labels).tolist() == [0.5, 1, 0]


def test_one_metric_reads_every_output() -> None:
    metric = parse_metric("regression:0.1@all")
    assert metric.score(moved([1]), OWN, None).tolist() == [1, 0.5, 1]
    assert metric.unchanged(moved([1]), OWN).tolist() == [True, False, True]
    assert parse_metric("agreement@all").score(
        {**OWN, "logits": LOGITS[:, ::-1]}, OWN, None
    ).tolist() == [0, 0, 0]


def test_integers_and_truth_values_agree_where_they_are_equal() -> None:
    own = {"y": LOGITS, "best": np.array([0, 1, 0]), "sure": np.array([[True], [True], [False]])}
    other = {**own, "best": np.array([0, 2, 0]), "sure": np.array([[False], [True], [False]])}
    assert parse_metric("agreement@all").score(other, own, None).tolist() == [0, 0, 1]
    assert parse_metric("agreement@all").unchanged(other, own).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (DetectionF1(), "detection_f1 reads several outputs with fixed names; leave out @all"),
        (Top1("a"), "top1 names the output a; leave out @all"),
    ],
)
def test_what_a_stranger_may_write_of_every_output_is_checked(metric: Metric, message: str) -> None:
    with pytest.raises(InputError) as error:
        EachOutput(metric)
    assert str(error.value) == message


def test_labels_with_a_field_for_each_output_are_read_by_name() -> None:
    labels = joined(
        {"logits": np.array([0, 1, 0]), "sizes": SIZES + np.array([[0.0], [0.0], [9.0]])}
    )
    assert BOTH.score(OWN, OWN, labels).tolist() == [1, 1, 0]


def test_a_metric_without_a_field_compares_with_the_exact_model() -> None:
    labels = joined({"logits": np.array([0, 1, 0])})
    assert BOTH.score(moved([2]), OWN, labels).tolist() == [1, 1, 0.5]


def test_a_function_among_them_reads_the_labels_of_every_output(tmp_path: Path) -> None:
    file = tmp_path / "own_labels.py"
    file.write_text("def score(outputs, labels):\n    return labels['logits'] == labels['more']\n")
    both = named_metric([f"{file}:score", "top1@logits"])
    labels = joined({"logits": np.array([0, 1, 1]), "more": np.array([0, 0, 1])})
    assert both.score(OWN, OWN, labels).tolist() == [1, 0, 0]


def test_two_metrics_of_one_output_share_its_labels() -> None:
    both = AllOf((Top1("logits"), parse_metric("brier@logits")))
    assert both.score(OWN, OWN, np.array([0, 1, 1])).tolist() == pytest.approx([0.99, 0.96, 0])


def test_a_function_among_them_is_named_so_that_no_bundle_runs_it() -> None:
    assert named_metric(["my.py:score", "top1@logits"]).function == "my.py:score"


def test_several_metrics_are_written_and_read_back() -> None:
    assert from_record(Metric, to_record(BOTH)) == BOTH
    every = parse_metric("regression:0.1@all")
    assert from_record(Metric, to_record(every)) == every
    assert named_metric(["top1"]) == Top1()


def test_rounding_leaves_numbers_alone_and_another_class_is_a_change() -> None:
    own = {"logits": np.array([[0.9, 0.1, 0.0], [0.1, 0.5, 0.5 - 1e-7]]), "sizes": SIZES[:2]}
    rounded = {**own, "sizes": SIZES[:2] * (1 + 1e-6)}
    flipped = {**rounded, "logits": np.array([[0.9, 0.1, 0.0], [0.1, 0.5 - 1e-7, 0.5]])}
    wrong_before_and_after = np.zeros(2)
    for outputs, changed in ((rounded, 0), (flipped, 1)):
        changes = Changes(BOTH)
        changes.add(outputs, own)
        assert changes.count(wrong_before_and_after, wrong_before_and_after) == changed


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([], "no metric is given: name at least one"),
        (["top1@a", "top1@a"], "a metric is given twice: top1, top1"),
        (
            ["top1@a", "auroc@b"],
            "auroc can't be combined with other metrics: it compares samples with each other; name it "
            "alone",
        ),
        (
            ["top1@a", "agreement@all"],
            "each_output can't be combined with other metrics: it combines some; name it alone",
        ),
    ],
)
def test_metrics_that_do_not_combine_are_refused(metrics: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        AllOf(tuple(parse_metric(one) for one in metrics))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("metrics", "labels", "message"),
    [
        (
            ["regression:1@logits", "regression:1@sizes"],
            SIZES,
            "the labels are one array, and regression@logits and regression@sizes could each read it: "
            "give labels of each output, as arrays labels@OUTPUT, or leave them out",
        ),
        (
            ["top1@logits", "top1@sizes"],
            np.array([0, 1, 0]),
            "the labels are one array, and top1@logits and top1@sizes each need their own: give labels of "
            "each output, as arrays labels@OUTPUT",
        ),
        (
            ["top1@all"],
            np.array([0, 1, 0]),
            "the labels are one array, and top1@logits and top1@sizes each need their own: give labels of "
            "each output, as arrays labels@OUTPUT",
        ),
        (
            ["top1@logits", "regression:1@sizes"],
            joined({"size": np.zeros(3)}),
            "the data has labels@size, and no metric reads an output of that name; the metrics read "
            "top1@logits, regression@sizes",
        ),
        (
            ["top1@logits", "regression:1@sizes"],
            joined({"sizes": SIZES}),
            "top1@logits needs labels, and the data has labels of sizes: add labels@OUTPUT, and name the "
            "output in the metric",
        ),
        (
            ["top1@logits", "regression:1@sizes"],
            joined({"sizes": np.full(3, np.nan)}),
            "labels@sizes has NaN or Inf; repair it",
        ),
    ],
)
def test_labels_that_fit_no_output_are_refused(
    metrics: list[str], labels: Array, message: str
) -> None:
    with pytest.raises(InputError) as error:
        named_metric(metrics).score(OWN, OWN, labels)
    assert str(error.value) == message


@pytest.mark.parametrize("metric", ["top1@b", ["agreement@logits", "top1@b"]])
def test_an_output_that_is_not_there_is_named_with_those_that_are(metric: str | list[str]) -> None:
    outputs = [TensorSpec("logits", "float32", ("n", 10)), TensorSpec("sizes", "float32", ("n", 2))]
    with pytest.raises(InputError) as error:
        check_outputs(named_metric(metric), outputs)
    assert str(error.value) == (
        "top1 reads the output 'b', but the model's outputs are logits: float32[n, 10], sizes: "
        "float32[n, 2]"
    )
