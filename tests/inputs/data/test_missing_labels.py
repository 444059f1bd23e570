"""A label may be missing in every form of data, and no metric sees one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.function import from_python
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.missing import NO_NUMBER, filled, none_for, unlabelled
from hasten.inputs.data.npz import open_npz
from hasten.inputs.data.source import open_data
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.choice import parse_metric
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.metrics.unlabelled import check_labelled, missing_labels, scored_where_known
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.measure.steps import OverSteps
from hasten.optimization.labelling.wanted import with_labels

NAN = float("nan")
X = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([1, None, 2], [1, NO_NUMBER, 2]),
        ([True, None, False], [1, NO_NUMBER, 0]),
        ([0.5, None, 2], [0.5, NAN, 2]),
        ([None, NAN, 1], [NO_NUMBER, NO_NUMBER, 1]),
        (["a", None, ""], ["a", "", ""]),
        (["a", NAN, "nan"], ["a", "", "nan"]),
        (np.array([1, -1, 2]), [1, -1, 2]),
    ],
)
def test_none_becomes_a_missing_label(labels: Any, found: list[Any]) -> None:
    own = ArrayDataset({"x": X}, filled(labels)).labels
    np.testing.assert_array_equal(own, found)
    for given in (labels, tuple(labels)):
        again = from_python((X, given), ["x"], Path("unused")).labels
        np.testing.assert_array_equal(again, found)


def test_a_sample_of_an_iterable_may_lack_its_label(tmp_path: Path) -> None:
    rows = list(zip(X, [None, 1, 0], strict=True))
    np.testing.assert_array_equal(
        from_python(rows, ["x"], tmp_path / "a").labels, [NO_NUMBER, 1, 0]
    )
    floats = list(zip(X, [0.5, 1.5, None], strict=True))
    np.testing.assert_array_equal(
        from_python(floats, ["x"], tmp_path / "b").labels, [0.5, 1.5, NAN]
    )
    nothing = list(zip(X, [None] * 3, strict=True))
    assert from_python(nothing, ["x"], tmp_path / "c").labels is None


@pytest.mark.parametrize("metric", ["top1", "regression:0.5", "cer", "iou", "detection_f1", "pck"])
def test_none_is_a_missing_label_among_whole_numbers_whatever_metric_reads_them(
    tmp_path: Path, metric: str
) -> None:
    own = np.arange(20).reshape(2, 2, 5)
    known: list[Any] = {"top1": [0, 1], "regression:0.5": [5, 6]}.get(metric, list(own))
    labels = [known[0], None, known[1]]
    sources: list[Any] = [list(zip(X, labels, strict=True))]
    if np.ndim(known[0]) == 0:
        sources.append((X, labels))
    for number, source in enumerate(sources):
        data = from_python(source, ["x"], tmp_path / f"{number}")
        told = with_labels(data, metric, asking=False).labels
        missing = missing_labels(parse_metric(metric), told)
        assert missing is not None
        assert missing.tolist() == [False, True, False]
        assert told is not None
        np.testing.assert_array_equal(told[[0, 2]], known)


def test_a_masked_label_is_a_missing_one(tmp_path: Path) -> None:
    # As netCDF files have them; under a mask there is any number.
    masked = np.ma.masked_equal(np.array([1, -9, 0]), -9)
    single = list(zip(X, masked, strict=True))
    for number, given in enumerate(((X, masked), {"x": X, "labels": masked}, single)):
        data = from_python(given, ["x"], tmp_path / f"{number}")
        np.testing.assert_array_equal(data.labels, [1, NO_NUMBER, 0])
    for several in ([*masked], (*masked,)):
        np.testing.assert_array_equal(
            from_python((X, several), ["x"], Path("unused")).labels, [1, NO_NUMBER, 0]
        )
    np.testing.assert_array_equal(filled(masked.astype(float)), [1, NAN, 0])
    assert filled(np.ma.masked_array([1, 2, 3])).tolist() == [1, 2, 3]


def test_a_list_of_masked_labels_keeps_their_masks(tmp_path: Path) -> None:
    tokens = [np.ma.masked_equal(row, 9) for row in ([1, 9], [9, 9], [2, 3])]
    found = [[1, NO_NUMBER], [NO_NUMBER, NO_NUMBER], [2, 3]]
    for number, given in enumerate(((X, tokens), {"x": X, "labels": (*tokens,)})):
        data = from_python(given, ["x"], tmp_path / f"{number}")
        np.testing.assert_array_equal(data.labels, found)
    nested = [[[row], [row]] for row in tokens]
    np.testing.assert_array_equal(filled(nested)[:, 0, 0], found)
    whole = filled([np.ma.masked_array(np.ones(2, np.float32))] * 2)
    assert type(whole) is np.ndarray
    assert whole.dtype == np.float32


def test_a_single_label_that_is_masked_in_part_keeps_what_is_known(tmp_path: Path) -> None:
    tokens = [np.ma.masked_equal(row, 9) for row in ([1, 9], [9, 9], [2, 3])]
    labels = from_python(list(zip(X, tokens, strict=True)), ["x"], tmp_path / "a").labels
    np.testing.assert_array_equal(labels, [[1, NO_NUMBER], [NO_NUMBER, NO_NUMBER], [2, 3]])
    points = [row.astype(float) for row in tokens]
    with pytest.raises(InputError, match=r"^labels: sample 0 has NaN or Inf; repair it"):
        from_python(list(zip(X, points, strict=True)), ["x"], tmp_path / "b")


def test_nan_beside_texts_is_a_missing_text_and_a_number_is_refused(tmp_path: Path) -> None:
    single = list(zip(X, ["a", NAN, "nan"], strict=True))
    np.testing.assert_array_equal(
        from_python(single, ["x"], tmp_path / "a").labels, ["a", "", "nan"]
    )
    pairs = list(zip(X, [("a", NAN), ["b", "c"], (NAN, None)], strict=True))
    np.testing.assert_array_equal(
        from_python(pairs, ["x"], tmp_path / "c").labels, [["a", ""], ["b", "c"], ["", ""]]
    )
    for given in (list(zip(X, ["a", 1, "b"], strict=True)), (X, ["a", 1, "b"])):
        with pytest.raises(InputError, match=r"^some labels are texts|^labels are Python objects"):
            from_python(given, ["x"], tmp_path / "b")


def test_nan_beside_texts_is_refused_where_nothing_may_be_missing(tmp_path: Path) -> None:
    gaps = ["a", NAN, "b"]
    single = list(zip(X, [0, 1, 2], gaps, strict=True))
    with pytest.raises(InputError) as error:
        from_python((X, {"y": gaps}), ["x"], tmp_path / "a")
    assert str(error.value) == (
        "a list of labels has texts, but NaN for sample 1: name what it is, or leave the sample out"
    )
    for number, given in enumerate(((X, None, gaps), {"x": X, "groups": tuple(gaps)}, single)):
        with pytest.raises(InputError) as error:
            from_python(given, ["x"], tmp_path / f"{number}")
        assert str(error.value) == (
            "groups: sample 1 has none: give it a group of its own, or leave the sample out"
        )
    held = from_python((X, None, ["a", 7, "b"]), ["x"], tmp_path / "b").groups
    np.testing.assert_array_equal(held, ["a", "7", "b"])


def test_whole_and_broken_numbers_stay_labels_beside_a_missing_one(tmp_path: Path) -> None:
    rows = list(zip(X, [1, 0.5, None], strict=True))
    np.testing.assert_array_equal(from_python(rows, ["x"], tmp_path).labels, [1, 0.5, NAN])


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[1, None, None], [2, 2, 1], [None, None, None]], object),
        np.ma.masked_equal([[1, 9, 9], [2, 2, 1], [9, 9, 9]], 9),
    ],
)
def test_tokens_whose_label_is_missing_dont_count(labels: Any) -> None:
    dataset = from_python((X, labels), ["x"], Path("unused"))
    told = with_labels(dataset, "token_accuracy", asking=False).labels
    found = {"y": np.array([[1, 2, 0], [2, 2, 2], [0, 0, 0]])}
    scores = scored_where_known(parse_metric("token_accuracy"), found, found, told)
    assert scores.tolist() == [1, pytest.approx(2 / 3), 1]


def test_a_number_that_is_missing_in_a_label_of_numbers_is_refused_by_what_reads_it() -> None:
    dataset = from_python((X, [[1, 2], [3, None], [None, None]]), ["x"], Path("unused"))
    found = {"y": np.zeros((3, 2), np.float32)}
    given: list[tuple[Metric, Array | None]] = [
        (Regression(0.5), dataset.labels),
        (OverSteps(Regression(0.5), "all"), filled([[1, 2], [3, None], [4, 5]])),
    ]
    for metric, labels in given:
        with pytest.raises(InputError) as error:
            scored_where_known(metric, found, found, labels)
        assert str(error.value) == (
            "regression reads every number of a label, but one has None, NaN or a masked value among its numbers: "
            "repair it, or leave the whole label or its sample out"
        )


def test_an_archive_may_hold_nan_for_labels_as_a_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, labels=np.array([[1, 2], [NAN, NAN], [3, 4.0]]))
    labels = open_npz(tmp_path / "a.npz", ["x"]).labels
    assert labels is not None
    assert unlabelled(labels, classes=False).tolist() == [False, True, False]
    np.savez(tmp_path / "b.npz", x=X, labels=np.array([[1, 2], [NAN, 2], [3, 4.0]]))
    with pytest.raises(InputError) as error:
        open_npz(tmp_path / "b.npz", ["x"])
    assert str(error.value) == "labels: sample 1 has NaN or Inf; repair it or leave it out"


def test_images_in_the_folder_unlabelled_have_no_class(tmp_path: Path) -> None:
    for folder in ("cat", "unlabelled", "zebra"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    found = ImageFolder(tmp_path, image_pipeline(size=8), "x")
    assert found.classes == ("cat", "zebra")
    assert found.labels is not None
    assert found.labels.tolist() == [0, NO_NUMBER, 1]


@pytest.mark.parametrize(
    ("classes", "cells", "found"),
    [
        (("no", "yes"), ["yes", "", "no", "NA", "-1"], [1, NO_NUMBER, 0, NO_NUMBER, -1]),
        (("0", "1"), ["1", "", "0", "nan", "-1.0"], [1, NO_NUMBER, 0, NO_NUMBER, -1]),
        (("-1", "1"), ["1", "", "-1", "", "1"], [1, NO_NUMBER, 0, NO_NUMBER, 1]),
        ((), ["1.5", "", "-1", "null", "0"], [1.5, NAN, -1, NAN, 0]),
    ],
)
def test_an_empty_cell_is_a_missing_label(
    tmp_path: Path, classes: tuple[str, ...], cells: list[str], found: list[float]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,y\n" + "".join(f"1,2,{cell}\n" for cell in cells))
    after = (TopK(1, classes, softmax=False),) if classes else ()
    pipeline = Pipeline((Row(("a", "b")),), after)
    data = open_data(file, [TensorSpec("x", "float32", ("n", 2))], pipeline)
    np.testing.assert_array_equal(data.labels, found)


def test_where_none_is_a_class_an_empty_cell_is_refused(tmp_path: Path) -> None:
    file, specs = tmp_path / "rows.csv", [TensorSpec("x", "float32", ("n", 2))]
    pipeline = Pipeline((Row(("a", "b")),), (TopK(1, ("None", "some"), softmax=False),))
    for cell in ("", "NA"):
        file.write_text(f"a,b,y\n1,2,{cell}\n1,2,some\n")
        with pytest.raises(InputError, match="row 1: the label must be one of 'None', 'some': got"):
            open_data(file, specs, pipeline)
    file.write_text("a,b,y\n1,2,None\n1,2,some\n1,2,None\n")
    labels = open_data(file, specs, pipeline).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 0]


def test_one_below_zero_is_missing_among_classes_and_a_number_elsewhere() -> None:
    labels = np.array([-1, 0, 1])
    assert unlabelled(labels, classes=True).tolist() == [True, False, False]
    assert not unlabelled(labels, classes=False).any()
    assert unlabelled(np.array([[0, 1], [-1, -1]]), classes=True).tolist() == [False, True]
    for metric in (Top1(), Brier()):
        assert metric.reads_classes
    assert not Regression(0.1).reads_classes


def test_labels_of_which_none_is_known_have_the_form_of_others() -> None:
    assert none_for(None, 2, classes=True).tolist() == [-1, -1]
    assert np.isnan(none_for(np.zeros((3, 4)), 2, classes=False)).tolist() == [[True] * 4] * 2


def logits(*classes: int) -> dict[str, Array]:
    return {"y": np.eye(3, dtype=np.float32)[list(classes)]}


def test_without_a_label_an_answer_scores_by_whether_it_changed() -> None:
    own, other = logits(0, 1, 2, 0), logits(0, 2, 2, 1)
    labels = np.array([-1, -1, 0, 1])
    assert scored_where_known(Top1(), own, own, labels).tolist() == [1, 1, 0, 0]
    assert scored_where_known(Top1(), other, own, labels).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("metric", [Top1(), Regression(0.5), Brier("softmax")])
def test_no_labels_could_make_the_drop_larger_than_it_is_taken_for(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    own = {"y": rng.standard_normal((60, 3)).astype(np.float32)}
    other = {
        "y": own["y"] + np.where(rng.random((60, 1)) < 0.5, 0, 1) * rng.standard_normal((60, 3))
    }
    classes = metric.reads_classes
    labels = rng.integers(0, 3, 60) if classes else rng.standard_normal((60, 3))
    hidden = labels.copy()
    hidden[::2] = -1 if classes else NAN
    truth = metric.score(own, own, labels) - metric.score(other, own, labels)
    taken = scored_where_known(metric, own, own, hidden) - scored_where_known(
        metric, other, own, hidden
    )
    np.testing.assert_array_equal(taken[1::2], truth[1::2])
    assert (taken >= truth).all()


def only_classes(outputs: Tensors, labels: Array) -> Array:
    assert not np.isnan(labels).any(), "a missing label was shown"
    return np.asarray(outputs["y"].argmax(axis=1) == labels, np.float64)


def test_a_users_own_function_never_sees_a_missing_label() -> None:
    metric = Custom(f"{__name__}:only_classes")
    labels = np.array([0.0, NAN, 2.0])
    assert scored_where_known(metric, logits(0, 1, 1), logits(0, 1, 2), labels).tolist() == [
        1,
        1,
        0,
    ]


def test_training_data_keeps_its_labels_as_a_whole_or_not_at_all() -> None:
    from hasten.optimization.labelling.wanted import with_whole_labels

    whole = ArrayDataset({"x": X}, np.array([0, 1, 2]))
    assert with_whole_labels(whole, Top1()) is whole
    gaps = with_whole_labels(ArrayDataset({"x": X}, np.array([0, -1, 2])), Top1())
    assert gaps.labels is None
    assert gaps.content_hash(1) == whole.content_hash(1)


def test_classes_that_are_floats_for_nans_sake_are_whole_numbers() -> None:
    data = with_labels(ArrayDataset({"x": X}, np.array([0.0, NAN, 2.0])), None, asking=False)
    assert data.labels is not None
    assert (data.labels.dtype.kind, data.labels.tolist()) == ("i", [0, -1, 2])
    number = ArrayDataset({"x": X}, np.array([0.0, NAN, 2.0]))
    assert with_labels(number, "regression:0.1", asking=False) is number
    nothing = with_labels(ArrayDataset({"x": X}, np.full(3, -1)), "top1", asking=False)
    assert nothing.labels is None
    asked = with_labels(ArrayDataset({"x": X}), None, asking=True)
    assert asked.labels is not None
    assert asked.labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("gaps", [[1, None, 1], [1.0, NAN, 1.0], [[1], [None], [1]]])
def test_a_missing_label_beside_class_1_is_no_class_of_its_own(gaps: list[Any]) -> None:
    told = with_labels(from_python((X, gaps), ["x"], Path("unused")), "top1", asking=False).labels
    assert told is not None
    assert told.reshape(-1).tolist() == [1, -1, 1]


def in_files(folder: Path) -> list[Any]:
    """Return data of two samples of the class "good" and one without a label, in forms of files."""
    for place in ("pictures/good/a", "pictures/good/b", "pictures/unlabelled/a"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"{place}.png")
    (folder / "rows.csv").write_text("a,b,y\n1,2,good\n3,4,good\n5,6,\n")
    return [folder / "pictures", folder / "rows.csv"]


def test_a_missing_label_beside_one_classs_name_is_no_class_of_its_own(tmp_path: Path) -> None:
    after = (Threshold(position=1, labels=("bad", "good")),)
    pictures, rows = in_files(tmp_path)
    words = ["good", "good", None]
    for source, steps in (
        ((X, words), ()),
        (list(zip(X, words, strict=True)), ()),
        (pictures, image_pipeline(size=8).steps),
        (rows, (Row(("a", "b")),)),
        ({"a": [1, 3, 5], "b": [2, 4, 6], "y": words}, (Row(("a", "b")),)),
    ):
        data = open_data(source, [TensorSpec("x", "float32", ("n", 2))], Pipeline(steps, after))
        for metric in ("top1", None):
            told = with_labels(data, metric, asking=False).labels
            assert told is not None
            assert told.tolist() == [1, 1, -1]
        assert missing_labels(Custom(f"{__name__}:only_classes"), data.labels) is not None


def test_numbers_of_classes_beside_names_may_not_be_minus_1_and_1() -> None:
    pipeline = Pipeline((Row(("a", "b")),), (TopK(1, ("bad", "good"), softmax=False),))
    table = {"a": [1, 3, 5], "b": [2, 4, 6], "y": [1, -1, 1]}
    data = open_data(table, [TensorSpec("x", "float32", ("n", 2))], pipeline)
    with pytest.raises(InputError, match=r"^the labels are -1 and 1, and -1 stands for a missing"):
        with_labels(data, "top1", asking=False)


@pytest.mark.parametrize("labels", [[1, -1, 1], [1, -1, None], [1.0, NAN, -1.0]])
def test_classes_that_are_called_minus_1_and_1_are_refused(labels: list[Any]) -> None:
    with pytest.raises(InputError) as error:
        with_labels(from_python((X, labels), ["x"], Path("unused")), "top1", asking=False)
    assert str(error.value) == (
        "the labels are -1 and 1, and -1 stands for a missing label: give the classes as 0 and 1"
    )


def test_what_compares_samples_with_each_other_needs_every_label() -> None:
    from hasten.inputs.metrics.auroc import Auroc

    with pytest.raises(InputError) as error:
        check_labelled(Auroc(), np.array([0, 1, -1, 1]), "auroc")
    assert str(error.value) == (
        "auroc compares samples with each other, so it needs every label: 1 of 4 are missing; label "
        "them, or leave those samples out"
    )
