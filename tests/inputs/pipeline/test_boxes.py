"""Boxes that the model itself has finished, and those of SSD networks with torchvision as the oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.ssd import Priors, SsdBoxes

SEPARATE = GivenBoxes(boxes="boxes", classes="labels", labels=("a", "b", "c"))
ROWS = np.array(
    [[1, 2, 3, 4, 0.5, 2], [5, 6, 7, 8, 0.75, 0], [0, 0, 9, 9, 0.1, 1], [0, 0, 0, 0, 0, -1]], "f"
)
EXPECTED = [
    {"class": 0, "label": "a", "score": 0.75, "box": [5.0, 6.0, 7.0, 8.0]},
    {"class": 2, "label": "c", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]},
]


def separate(rows: Array) -> dict[str, Array]:
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].astype(np.int64)}


def test_one_output_of_six_columns_and_separate_outputs_tell_the_same_boxes_best_first() -> None:
    assert GivenBoxes(labels=("a", "b", "c"))({"y": ROWS}, Origin()) == EXPECTED
    assert SEPARATE(separate(ROWS), Origin()) == EXPECTED
    alone = GivenBoxes(boxes="boxes", most=1)(separate(ROWS), Origin())
    assert alone == [{"class": 0, "score": 0.75, "box": [5.0, 6.0, 7.0, 8.0]}]


def test_the_number_of_boxes_hides_the_rows_behind_it() -> None:
    step = GivenBoxes(boxes="boxes", classes="labels", labels=("a", "b", "c"), count="count")
    outputs = separate(ROWS)
    for count, expected in ((1, EXPECTED[1:]), (0, []), (4, EXPECTED), (99, EXPECTED)):
        assert step({**outputs, "count": np.array([count])}, Origin()) == expected
    with pytest.raises(
        InputError, match=r"^boxes needs finite numbers: the model's output 'count'"
    ):
        step({**outputs, "count": np.array(np.nan)}, Origin())


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ("xyxy", [0.1, 0.2, 0.3, 0.6]),
        ("yxyx", [0.2, 0.1, 0.6, 0.3]),
        ("cxcywh", [0.2, 0.4, 0.2, 0.4]),
    ],
)
def test_each_form_of_shares_becomes_the_same_box_in_pixels(
    form: Any, numbers: list[float]
) -> None:
    step = GivenBoxes(form=form, size=(100, 200))
    told = step({"y": np.array([[*numbers, 0.9, 0]], np.float32)}, Origin(50, 100, (0.5, 0.5)))
    assert told[0]["box"] == pytest.approx([10, 10, 30, 30], abs=1e-4)


@pytest.mark.parametrize("column", [0, 4, 5])
def test_nan_is_refused_and_so_is_a_class_without_a_label(column: int) -> None:
    rows = ROWS.copy()
    rows[0, column] = np.nan
    with pytest.raises(InputError, match=r"^boxes needs finite numbers"):
        GivenBoxes()({"y": rows}, Origin())
    with pytest.raises(InputError) as error:
        GivenBoxes(labels=("a",))({"y": ROWS}, Origin())
    assert (
        str(error.value) == "boxes has 1 label, for classes from 0, but the model returns class 2"
    )


@pytest.mark.parametrize(
    ("step", "outputs", "words"),
    [
        (GivenBoxes(), {"y": ("n", 300, 7)}, "boxes needs an output of shape [batch, boxes, 6]"),
        (SEPARATE, {"boxes": ("n", 9, 5)}, "boxes needs boxes of shape [batch, boxes, 4]"),
        (
            SEPARATE,
            {"boxes": ("n", 9, 4), "labels": ("n", 9), "scores": ("n", 9, 3)},
            "boxes needs scores of shape [batch, boxes]",
        ),
    ],
)
def test_outputs_of_other_shapes_are_refused_before_a_run(
    step: GivenBoxes, outputs: dict[str, tuple[int | str, ...]], words: str
) -> None:
    specs = [TensorSpec(name, "float32", shape) for name, shape in outputs.items()]
    with pytest.raises(InputError) as error:
        step.check(specs)
    assert str(error.value) == f"{words}; the model gives {specs[-1]}"


@pytest.fixture(scope="module")
def ssd() -> Any:
    """torchvision's SSDlite with random weights, whose scores are spread and whose boxes all stand."""
    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(
        weights=None,
        weights_backbone=None,
        num_classes=7,
        score_thresh=0.3,
        nms_thresh=1.0,
        topk_candidates=10_000,
        detections_per_img=10_000,
    )
    for part in net.modules():  # so that one batch settles what the normalizations remember
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        net.head(list(net.backbone(torch.rand(4, 3, 320, 320)).values()))
    return net.eval()


LITE = Priors(
    grids=((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)),
    scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
    ratios=((2.0, 3.0),) * 6,
)


