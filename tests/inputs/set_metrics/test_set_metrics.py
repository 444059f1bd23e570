"""Figures over a set, beside scikit-learn's and scipy's, with scores that tie."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn import metrics as theirs

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.set_metrics import chosen, parse_set_metric
from hasten.inputs.set_metrics.auroc import SetAuroc
from hasten.inputs.set_metrics.base import SetMetric
from hasten.inputs.set_metrics.choice import set_forms
from hasten.inputs.set_metrics.custom import SetCustom
from hasten.inputs.set_metrics.f1 import F1
from hasten.inputs.set_metrics.log_loss import LogLoss

SCORE = (TensorSpec("label", "int64", ("n",)), TensorSpec("p", "float32", ("n", 2)))
NAMES = ("auroc", "ks", "average_precision", "brier", "log_loss")


def drawn(seed: int, rows: int, digits: int = 1) -> tuple[Array, Array]:
    """Probabilities that tie often, and labels that they have something to do with."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(rows) % 3 == 0).astype(np.int64)
    return np.round(np.clip(0.3 * labels + rng.uniform(0, 0.7, rows), 0, 1), digits), labels


def expected(name: str, p: Array, labels: Array) -> float:
    """The figure as scikit-learn or scipy gives it."""
    if name == "ks":
        return float(ks_2samp(p[labels == 1], p[labels == 0]).statistic)
    function = {
        "auroc": theirs.roc_auc_score,
        "average_precision": theirs.average_precision_score,
        "brier": theirs.brier_score_loss,
        "log_loss": theirs.log_loss,
    }[name]
    return float(function(labels, p))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(4, 60), digits=st.integers(1, 3))
def test_figures_are_those_of_scikit_learn(name: str, seed: int, rows: int, digits: int) -> None:
    p, labels = drawn(seed, rows, digits)
    outputs = {"label": labels, "p": np.stack([1 - p, p], axis=1)}
    assert parse_set_metric(name).value(outputs, labels) == pytest.approx(expected(name, p, labels))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_read_as_the_probabilities_that_they_stand_for(name: str) -> None:
    p, labels = drawn(0, 200, 2)
    p = np.clip(p, 0.01, 0.99)
    logits = np.log(p / (1 - p))
    metric = parse_set_metric(name)
    wanted = pytest.approx(expected(name, p, labels))
    for outputs in ({"z": logits}, {"z": logits[:, None]}, {"z": np.stack([0 * p, logits], 1)}):
        settled = metric.settled(outputs)
        assert settled.value(outputs, labels) == wanted
        kind = "softmax" if outputs["z"].shape[1:] == (2,) else "sigmoid"
        assert settled.reading == f"{kind} of the output"


@pytest.mark.parametrize(
    ("name", "function"),
    [("auroc", theirs.roc_auc_score), ("average_precision", theirs.average_precision_score)],
)
def test_more_classes_are_each_against_the_rest_on_average(name: str, function: object) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 150)
    scores = rng.random((150, 4)).round(1) + 1e-3 + 0.5 * np.eye(4)[labels]
    p = scores / scores.sum(axis=1, keepdims=True)
    found = parse_set_metric(name).value({"p": p}, labels)
    each = [function((labels == k).astype(int), p[:, k]) for k in range(4)]  # type: ignore[operator]
    assert found == pytest.approx(np.mean(each))


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_rows() -> None:
    p = np.array([0.05, 0.05, 0.55, 0.55, 0.55, 1.0])
    labels = np.array([0, 1, 1, 1, 0, 1])
    gaps = [2 * abs(0.05 - 1 / 2), 3 * abs(0.55 - 2 / 3), 1 * abs(1 - 1)]
    found = parse_set_metric("calibration_error").value({"p": p}, labels)
    assert found == pytest.approx(sum(gaps) / 6)
    whole = parse_set_metric("calibration_error:1").value({"p": p}, labels)
    assert whole == pytest.approx(abs(p.mean() - labels.mean()))


def test_the_calibration_error_of_more_classes_is_of_the_likeliest() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    found = parse_set_metric("calibration_error").value({"p": p}, np.array([0, 2]))
    assert found == pytest.approx(abs(0.8 - 0.5))


AVERAGES = {"f1": "macro", "f1:macro": "macro", "f1:micro": "micro", "f1:positive": "binary"}


