"""What a person hands in for a lighter model, as it is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lightening.conftest import corners, task_for, wide

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.text_files import TextData
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.choice import named_metric
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, ToLayout
from hasten.lightening.given import Given, check_names
from hasten.lightening.task import Task, _steering, check_loss
from hasten.lightening.training.examples import Examples
from hasten.lightening.training.loop import Recipe


def given(folder: Path, train: object, data: object, metric: str | None = None) -> Given:
    folder.mkdir()
    return Given.read(wide(8), train, data, None, metric, folder)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given(tmp_path_factory.mktemp("read") / "a", corners(100, 1), corners(60, 2))


def task(folder: Path, read: Given, features: float | None = None) -> Task:
    return task_for(read, wide(8), Recipe(), folder, features=features)


def test_labels_that_only_judge_leave_training_to_agree_with_the_model(
    tmp_path: Path, read: Given
) -> None:
    assert read.metric == Top1()
    assert task(tmp_path / "a", read).metric == Top1()
    unlabelled = ArrayDataset({"input": corners(100, 1)[0]})
    without = dataclasses.replace(read, training=unlabelled)
    assert task(tmp_path / "b", without).metric == Agreement()


def scored_by(folder: Path, metric: str, labels: np.ndarray | None, classes: int = 1) -> Task:
    """Return the task of a model, by default with one score, whose training data has these labels."""
    folder.mkdir()
    module = wide(8, classes=classes)
    x, _ = corners(100, 1)
    judged = corners(60, 2)
    training = ArrayDataset({"input": x}, labels)
    data = (judged[0], (judged[1] > 1).astype(np.int64))
    read = Given.read(module, training, data, None, metric, folder)
    return task_for(read, module, Recipe(), folder)


def test_a_metric_over_a_set_scores_the_samples_held_out_together(tmp_path: Path) -> None:
    made = scored_by(tmp_path / "a", "auroc", (corners(100, 1)[1] > 1).astype(np.int64))
    score = made.score(made.exact)
    assert 0 <= score <= 1
    (reading,) = made.exact[0].values()
    flipped = [{name: -array for name, array in chunk.items()} for chunk in made.exact]
    assert made.score(flipped) == pytest.approx(1 - score)
    assert len(np.unique(reading)) > 1
    few = np.zeros(100, np.int64)
    few[2] = 1  # which is not held out
    with pytest.raises(InputError) as error:
        scored_by(tmp_path / "b", "auroc", few)
    assert str(error.value) == (
        "of the training data, 20 samples are held out to show how a training does, and they can't be scored: auroc "
        "needs samples of both classes; there are 0 of class 1 and 20 of class 0"
    )


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("auroc", "auroc needs samples of both classes; there are 0 of class 1 and 20 of class 0"),
        (
            "group_ndcg",
            "group_ndcg ranks the samples of a group, but no two samples share a group: give groups, one for each "
            "query, as an array next to the inputs",
        ),
    ],
)
def test_where_a_metric_over_a_set_can_not_score_what_is_held_out_agreement_with_the_model_does(
    tmp_path: Path, metric: str, said: str
) -> None:
    few = np.zeros(100, np.int64)
    few[2] = 1  # which is not held out
    why = (
        "of the training data, 20 samples are held out to show how a training does, and they can't be scored: "
        + said
    )
    made = scored_by(tmp_path / "a", metric, few, classes=2)
    assert made.metric == Agreement()
    assert made.score(made.exact) == 1
    assert made.notes == [f"{why}; agreement with the model's own classes shows it instead"]
    with pytest.raises(InputError) as error:
        scored_by(tmp_path / "b", metric, few)
    assert str(error.value) == why


@pytest.mark.parametrize("metric", ["auroc", "brier:sigmoid"])
def test_a_single_score_without_labels_can_not_show_how_a_training_does(
    tmp_path: Path, metric: str
) -> None:
    with pytest.raises(InputError) as error:
        scored_by(tmp_path / "a", metric, None)
    assert str(error.value) == (
        f"{metric.partition(':')[0]} needs labels to show how a training does, but the training data has none, and "
        "the model gives no class scores to compare with its own: give labels"
    )


class Both(torch.nn.Module):
    """Gives the corner, and how bright the image is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide(8)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"corner": self.inner(image), "light": image.mean((1, 2, 3))[:, None]}


