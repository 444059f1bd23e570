"""From the outputs of YOLO networks to boxes in the source picture's own pixels."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.yolo import DOG, yolov3_tiny
from torchvision.ops import batched_nms, box_iou

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.boxes import Boxes
from hasten.inputs.pipeline.darknet import DarknetBoxes
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.yolo import YoloBoxes

SIDE = 416


def head(anchors: int = 500, classes: int = 7, seed: int = 0) -> Array:
    """An output [4 + classes, anchors] with a few likely places."""
    numbers = np.random.default_rng(seed)
    centers, sides = numbers.uniform(20, 600, (2, anchors)), numbers.uniform(5, 150, (2, anchors))
    return np.concatenate([centers, sides, numbers.beta(0.3, 5, (classes, anchors))]).astype("f")


def slowly(v8: Array, least: float, *, several: bool) -> list[tuple[float, int, list[float]]]:
    """Every score, class and box of an output, place by place, best first."""
    found = []
    for x, y, w, h, *scores in v8.T.astype(np.float64).tolist():
        kinds = range(len(scores)) if several else [int(np.argmax(scores))]
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        found += [(scores[k], k, box) for k in kinds if scores[k] >= least]
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("several", [False, True])
def test_each_likely_place_of_a_v8_output_is_a_box_of_its_likeliest_class_or_of_each(
    several: bool,
) -> None:
    outputs = {"y": head()}
    boxes = YoloBoxes(multi_label=several, least=0.3)(outputs, Origin())
    expected = slowly(outputs["y"], 0.3, several=several)
    assert len(expected) > 50
    assert boxes.scores.tolist() == [score for score, _, _ in expected]
    assert boxes.classes.tolist() == [kind for _, kind, _ in expected]
    np.testing.assert_allclose(boxes.corners, [box for _, _, box in expected], rtol=1e-4, atol=1e-3)
    assert len(YoloBoxes(multi_label=several, least=0.3, most=9)(outputs, Origin())) == 9


@pytest.mark.parametrize("several", [False, True])
def test_a_v5_output_multiplies_each_class_by_the_score_of_any_object(several: bool) -> None:
    v8 = head()
    objects = np.random.default_rng(3).uniform(0, 1, (1, v8.shape[1])).astype("f")
    v5 = np.concatenate([v8[:4], objects, v8[4:]]).T
    same = np.concatenate([v8[:4], v8[4:] * objects])
    boxes = YoloBoxes("v5", multi_label=several)({"y": v5}, Origin())
    expected = YoloBoxes(multi_label=several)({"y": same}, Origin())
    for name in ("corners", "scores", "classes"):
        np.testing.assert_array_equal(getattr(boxes, name), getattr(expected, name))


def test_shares_of_the_sample_become_pixels() -> None:
    pixels, shares = head(), head()
    shares[:4] /= np.array([640, 320, 640, 320], np.float32)[:, None]
    expected = YoloBoxes()({"y": pixels}, Origin()).corners
    given = YoloBoxes(size=(320, 640))({"y": shares}, Origin()).corners
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-3)


def test_a_box_in_a_border_that_was_added_is_left_out_and_others_are_clipped() -> None:
    # A picture of 100 x 200 pixels in a square of 200, with 50 gray rows above and below.
    origin = Origin(100, 200).cut(-50, 0)
    rows = [[30, 20, 40, 20, 0.9], [100, 50, 20, 40, 0.8], [190, 100, 40, 20, 0.7]]
    told = Pipeline((), (YoloBoxes(labels=("cat",)), Nms())).decided(
        {"y": np.array(rows, np.float32).T}, origin
    )
    assert told == [
        {"class": 0, "label": "cat", "score": pytest.approx(0.8), "box": [90, 0, 110, 20]},
        {"class": 0, "label": "cat", "score": pytest.approx(0.7), "box": [170, 40, 200, 60]},
    ]
    assert json.loads(json.dumps(told)) == told


def test_an_output_without_likely_places_has_no_boxes() -> None:
    for style, shape in (("v8", (9, 30)), ("v5", (30, 9))):
        after = (YoloBoxes(style), Nms())  # type: ignore[arg-type]
        assert Pipeline((), after).decided({"y": np.zeros(shape, "f")}, Origin(9, 9)) == []


@pytest.mark.parametrize("style", ["v8", "v5"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 4, 5])
def test_numbers_that_are_not_finite_are_refused(style: Any, number: float, column: int) -> None:
    output = np.full((9, 30), 0.9, np.float32)
    output[column, 7] = number
    step = YoloBoxes(style)
    with pytest.raises(
        InputError, match=r"^yolo_boxes needs finite numbers: the model's output has NaN"
    ):
        step({"y": output if style == "v8" else output.T}, Origin())


@pytest.mark.parametrize(
    ("step", "shape", "words"),
    [
        (
            YoloBoxes(),
            ("n", 84, 80, 80),
            "yolo_boxes of style v8 needs an output of shape [4 + classes, anchors] after the batch axis",
        ),
        (
            YoloBoxes("v5"),
            ("n", 25200, 5),
            "yolo_boxes of style v5 needs an output of shape [anchors, 5 + classes] after the batch axis",
        ),
    ],
)
def test_a_model_with_another_output_is_refused_before_a_run(
    step: YoloBoxes, shape: tuple[int | str, ...], words: str
) -> None:
    spec = TensorSpec("y", "float32", shape)
    with pytest.raises(InputError) as error:
        step.check([spec])
    assert str(error.value) == f"{words}; the model gives {spec}"


def test_an_output_with_other_classes_than_labels_is_refused_before_a_run_and_when_it_comes() -> (
    None
):
    step = YoloBoxes(labels=("a", "b"))
    step.check([TensorSpec("y", "float32", ("n", 6, 8400))])
    step.check([TensorSpec("y", "float32", ("n", "?", "?"))])
    step.check([TensorSpec("y", "float32", ("...",))])
    with pytest.raises(InputError) as error:
        step.check([TensorSpec("y", "float32", ("n", 84, 8400))])
    assert str(error.value) == "yolo_boxes has 2 labels; the model's output 'y' has 80 classes"
    with pytest.raises(InputError) as error:
        step({"y": np.zeros((84, 10), "f")}, Origin())
    assert str(error.value) == (
        "yolo_boxes of style v8 needs an output of shape [4 + classes, anchors] with 2 classes; got "
        "[84, 10]"
    )


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> Any:
    return yolov3_tiny(monkeypatch)


def grids(network: Any, image: torch.Tensor) -> tuple[dict[str, Array], Any]:
    """What the [yolo] layers of a network get for an image, by name, and the anchors of each."""
    with torch.no_grad():
        heads = network.heads(image)
    anchors = []
    for section, _ in heads:
        every = np.reshape(section.numbers("anchors"), (-1, 2)).tolist()
        anchors.append(tuple(tuple(every[i]) for i in section.numbers("mask")))
    return {f"grid{i}": array[0].numpy() for i, (_, array) in enumerate(heads)}, tuple(anchors)


def test_the_grids_of_yolov3_tiny_show_the_dog_where_it_is_in_the_photograph(yolo: Any) -> None:
    photo = Image.open(DOG).convert("RGB")
    image = torch.from_numpy(yolo.letterboxed(photo))[None]
    network, names = yolo.pretrained().network, tuple(filter(None, yolo.names()))
    outputs, anchors = grids(network, image)
    height, width = photo.height * SIDE // photo.width, SIDE
    origin = (
        Origin(photo.height, photo.width)
        .resized((photo.height, photo.width), (height, width))
        .cut(-(SIDE - height) // 2, 0)
    )
    step = DarknetBoxes(tuple(outputs), anchors, (SIDE, SIDE), names)
    step.check([TensorSpec(n, "float32", ("n", *a.shape)) for n, a in outputs.items()])
    told = Pipeline((), (step, Nms())).decided(outputs, origin)
    assert {"dog", "bicycle", "car"} <= {one["label"] for one in told}
    dog = next(one for one in told if one["label"] == "dog")
    # Where a person sees the dog in the photograph of 768 x 576 pixels.
    seen = torch.tensor([[130.0, 220.0, 312.0, 540.0]])
    assert box_iou(torch.tensor([dog["box"]]), seen).item() > 0.5
    assert all(type(one["score"]) is float for one in told)


@pytest.mark.parametrize("several", [False, True])
def test_grids_are_decoded_as_the_network_itself_decodes_them(yolo: Any, several: bool) -> None:
    image = torch.from_numpy(yolo.letterboxed(Image.open(DOG).convert("RGB")))[None]
    network = yolo.pretrained().network
    outputs, anchors = grids(network, image)
    with torch.no_grad():
        corners, scores = (one[0] for one in network.candidates(image))
    if several:
        place, kind = torch.nonzero(scores >= 0.05, as_tuple=True)
        best = scores[place, kind]
    else:
        best, kind = scores.max(dim=1)
        place = torch.nonzero(best >= 0.05)[:, 0]
        best, kind = best[place], kind[place]
    kept = batched_nms(corners[place], best, kind, 0.45)
    found = DarknetBoxes(tuple(outputs), anchors, (SIDE, SIDE), least=0.05, multi_label=several)
    told = Nms()(found(outputs, Origin()), Origin())
    assert len(told) == len(kept) >= 5
    assert [one["class"] for one in told] == kind[kept].tolist()
    np.testing.assert_allclose([one["score"] for one in told], best[kept], rtol=1e-4)
    boxes = corners[place][kept]
    np.testing.assert_allclose([one["box"] for one in told], boxes, rtol=1e-4, atol=1e-2)


ANCHORS = (((10.0, 14.0), (23.0, 27.0)),)


def test_a_grid_of_known_numbers_gives_the_box_that_follows_from_them() -> None:
    grid = np.full((2, 5 + 3, 4, 5), -9.0, np.float32)
    grid[1, :, 2, 3] = [0, 0, np.log(2), 0, 9, -9, 9, -9]
    step = DarknetBoxes(("y",), ANCHORS, (64, 160))
    boxes = step({"y": grid.reshape(16, 4, 5)}, Origin())
    # The middle of the place in row 2 and column 3, of 16 x 32 pixels; the second anchor, twice as wide.
    assert boxes.corners.tolist() == [pytest.approx([112 - 23, 40 - 13.5, 112 + 23, 40 + 13.5])]
    assert boxes.classes.tolist() == [1]
    assert boxes.scores.tolist() == [pytest.approx(1, abs=1e-3)]
    shifted = DarknetBoxes(("y",), ANCHORS, (64, 160), scale_x_y=2.0)
    np.testing.assert_allclose(
        shifted({"y": grid.reshape(16, 4, 5)}, Origin()).corners, boxes.corners
    )


@pytest.mark.parametrize("number", [0, 3, 4, 5])
def test_a_grid_with_nan_at_a_likely_place_is_refused(number: int) -> None:
    grid = np.full((2, 8, 4, 5), 2.0, np.float32)
    grid[0, number, 0, 0] = np.nan
    step = DarknetBoxes(("y",), ANCHORS, (64, 160))
    with pytest.raises(
        InputError, match=r"^darknet_boxes needs finite numbers: the model's output 'y'"
    ):
        step({"y": grid.reshape(16, 4, 5)}, Origin())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"least": 0}, "darknet_boxes.least=0: give a number above 0, so that few boxes remain"),
        (
            {"outputs": ("y", "z")},
            "darknet_boxes has 2 outputs and anchors for 1: give a list of anchors for each grid",
        ),
        (
            {"size": (0, 9)},
            "darknet_boxes.size=(0, 9): give the sample's height and width in pixels",
        ),
        ({"scale_x_y": 0.0}, "darknet_boxes.scale_x_y=0.0: give a number above 0"),
        (
            {"anchors": (((0.0, 9.0),),)},
            "darknet_boxes.anchors=((0.0, 9.0),): give 1 to 64 pairs of width and height in pixels for "
            "each grid",
        ),
    ],
)
def test_grids_settings_that_can_not_be_meant_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        DarknetBoxes(**{"outputs": ("y",), "anchors": ANCHORS, "size": (64, 64), **settings})
    assert str(error.value) == words


def test_a_grid_with_other_numbers_than_the_anchors_need_is_refused() -> None:
    step = DarknetBoxes(("y",), ANCHORS, (64, 64), ("a", "b"))
    step.check([TensorSpec("y", "float32", ("n", 14, 2, 2))])
    spec = TensorSpec("y", "float32", ("n", 15, 2, 2))
    with pytest.raises(InputError) as error:
        step.check([spec])
    assert str(error.value) == (
        f"darknet_boxes needs 2 * (5 + classes) numbers at each place of a grid; the model gives {spec}"
    )
    with pytest.raises(InputError) as error:
        step({"y": np.zeros((16, 2, 2), "f")}, Origin())
    assert str(error.value) == (
        "darknet_boxes needs 2 * (5 + 2) numbers at each place of 'y'; got [16, 2, 2]"
    )


def test_positions_too_far_to_be_meant_end_in_a_box_and_not_in_an_overflow() -> None:
    far = np.array([[1e38, 1e38, 3e38, 3e38, 0.9], [1, 1, 1, 1, 0.8]], np.float32).T
    boxes = YoloBoxes()({"y": far}, Origin())
    assert isinstance(boxes, Boxes)
    told = Nms()(boxes, Origin(10, 10))
    assert [one["box"] for one in told] == [[0.0, 0.0, 10.0, 10.0], [0.5, 0.5, 1.5, 1.5]]
