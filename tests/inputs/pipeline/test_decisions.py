"""From scores, times, vectors and maps to decisions that JSON can represent."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.ctc import Ctc
from hasten.inputs.pipeline.mask import Mask
from hasten.inputs.pipeline.multi_label import MultiLabel
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.pipeline.vectors import L2Normalize, Quantity

HERE = Origin()


def decided(step: PostStep, *numbers: Any) -> Any:
    """The decision on one output of these numbers, which must survive JSON."""
    found = step({"y": np.array(numbers, np.float32)}, HERE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_a_classifier_that_is_not_sure_enough_names_no_class() -> None:
    step = TopK(2, ("benign", "malignant"), softmax=False, least=0.8)
    classes = [
        {"class": 1, "label": "malignant", "score": 0.8125},
        {"class": 0, "label": "benign", "score": 0.1875},
    ]
    assert decided(step, 0.1875, 0.8125) == {"abstained": False, "classes": classes}
    unsure = decided(step, 0.5, 0.5)
    assert unsure["abstained"] is True
    assert unsure["least"] == 0.8
    assert "classes" not in unsure
    assert [one["label"] for one in unsure["likeliest"]] == ["benign", "malignant"]


def test_a_least_probability_is_refused_where_scores_are_none() -> None:
    with pytest.raises(InputError) as error:
        decided(TopK(softmax=False, least=0.5), -1, 3)
    assert str(error.value) == (
        "top_k.least=0.5 needs probabilities; the model's scores are -1 to 3: set softmax=True"
    )


def test_a_score_at_the_threshold_is_positive() -> None:
    step = Threshold(0.7, labels=("pays", "defaults"))
    at = {"positive": True, "label": "defaults", "score": float(np.float32(0.7)), "threshold": 0.7}
    assert decided(step, 0.7) == at
    below = decided(step, 0.6999)
    assert (below["positive"], below["label"]) == (False, "pays")


@pytest.mark.parametrize("labels", [(), ("pays", "defaults")])
def test_one_number_is_decided_on_as_a_named_one_is(labels: tuple[str, ...]) -> None:
    least = float(np.nextafter(np.float32(0.7), np.float32(0)))
    for shape in ((), (1,), (1, 1)):
        for score in (-3.0, 0.0, least, float(np.float32(0.7)), 0.7001, 1e30):
            given = {"y": np.full(shape, score, np.float32)}
            plain, named = Threshold(0.7, labels=labels), Threshold(0.7, labels=labels, output="y")
            assert plain(given, HERE) == named(given, HERE)
            wide = {"y": given["y"].astype(np.float64)}
            assert plain(wide, HERE) == named(wide, HERE)
    assert Threshold(0.7)({"y": [0.9]}, HERE) == decided(Threshold(0.7), 0.9)
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match=r"^threshold "):
            Threshold(0.7)({"y": np.full(1, bad, np.float32)}, HERE)


def test_the_score_is_one_number_its_sigmoid_or_one_class_of_a_softmax() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0])
    expected = scores.softmax(0)[2].item()
    step = Threshold(activation="softmax", position=2)
    assert decided(step, *scores.tolist())["score"] == pytest.approx(expected)
    one = Threshold(activation="sigmoid")
    assert decided(one, -1.2)["score"] == pytest.approx(scores.sigmoid()[1].item())
    assert decided(one, 200)["score"] == 1
    assert decided(one, -200)["score"] < 1e-37
    assert decided(one, -20)["score"] == pytest.approx(np.exp(-20), rel=1e-5)
    assert decided(Threshold(position=1), 0.1, 0.9, 0.4)["score"] == pytest.approx(0.9)


def test_a_score_too_close_to_the_threshold_is_neither_positive_nor_negative() -> None:
    step = Threshold(0.5, margin=0.125)
    assert decided(step, 0.5625) == {
        "abstained": True,
        "score": 0.5625,
        "threshold": 0.5,
        "margin": 0.125,
    }
    for score, positive in ((0.625, True), (0.375, False)):
        found = decided(step, score)
        assert (found["abstained"], found["positive"]) == (False, positive)


def test_each_class_has_a_threshold_of_its_own_and_the_likeliest_comes_first() -> None:
    step = MultiLabel((0.5, 0.25, 0.75), ("rain", "wind", "snow"), sigmoid=False)
    assert decided(step, 0.5, 0.625, 0.625) == [
        {"class": 1, "label": "wind", "score": 0.625},
        {"class": 0, "label": "rain", "score": 0.5},
    ]
    assert decided(step, 0.0, 0.0, 0.0) == []
    assert decided(MultiLabel(), 4, -4)[0]["score"] == pytest.approx(1 / (1 + np.exp(-4)))


TIMES = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * 2
LETTERS = ("a", "b", " ", "ch")


@pytest.mark.parametrize("blank", [0, 2, -1])
def test_a_text_is_read_along_the_likeliest_path(blank: int) -> None:
    told = Ctc(LETTERS, blank)({"y": TIMES.numpy()}, HERE)
    likely = TIMES.softmax(1).max(1)
    place = blank % 5
    classes = [*LETTERS[:place], None, *LETTERS[place:]]
    runs = [
        (classes[kind], max(peak for _, peak in several))
        for kind, several in itertools.groupby(
            zip(likely.indices.tolist(), likely.values.tolist(), strict=True), lambda one: one[0]
        )
    ]
    read = [(text, peak) for text, peak in runs if text is not None]
    assert len(read) > 20
    assert told["text"] == "".join(text for text, _ in read)
    assert told["confidence"] == pytest.approx(np.mean([peak for _, peak in read]))
    assert told["weakest"] == pytest.approx(min(peak for _, peak in read))


def test_logarithms_of_probabilities_and_probabilities_read_the_same() -> None:
    expected = Ctc(LETTERS)({"y": TIMES.numpy()}, HERE)
    given = {"exp": TIMES.log_softmax(1), "none": TIMES.softmax(1)}
    for activation, times in given.items():
        told = Ctc(LETTERS, activation=activation)({"y": times.numpy()}, HERE)  # type: ignore[arg-type]
        assert told == {
            **expected,
            "confidence": pytest.approx(expected["confidence"]),
            "weakest": pytest.approx(expected["weakest"]),
        }


def test_a_letter_stands_twice_only_with_a_blank_between_and_weak_texts_are_no_answer() -> None:
    def times(*path: int) -> Array:
        return np.full((len(path), 3), 0.125) + np.eye(3)[list(path)] * 0.625

    step = Ctc(("a", "b"), activation="none")
    sure = {"confidence": 0.75, "weakest": 0.75}
    assert decided(step, *times(1, 1, 0, 1, 2, 2)) == {"text": "aab", **sure}
    assert decided(step, *times(0, 0)) == {"text": "", **sure}
    careful = Ctc(("a", "b"), activation="none", least=0.7)
    assert decided(careful, *times(1, 0)) == {"abstained": False, "text": "a", **sure}
    doubted = Ctc(("a", "b"), activation="none", least=0.8)
    assert decided(doubted, *times(1, 0)) == {
        "abstained": True,
        "least": 0.8,
        "likeliest": {"text": "a", **sure},
    }


def test_an_embedding_has_length_one() -> None:
    assert decided(L2Normalize(), 3, 4) == pytest.approx([0.6, 0.8])
    numbers = torch.randn(512, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(numbers, dim=0).tolist()
    assert decided(L2Normalize(), *numbers.tolist()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError) as error:
        decided(L2Normalize(), 0, 0)
    assert str(error.value) == (
        "l2_normalize needs a direction; the model gives zeros for this sample"
    )


def test_a_quantity_is_told_in_its_unit() -> None:
    assert decided(Quantity(2, 10, "mm"), 0.5) == {"value": 11.0, "unit": "mm"}
    assert decided(Quantity(), [0.5]) == {"value": 0.5}
    assert decided(Quantity(names=("x", "y"), unit="°"), 1, 2) == [
        {"name": "x", "value": 1.0, "unit": "°"},
        {"name": "y", "value": 2.0, "unit": "°"},
    ]


def pixels(told: dict[str, Any]) -> Array:
    """The mask that run lengths stand for; -1 where nothing is known."""
    kinds = [-1 if kind is None else kind for kind, _ in told["runs"]]
    flat = np.repeat(kinds, [count for _, count in told["runs"]])
    return flat.reshape(told["height"], told["width"])


@pytest.mark.parametrize("places", [(16, 16), (4, 8)])
@pytest.mark.parametrize(
    "origin",
    [
        Origin(40, 32, (2.0, 2.0), (4.0, 0.0)),  # rows were cropped away above and below
        Origin(11, 16, (1.0, 1.0), (-3.0, 0.0)),  # a border was added above and below
        Origin(5, 7, (0.5, 0.5), (-1.0, 0.0)),
    ],
)
def test_each_pixel_of_the_source_has_the_likeliest_class_of_its_place(
    origin: Origin, places: tuple[int, int]
) -> None:
    scores = np.random.default_rng(0).normal(size=(3, *places)).astype("f")
    told = Mask(size=(16, 16), labels=("road", "tree", "sky"))({"y": scores}, origin)
    assert json.loads(json.dumps(told)) == told
    found = pixels(told)
    assert found.shape == (origin.height, origin.width)
    for y, x in itertools.product(range(origin.height), range(origin.width)):
        row = (y + 0.5 - origin.offset[0]) / origin.scale[0] / (16 / places[0])
        column = (x + 0.5 - origin.offset[1]) / origin.scale[1] / (16 / places[1])
        inside = 0 <= row < places[0] and 0 <= column < places[1]
        expected = scores[:, int(row), int(column)].argmax() if inside else -1
        assert found[y, x] == expected
    assert all(one[0] != other[0] for one, other in itertools.pairwise(told["runs"]))


def test_classes_that_the_model_has_decided_are_told_without_a_source_in_their_own_places() -> None:
    told = decided(Mask(decided=True), [0, 0, 2], [2, 1, 1])
    assert told == {"height": 2, "width": 3, "runs": [[0, 2], [2, 2], [1, 2]]}
    with pytest.raises(InputError) as error:
        decided(Mask(decided=True, labels=("a", "b")), [0, 2])
    assert str(error.value) == "mask needs classes from 0 to 1; the model gives 0.0 to 2.0"


@pytest.mark.parametrize(
    ("step", "shape", "name"),
    [
        (TopK(), (3,), "top_k"),
        (TopK(softmax=False), (3,), "top_k"),
        (Threshold(), (1,), "threshold"),
        (MultiLabel(), (3,), "multi_label"),
        (Ctc(("a", "b")), (4, 3), "ctc"),
        (L2Normalize(), (3,), "l2_normalize"),
        (Quantity(), (1,), "quantity"),
        (Mask(), (2, 3, 3), "mask"),
        (Mask(decided=True), (3, 3), "mask"),
    ],
)
def test_nan_is_never_decided_on(step: PostStep, shape: tuple[int, ...], name: str) -> None:
    array = np.zeros(shape, np.float32)
    array.reshape(-1)[-1] = np.nan
    with pytest.raises(InputError) as error:
        step({"y": array}, HERE)
    assert str(error.value) == (
        f"{name} needs finite numbers: the model's output has NaN or infinite ones for this sample"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(least=1.5), "top_k.least=1.5: give a number from 0 to 1"),
        (lambda: Threshold(float("nan")), "threshold.threshold=nan: give a finite number"),
        (lambda: Threshold(margin=-1), "threshold.margin=-1: give 0 or a positive number"),
        (lambda: Threshold(position=-1), "threshold.position=-1: give a class from 0"),
        (
            lambda: Threshold(activation="softmax"),
            "threshold.activation='softmax' needs the class whose score counts: give position=1, for "
            "instance",
        ),
        (
            lambda: Threshold(labels=("yes",)),
            "threshold.labels has 1 name: give the negative answer's and the positive one's",
        ),
        (
            lambda: MultiLabel(float("inf")),
            "multi_label.thresholds has inf: give finite numbers",
        ),
        (
            lambda: MultiLabel((0.5,), ("a", "b")),
            "multi_label has 1 threshold and 2 labels: give one of each per class, or one threshold "
            "for all",
        ),
        (lambda: Ctc(()), "ctc.alphabet is empty: give the text of each class except the blank"),
        (lambda: Ctc(("a",), 2), "ctc.blank=2: give a class from 0 to 1, or -1"),
        (lambda: Quantity(offset=float("inf")), "quantity.offset=inf: give a finite number"),
        (
            lambda: Mask(size=(0, 1)),
            "mask.size=(0, 1): give the sample's height and width in pixels",
        ),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("step", "shape", "words"),
    [
        (
            Threshold(),
            (3,),
            "threshold needs one number for each sample, or `position` to say which class counts",
        ),
        (Threshold(position=3), (3,), "threshold needs scores of more than 3 classes"),
        (Ctc(("a", "b")), (4, 4), "ctc has 2 texts and a blank, and needs [times, 3]"),
        (Quantity(names=("x", "y")), (3,), "quantity needs 2 numbers for a sample"),
        (Mask(), (3, 3), "mask needs scores [classes, height, width]"),
        (Mask(decided=True), (2, 3, 3), "mask needs classes [height, width]"),
    ],
)
def test_an_output_of_another_shape_is_refused_before_a_run_and_when_it_comes(
    step: PostStep, shape: tuple[int, ...], words: str
) -> None:
    spec = TensorSpec("y", "float32", ("n", *shape))
    with pytest.raises(InputError) as error:
        step.check([spec])
    assert (
        str(error.value).replace(" after the batch axis", "") == f"{words}; the model gives {spec}"
    )
    with pytest.raises(InputError) as error:
        step({"y": np.zeros(shape, np.float32)}, HERE)
    assert str(error.value) == f"{words}; got {list(shape)}"
    step.check([TensorSpec("y", "float32", ("...",))])