def test_labels_of_several_outputs_judge_a_training_and_teach_nothing(tmp_path: Path) -> None:
    work = tmp_path / "a"
    work.mkdir()
    training, judged = (
        {"image": x, "labels@corner": corner} for x, corner in (corners(100, 1), corners(60, 2))
    )
    read = Given.read(Both(), training, judged, None, "top1@corner", work)
    made = task_for(read, Both(), Recipe(), work)
    assert 0 <= made.score(made.exact) <= 1
    assert Examples(made.data, 8).at(0, torch.device("cpu")).labels is None

    def loss(*given: object) -> torch.Tensor:
        raise AssertionError

    with pytest.raises(InputError) as error:
        check_loss(loss, made.network, made.data)
    assert str(error.value) == (
        "a loss gets the labels as one tensor of numbers, but the training data's are several arrays, "
        "labels@corner: give it one array of numbers, such as classes padded with -1, or no loss"
    )


def test_folders_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    """Each numbers its own, sorted: a class that one lacks would be taken for the next one."""
    for which, names in (("train", "abc"), ("eval", "ac")):
        for name in names:
            (tmp_path / which / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / which / name / "0.png")
    plain = Pipeline((Decode(), ToLayout()))
    training, judged = (ImageFolder(tmp_path / which, plain, "x") for which in ("train", "eval"))
    check_names(training, training)
    with pytest.raises(InputError) as refused:
        check_names(training, judged)
    assert str(refused.value) == (
        "the training data and the data to judge on have different classes: only one of them has "
        "the folder b; give both the same class folders"
    )
    texts = [TextData(judged, "", numbered) for numbered in (("a", "b", "c"), ("a", "c"))]
    check_names(texts[1], texts[1])
    with pytest.raises(InputError, match="only one of them has the folder b; give both"):
        check_names(*texts)


def test_a_fifth_at_most_is_held_out_and_some_of_the_rest_calibrates(
    tmp_path: Path, read: Given
) -> None:
    made = task(tmp_path / "a", read)
    assert (len(made.data), len(made.held_out), len(made.calibration)) == (80, 20, 20)
    hashes = [{d.content_hash(i) for i in range(len(d))} for d in (made.data, made.held_out)]
    assert not hashes[0] & hashes[1]
    assert {made.calibration.content_hash(i) for i in range(20)} <= hashes[0]
    assert made.classes == 4
    again = task(tmp_path / "a", read)  # as a resumed run does
    assert [again.held_out.content_hash(i) for i in range(20)] == [
        made.held_out.content_hash(i) for i in range(20)
    ]


def test_other_training_data_has_another_digest(read: Given) -> None:
    same, other = (
        dataclasses.replace(read, training=ArrayDataset({"input": corners(100, seed)[0]}))
        for seed in (1, 4)
    )
    assert read.training_digest == same.training_digest != other.training_digest


def test_a_sequence_is_read_anew_each_time(tmp_path: Path) -> None:
    class Noisy:
        """Augments: no two readings are alike."""

        rng = np.random.default_rng(0)

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return self.rng.standard_normal((1, 16, 16), dtype=np.float32), index % 4

    noisy = given(tmp_path / "a", Noisy(), corners(60, 2))
    assert not noisy.repeats
    made = task(tmp_path / "a", noisy)
    assert not made.repeats
    first, second = (made.data.inputs([0])["input"] for _ in range(2))
    assert (first != second).any()


def test_numbers_that_need_a_tolerance_need_a_metric(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        given(tmp_path / "a", corners(100, 1), (corners(60, 2)[0], np.zeros((60, 4)) + 0.5))
    assert str(error.value).startswith("no metric was named, and only you know how far")
    made = task(tmp_path / "b", given(tmp_path / "b", corners(90, 1), corners(60, 2), "embedding"))
    assert made.objective.kind == "values"
    assert made.classes is None


def test_agreement_of_one_of_two_outputs_shows_how_a_training_does() -> None:
    outputs = tuple(TensorSpec(name, "float32", ("batch", 3)) for name in "ab")
    unlabelled: Any = SimpleNamespace(labels=None)
    auroc: Any = SimpleNamespace(
        metric=named_metric("auroc:a"), source=SimpleNamespace(outputs=outputs)
    )
    assert _steering(auroc, unlabelled, []) == Agreement("a")
    auroc.source.outputs = outputs[1:]
    with pytest.raises(InputError, match="the model gives no class scores"):
        _steering(auroc, unlabelled, [])