def test_the_heads_of_torchvisions_ssd_give_the_boxes_that_it_finds_itself(ssd: Any) -> None:
    heads: dict[str, Array] = {}

    def keep(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        heads.update({name: one[0].numpy() for name, one in given.items()})

    ssd.head.register_forward_hook(keep)
    with torch.no_grad():
        found = ssd([torch.rand(3, 320, 320, generator=torch.Generator().manual_seed(1))])[0]
    assert len(found["scores"]) > 100
    step = SsdBoxes(
        boxes="bbox_regression",
        scores="cls_logits",
        size=(320, 320),
        least=0.3,
        most=30_000,
        priors=LITE,
    )
    step.check([TensorSpec(n, "float32", ("n", *a.shape)) for n, a in heads.items()])
    boxes = step(heads, Origin())
    theirs = [found[name].numpy() for name in ("boxes", "labels", "scores")]
    assert len(boxes) == len(found["scores"])
    np.testing.assert_allclose(boxes.scores, theirs[2], rtol=1e-4)
    clipped = boxes.corners.clip(0, 320)
    for kind in range(1, 7):
        mine, other = clipped[boxes.classes == kind], theirs[0][theirs[1] == kind]
        np.testing.assert_allclose(mine, other, atol=0.02)


def test_priors_with_steps_are_those_of_torchvisions_generator() -> None:
    ratios = [[2], [2, 3], [2]]
    scales = [0.07, 0.15, 0.33, 1.05]
    grids = [(38, 30), (19, 15), (3, 2)]
    for steps, clip in ((None, True), ([8, 16, 100], False)):
        generator = DefaultBoxGenerator(ratios, scales=scales, steps=steps, clip=clip)
        image = ImageList(torch.zeros(1, 3, 300, 240), [(300, 240)])
        theirs = generator(image, [torch.zeros(1, 1, *grid) for grid in grids])[0].numpy()
        mine = Priors(
            tuple(grids),
            tuple(scales),
            tuple(tuple(map(float, several)) for several in ratios),
            tuple(steps or ()),
            clip=clip,
        )
        centers = mine.centers((300, 240))
        assert len(centers) == mine.count
        corners = [centers[:, :2] - centers[:, 2:] / 2, centers[:, :2] + centers[:, 2:] / 2]
        np.testing.assert_allclose(np.concatenate(corners, axis=1), theirs, atol=1e-3)


def test_a_place_needs_no_softmax_only_where_no_class_can_be_likely_enough() -> None:
    numbers = np.random.default_rng(0)
    scores = numbers.normal(0, 3, (400, 5)).astype("f")
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (400, 1))
    likely = torch.from_numpy(scores).softmax(1).numpy()
    for background in (0, 2, 4):
        for least in (0.05, 0.25, 0.6):
            step = SsdBoxes(background=background, least=least)
            for dtype in (np.float32, np.float16):
                found = step({"boxes": boxes, "scores": scores.astype(dtype)}, Origin())
                others = np.delete(likely, background, axis=1)
                expected = np.sort(others[others >= least])[::-1]
                assert len(found) == pytest.approx(
                    len(expected), abs=2 if dtype == np.float16 else 0
                )
                if dtype == np.float32:
                    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


def test_boxes_that_the_model_has_decoded_are_read_as_they_are() -> None:
    outputs = {
        "boxes": np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9]], "f"),
        "scores": np.array([[0.9, 0.05, 0.05], [0.1, 0.3, 0.6]], "f"),
    }
    boxes = SsdBoxes(softmax=False, size=(100, 200))(outputs, Origin())
    assert boxes.classes.tolist() == [2, 1]  # the first row is background
    np.testing.assert_allclose(boxes.corners, [[100, 50, 180, 90]] * 2, rtol=1e-5)
    every = SsdBoxes(softmax=False, background=None, least=0.04)(outputs, Origin())
    assert len(every) == 6


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("softmax", [False, True])
def test_scores_that_are_not_finite_are_refused(number: float, softmax: bool) -> None:
    for column in range(3):
        scores = np.full((5, 3), 0.1, np.float32)
        scores[2, column] = number
        with pytest.raises(InputError, match=r"^ssd_boxes needs finite numbers"):
            SsdBoxes(softmax=softmax)({"boxes": np.zeros((5, 4), "f"), "scores": scores}, Origin())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Priors(((2, 2),), (0.1,), ((2.0,),)),
            "ssd_boxes.priors has 1 grids, 1 scales, 1 lists of ratios and 0 steps: give one of each per "
            "grid, and one scale more",
        ),
        (
            lambda: Priors(((2, 2),), (0.1, 0.0), ((2.0,),)),
            "ssd_boxes.priors: give numbers above 0",
        ),
        (
            lambda: Priors(((9999, 9999),), (0.1, 0.2), ((2.0,),)),
            "ssd_boxes.priors: give grids of at least 1 place, with at most 1048576 priors",
        ),
        (
            lambda: SsdBoxes(priors=LITE),
            "ssd_boxes.priors needs the sample's height and width: give size",
        ),
    ],
)
def test_priors_that_can_not_be_meant_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == words


def test_another_number_of_priors_than_the_model_gives_is_refused() -> None:
    spec = TensorSpec("boxes", "float32", ("n", 8732, 4))
    with pytest.raises(InputError) as error:
        SsdBoxes(size=(320, 320), priors=LITE).check([spec])
    assert str(error.value) == (
        f"ssd_boxes needs positions of shape [batch, 3234, 4]; the model gives {spec}"
    )