@pytest.mark.parametrize(("name", "average"), AVERAGES.items())
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(4, 60))
def test_f1_is_that_of_scikit_learn(name: str, average: str, seed: int, rows: int) -> None:
    p, labels = drawn(seed, rows, 2)
    p[:2] = 0.9  # some are decided for each class, so that neither library lacks one
    metric, wanted = parse_set_metric(name), theirs.f1_score(labels, p >= 0.5, average=average)
    logits = 8 * (p - 0.5)
    for outputs in ({"p": p}, {"p": p[:, None]}, {"z": logits}):
        settled = metric.settled(outputs)
        assert settled.value(outputs, labels) == pytest.approx(wanted)
        assert settled.reading == ("read as logits" if "z" in outputs else "")


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_of_more_classes_and_of_several_to_a_sample_is_that_of_scikit_learn(
    average: str,
) -> None:
    rng = np.random.default_rng(2)
    metric = parse_set_metric(f"f1:{average}@z")
    labels = rng.integers(0, 3, 200)  # of four classes one is neither labelled nor decided for
    logits = rng.normal(0, 1, (200, 4)) + 2 * np.eye(4)[labels] - [0, 0, 0, 99]
    wanted = theirs.f1_score(labels, logits.argmax(1), average=average)
    assert metric.settled({"z": logits}).value({"z": logits}, labels) == pytest.approx(wanted)
    assert metric.value({"z": logits}, np.eye(4, dtype=int)[labels]) == pytest.approx(wanted)

    several = (rng.random((200, 4)) < 0.4).astype(np.int64)
    logits = rng.normal(0, 1, (200, 4)) + 2 * several - 1
    wanted = theirs.f1_score(several, logits >= 0, average=average)
    p = 1 / (1 + np.exp(-logits))
    for z in (logits, p):
        settled = metric.settled({"z": z})
        assert settled.value({"z": z}, several) == pytest.approx(wanted)


def test_f1_is_decided_by_the_pipelines_threshold_and_what_it_leaves_open_is_neither() -> None:
    labels = np.array([1, 1, 1, 0, 0])
    p = np.array([0.35, 0.5, 0.2, 0.1, 0.4])
    outputs = {"other": p, "p": np.stack([1 - p, p], axis=1)}
    step = Threshold(0.3, position=1, output="p", labels=("no", "yes"))
    metric = parse_set_metric("f1:positive").around(Pipeline((), (step,)))
    assert metric.value(outputs, labels) == pytest.approx(2 * 2 / (3 + 3))
    assert metric.reading == "decided by threshold"
    assert from_record(SetMetric, to_record(metric)) == metric
    unsure = parse_set_metric("f1:positive").around(Pipeline((), (replace(step, margin=0.07),)))
    assert unsure.value(outputs, labels) == pytest.approx(2 * 1 / (2 + 3))
    both = F1(average="macro").around(Pipeline((), (replace(step, margin=0.07),)))
    assert both.value(outputs, labels) == pytest.approx((2 * 1 / (2 + 3) + 2 * 1 / (2 + 2)) / 2)
    elsewhere = parse_set_metric("f1:positive@other")
    assert elsewhere.around(Pipeline((), (step,))) == elsewhere


@pytest.mark.parametrize(
    ("name", "columns", "labels", "message"),
    [
        (
            "f1:positive",
            3,
            [0, 1, 2, 0],
            "f1:positive is for two classes, but the model gives scores of 3: ask for f1:macro or f1:micro",
        ),
        (
            "f1:positive",
            1,
            [0, 0, 0, 0],
            "f1 needs decisions or labels of class 1, but none of the 4 samples has one",
        ),
        ("f1", 1, [0, 1, 2, 0], "f1 reads labels that are 0 or 1; sample 2 of 4 has 2"),
    ],
)
def test_f1_says_what_it_can_not_read(
    name: str, columns: int, labels: list[int], message: str
) -> None:
    with pytest.raises(InputError) as error:
        parse_set_metric(name).value({"p": np.zeros((4, columns))}, np.array(labels))
    assert str(error.value) == message


@pytest.mark.parametrize("name", [*NAMES, "calibration_error", *AVERAGES])
def test_counts_weigh_rows_as_repeating_them_does(name: str) -> None:
    p, labels = drawn(3, 60)
    outputs = {"p": p}
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=5)
    metric = parse_set_metric(name)
    fast = metric.values(outputs, labels, counts)
    assert fast == pytest.approx(SetMetric.values(metric, outputs, labels, counts))


