"""Mean average precision: by hand, beside the library on resampled sets, and on what isn't boxes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hasten.certificate.figures import Setting
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.missing import filled
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.yolo import YoloBoxes
from hasten.inputs.set_metrics import chosen
from hasten.inputs.set_metrics.mean_ap import MeanAp, MeanAp50

pytest.importorskip("pycocotools", reason="mAP needs the extra detection")

BOX, BESIDE, APART = [0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60]
PAD = [0, 0, 0, 0]
near = pytest.approx


def outputs(*pictures: Sequence[tuple[Any, float, Any]]) -> dict[str, Array]:
    """Return detections as a model gives them, filled up with rows of score 0."""
    most = max(map(len, pictures)) + 1
    rows = [[*picture, *[(PAD, 0.0, 0)] * (most - len(picture))] for picture in pictures]
    return {
        "boxes": np.array([[row[0] for row in one] for one in rows], np.float32),
        "scores": np.array([[row[1] for row in one] for one in rows], np.float32),
        "labels": np.array([[row[2] for row in one] for one in rows], np.int64),
    }


def labels(*pictures: list[list[int]]) -> Array:
    """Return true boxes x0, y0, x1, y1, class, filled up with rows of class -1."""
    columns = len(next(row for one in pictures for row in one))
    most = max(map(len, pictures)) + 1
    pad = [0, 0, 0, 0, -1, 0][:columns]
    return np.array([[*one, *[pad] * (most - len(one))] for one in pictures], np.float32)


def test_what_a_person_can_check() -> None:
    true = labels([[*BOX, 0]], [[*BOX, 0]])
    both = outputs([(BOX, 0.9, 0)], [(BOX, 0.8, 0)])
    assert MeanAp50().value(both, true) == MeanAp().value(both, true) == near(1)
    # Of two boxes one is found: precision 1 at the 51 recalls up to a half, and 0 at the other 50.
    assert MeanAp50().value(outputs([(BOX, 0.9, 0)], []), true) == pytest.approx(51 / 101)
    # A wrong one with a better score halves the precision of the first, and leaves 2 of 3 for the second.
    wrong = outputs([(APART, 0.95, 0), (BOX, 0.9, 0)], [(BOX, 0.8, 0)])
    assert MeanAp50().value(wrong, true) == pytest.approx(2 / 3)
    # Overlaps by 0.6 count at 3 of 10 least overlaps.
    loose = outputs([(BESIDE, 0.9, 0)], [(BESIDE, 0.8, 0)])
    assert MeanAp50().value(loose, true) == near(1)
    assert MeanAp().value(loose, true) == pytest.approx(0.3, abs=0.11)
    assert MeanAp50().value(outputs([], []), true) == 0


def test_pictures_without_boxes_other_classes_and_crowds() -> None:
    true = labels([[*BOX, 3]], [])
    assert MeanAp50().value(outputs([(BOX, 0.5, 3)], []), true) == near(1)
    assert MeanAp50().value(outputs([(BOX, 0.5, 3)], [(BOX, 0.4, 3)]), true) == near(
        1
    )  # comes last
    assert MeanAp50().value(outputs([(BOX, 0.5, 3)], [(BOX, 0.6, 3)]), true) == near(0.5)
    assert MeanAp50().value(outputs([(BOX, 0.5, 3)], [(BOX, 0.6, 7)]), true) == near(
        1
    )  # no such class
    crowd = labels([[*BOX, 0, 0], [*APART, 0, 1]])
    in_it = outputs([(BOX, 0.5, 0), (APART, 0.9, 0), (APART, 0.8, 0)])
    assert MeanAp50().value(in_it, crowd) == near(1)
    assert MeanAp50().value(in_it, labels([[*BOX, 0]])) < 0.5


def test_a_model_of_one_class_may_lack_labels() -> None:
    found = outputs([(BOX, 0.9, 0)])
    del found["labels"]
    assert MeanAp().value(found, labels([[*BOX, 0]])) == near(1)


def some(
    rng: np.random.Generator, pictures: int, classes: int, *, ties: bool
) -> tuple[dict[str, Array], Array]:
    """Return true boxes, and detections that hit most of them more or less, and find others too."""
    told, true = [], []
    for _ in range(pictures):
        own = [
            [*corner, *(corner + rng.integers(8, 30, 2)), rng.integers(classes), rng.random() < 0.1]
            for corner in rng.integers(0, 200, (rng.integers(0, 6), 2))
        ]
        hits = [
            (row[:4] + rng.integers(-3, 4, 4), rng.random(), row[4] if rng.random() < 0.9 else 0)
            for row in own
            if rng.random() < 0.8
        ]
        others = [
            ([x, y, x + 20, y + 20], rng.random(), rng.integers(classes))
            for x, y in rng.integers(0, 200, (rng.integers(0, 5), 2))
        ]
        rows = [*hits, *others]
        if ties:  # between pictures only
            rows = [(box, (place + 1) / 16, kind) for place, (box, _, kind) in enumerate(rows)]
        told.append(rows)
        true.append(own)
    true[0] = [[*BOX, 0, 0]]
    return outputs(*told), labels(*true)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("metric", [MeanAp(), MeanAp50()])
def test_resampled_figures_are_the_librarys_on_the_resampled_set(
    metric: MeanAp, classes: int, ties: bool
) -> None:
    rng = np.random.default_rng(classes)
    found, true = some(rng, 30, classes, ties=ties)
    counts = np.stack(
        [np.ones(30, int), *(np.bincount(rng.integers(0, 30, 30), minlength=30) for _ in range(6))]
    )
    counts[1] = 0
    counts[1, :2] = 15
    quick = metric.values(found, true, counts)
    for count, own in zip(counts, quick, strict=True):
        rows = np.repeat(np.arange(30), count)
        whole = metric.value({name: array[rows] for name, array in found.items()}, true[rows])
        assert own == pytest.approx(whole, abs=1e-12)
    assert quick[0] == pytest.approx(metric.value(found, true), abs=1e-12)


def test_a_resampled_set_without_true_boxes_has_no_figure() -> None:
    true, found = labels([[*BOX, 0]], []), outputs([(BOX, 0.9, 0)], [])
    figures = MeanAp50().values(found, true, np.array([[0, 2], [2, 0]]))
    assert np.isnan(figures[0])
    assert figures[1] == near(1)


def test_it_is_stated_before_and_after_with_an_interval_that_is_called_approximate() -> None:
    rng = np.random.default_rng(5)
    before, true = some(rng, 60, 3, ties=False)
    after = {
        **before,
        "scores": np.where(rng.random(before["scores"].shape) < 0.1, 0, before["scores"]),
    }
    units = np.arange(60) // 2
    setting = Setting((MeanAp50(), MeanAp()), None, true, units, 0.95)
    found = setting.compare("a model", before, after)
    assert found.missing == ()
    for figure in found.figures:
        assert figure.low <= figure.after - figure.before <= figure.high
        assert figure.after < figure.before
        assert figure.bound is None
    assert "over 30 groups: they are approximate, not certified" in found.how
    same = setting.compare("the same", before, before)
    assert [figure.change(0.95) for figure in same.figures] == ["unchanged", "unchanged"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": np.full((1, 2), np.nan)}, "map50_95: a score or a corner of sample 0 of 1 isn't finite"),
        ({"boxes": np.full((1, 2, 4), np.inf)}, "map50_95: a score or a corner of sample 0 of 1 isn't finite"),
        ({"scores": np.ones(2)}, "map50_95 reads boxes (n, k, 4), scores (n, k) and labels (n, k); the "
         "model gives [1, 2, 4], [2] and [1, 2]"),
    ],
)  # fmt: skip
def test_outputs_that_are_no_detections_are_refused(changed: dict[str, Array], said: str) -> None:
    found = outputs([(BOX, 0.9, 0)])
    with pytest.raises(InputError) as error:
        MeanAp().value({**found, **changed}, labels([[*BOX, 0]]))
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros(1), "map50_95 reads labels (n, k, 5): x0, y0, x1, y1, class, and a sixth "
        "column if there are crowds; got float64 [1]"),
        (labels([[*BOX, -1]]), "map50_95 needs true boxes, but none of the 1 pictures has any"),
        (labels([[*BOX, 0, 1]]), "map50_95 needs true boxes, but none of the 1 pictures has any"),
        (np.array([[[0, 0, 1, 1, 0.5]]]), "map50_95: a label of sample 0 of 1 isn't a box with finite corners, a "
         "whole number for its class, and 0 or 1 for a crowd"),
        (np.array([[[0, 0, np.nan, 1, 1]]]), "map50_95: a label of sample 0 of 1 isn't a box with finite corners, "
         "a whole number for its class, and 0 or 1 for a crowd"),
        (filled([[[0, 0, None, 1, 1]]]), "map50_95: a label of sample 0 of 1 isn't a box with finite corners, "
         "a whole number for its class, and 0 or 1 for a crowd"),
        (np.array([[[0, 0, 1, 1, 1]]] * 2), "map50_95 reads labels of 1 picture; got 2"),
    ],
)  # fmt: skip
def test_labels_that_are_no_boxes_are_refused(given: Array, said: str) -> None:
    with pytest.raises(InputError) as error:
        MeanAp().value(outputs([(BOX, 0.9, 0)]), given)
    assert str(error.value) == said


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    true, found = labels([[*BOX, 0]]), outputs([(BOX, 0.9, 0)])
    said = Setting((MeanAp(),), None, true, np.arange(1), 0.95).compare("a model", found, found)
    assert said.missing == (
        "mAP50-95: not computed: it needs pycocotools, which isn't installed: pip install "
        "'hasten[detection]'",
    )


def test_boxes_of_the_pipelines_steps_count_where_it_has_any() -> None:
    raw = np.array([[[5, 5, 10, 10, 0.9, 0.1], [55, 55, 10, 10, 0.2, 0.7]]], np.float32).mT
    pipeline = Pipeline((), after=(YoloBoxes(), Nms()))
    (metric,) = chosen(["map50"], np.zeros((1, 1, 5)), (), pipeline)
    assert metric.reading == "boxes of yolo_boxes and nms"
    assert metric.value({"out": raw}, labels([[*BOX, 0], [*APART, 1]])) == near(1)


def test_boxes_suggest_both_figures_unasked() -> None:
    specs = [
        TensorSpec("boxes", "float32", ("batch", 9, 4)),
        TensorSpec("scores", "float32", ("batch", 9)),
    ]
    true = labels([[*BOX, 0]])
    assert chosen(None, true, specs, None) == (MeanAp50(), MeanAp())
    assert chosen(None, true, specs[:1], None) == ()
    assert chosen(None, np.zeros(4), specs, None) == ()
    given = Pipeline((), after=(GivenBoxes(),))
    six = [TensorSpec("out", "float32", ("batch", 9, 6))]
    assert chosen(None, true, six, given) == (MeanAp50((GivenBoxes(),)), MeanAp((GivenBoxes(),)))