def test_a_resampled_set_without_a_class_has_no_figure() -> None:
    p, labels = drawn(3, 9)
    lone = (labels == 0)[None].astype(np.int64)
    assert np.isnan(parse_set_metric("auroc").values({"p": p}, labels, lone)).all()


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (
            {"p": [0.1, 0.2]},
            [0, 0],
            "auroc needs samples of every class, but none of the 2 samples has class 1",
        ),
        ({"p": [0.1, np.nan]}, [0, 1], "auroc: the score of sample 1 of 2 isn't finite"),
        ({"p": [0.1, 0.2]}, [-1, 1], "auroc reads labels that are 0 or 1; sample 0 of 2 has -1"),
        (
            {"p": [0.1, 0.2]},
            [0.5, 1],
            "auroc reads labels that are 0 or 1; sample 0 of 2 has 0.5",
        ),
        (
            {"p": [0.1, 0.2]},
            [[[1]], [[0]]],
            "auroc reads labels (n,) that are 0 or 1; got int64 (n, 1, 1)",
        ),
        (
            {"p": [[[0.1]], [[0.2]]]},
            [0, 1],
            "auroc reads one output of scores, (n,), (n, 1) or (n, classes); the model gives p "
            "float64 (n, 1, 1)",
        ),
        (
            {"p": [0.1, 0.2], "q": [0.1, 0.2]},
            [0, 1],
            "auroc reads one output of scores, (n,), (n, 1) or (n, classes); the model gives p "
            "float64 (n,), q float64 (n,)",
        ),
        (
            {"p": [[0.2, 0.8], [0.2, 0.8]]},
            [0, 2],
            "auroc: label 2 is none of the 2 classes 0 to 1",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(
    outputs: dict[str, object], labels: object, message: str
) -> None:
    arrays = {name: np.array(array) for name, array in outputs.items()}
    with pytest.raises(InputError) as error:
        parse_set_metric("auroc").value(arrays, np.array(labels))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gini",
            f"there is no metric over a set 'gini'; there are {set_forms()}",
        ),
        (
            "calibration_error:some",
            "metric 'calibration_error:some': 'some' isn't a number of bins",
        ),
        ("calibration_error:0", "calibration_error:0: give 1 to 1000 bins"),
    ],
)
def test_an_unknown_figure_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_set_metric(text)
    assert str(error.value) == message


def test_a_binary_classification_has_its_figures_without_being_asked() -> None:
    labels = np.array([0, 1, 1])
    assert [type(one).__name__ for one in chosen(None, labels, SCORE, None)] == [
        "SetAuroc",
        "Ks",
        "SetBrier",
        "LogLoss",
        "CalibrationError",
    ]
    assert chosen(None, labels.astype(float), (TensorSpec("z", "float32", ("n", 1)),), None)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        (None, SCORE),
        (np.array([0, 0]), SCORE),
        (np.array([0, 1, 2]), SCORE),
        (np.array([0.2, 0.7]), SCORE),
        (np.array([0, 1]), (TensorSpec("p", "float32", ("n", 3)),)),
        (np.array([0, 1]), (TensorSpec("boxes", "float32", ("n", 5, 4)),)),
    ],
)
def test_other_data_has_none(labels: Array | None, outputs: tuple[TensorSpec, ...]) -> None:
    assert chosen(None, labels, outputs, None) == ()


def test_a_threshold_says_how_scores_come_about() -> None:
    step = Threshold(activation="softmax", position=1, output="p")
    first = chosen(None, np.array([0, 1]), SCORE, Pipeline((), (step,)))[0]
    assert first == SetAuroc("p", "softmax")


def test_figures_can_be_asked_for_or_left_out() -> None:
    labels = np.array([0, 1])
    assert chosen(("log_loss:p",), labels, SCORE, None) == (LogLoss("p"),)
    assert chosen(("none",), labels, SCORE, None) == chosen((), labels, SCORE, None) == ()
    for asked, message in (
        (("none", "ks"), "report='none' means no figures: leave out 'none' or the others"),
        (("ks", "ks"), "a figure is asked for twice: ks, ks"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(asked, labels, SCORE, None)
    with pytest.raises(InputError, match=r"brier:sigmoid@p$"):
        chosen(("brier@p:sigmoid",), labels, SCORE, None)
    with pytest.raises(InputError, match="ks reads 'q'; the model has label, p"):
        chosen(("ks:q",), labels, SCORE, None)
    with pytest.raises(InputError, match="the metric ks needs labels, but the data has none"):
        chosen(("ks",), None, SCORE, None)


def test_a_users_own_function_gets_the_whole_set(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def rows(outputs, labels): return len(labels)\n"
        "rows.higher_is_better = False\n"
        "def each(outputs, labels): return outputs['p']\n"
        "def three(outputs, labels, exact): return 1\n"
        "def lost(outputs, labels): return float('nan')\n"
    )
    outputs, labels = {"p": np.zeros(200)}, np.zeros(200)
    own = parse_set_metric(f"{tmp_path}/own.py:rows")
    assert isinstance(own, SetCustom)
    assert (own.value(outputs, labels), own.noun, own.higher_is_better) == (200, "rows", False)
    for name, message in (
        ("each", "own.py:each returned an ndarray; a metric over a set returns one number"),
        ("lost", "own.py:lost returned nan; a metric over a set returns one number"),
    ):
        with pytest.raises(InputError, match=message):
            parse_set_metric(f"{tmp_path}/own.py:{name}").value(outputs, labels)
    with pytest.raises(InputError) as error:
        _ = parse_set_metric(f"{tmp_path}/own.py:three").source_sha256
    assert str(error.value) == (
        f"{tmp_path}/own.py:three takes 3 arguments; a metric over a set takes (outputs, labels)"
    )
