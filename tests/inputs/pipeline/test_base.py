"""What a bundle can keep of a pipeline, and where a prepared sample comes from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, PostStep, Step, as_request, check_steps
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.pipeline.yolo import YoloBoxes


@dataclass(frozen=True)
class Mine(Step):
    """A step of the user's own."""

    def __call__(self, value: Any) -> Any:
        return value


def test_a_step_of_the_users_own_is_refused_before_any_work() -> None:
    check_steps(None)
    check_steps(Pipeline((Decode(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))))
    with pytest.raises(InputError) as error:
        check_steps(Pipeline((Decode(), Mine())))
    assert str(error.value) == (
        f"a bundle can't store the step {__name__}:Mine, only {', '.join(Step.registry)}: "
        "preprocess the data in your own code, and give arrays"
    )


def test_steps_after_the_model_leave_its_own_steps_before_it() -> None:
    own = Pipeline((Decode(),), (TopK(labels=("bad", "good")),), (Resize(8, "bilinear"),))
    cutoff = Pipeline((), (Threshold(0.2, position=1),))
    assert cutoff.behind(None) == cutoff
    assert Pipeline(()).behind(own) == Pipeline(())
    whole = Pipeline((Decode(), Resize(9, "bilinear")), cutoff.after)
    assert whole.behind(own) == whole
    named = Threshold(0.2, position=1, labels=("bad", "good"))
    assert cutoff.behind(own) == Pipeline(own.steps, (named,), own.folded)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Threshold(), ()),
        (Threshold(position=0), ("good", "bad")),
        (Threshold(position=1), ("bad", "good")),
        (Threshold(position=2), ()),
        (Threshold(position=1, labels=("no", "yes")), ("no", "yes")),
        (TopK(), ("bad", "good")),
        (TopK(labels=("no", "yes")), ("no", "yes")),
    ],
)
def test_a_step_gets_the_names_of_the_models_classes_where_it_has_none(
    given: Threshold | TopK, wanted: tuple[str, ...]
) -> None:
    assert given.naming(("bad", "good")).labels == wanted  # of no, and of yes
    assert given.naming(()) == given
    three = given.naming(("a", "b", "c")).labels
    assert three == (given.labels or (("a", "b", "c") if isinstance(given, TopK) else ()))


def picture(height: int, width: int) -> np.ndarray:
    """Red grows by the row and green by the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Given(Step):
    """Start from a picture that is decoded already."""

    def __call__(self, value: Any) -> Any:
        return value

    def traced(self, value: Any, origin: Origin) -> tuple[Any, Origin]:
        return value, Origin(*value.shape[:2])


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (64, 64), (40, 200)])
def test_a_position_in_the_sample_is_told_in_the_sources_own_pixels(
    height: int, width: int
) -> None:
    pipeline = Pipeline((Given(), Resize(64, "bilinear"), CenterCrop(64)))
    sample, origin = pipeline.prepared(picture(height, width))
    assert (origin.height, origin.width) == (height, width)
    np.testing.assert_array_equal(sample, pipeline(picture(height, width)))
    # The middle of a pixel in the sample shows what is at its place in the source.
    for y, x in ((10, 20), (50, 33)):
        row = origin.offset[0] + origin.scale[0] * (y + 0.5) - 0.5
        column = origin.offset[1] + origin.scale[1] * (x + 0.5) - 0.5
        assert sample[y, x, 0] == pytest.approx(row, abs=1.6)
        assert sample[y, x, 1] == pytest.approx(column, abs=1.6)


@pytest.mark.parametrize(("height", "width"), [(30, 101), (31, 100)])
def test_a_border_that_was_added_lies_before_the_sources_first_pixel(
    height: int, width: int
) -> None:
    sample, origin = Pipeline((Given(), CenterCrop(64))).prepared(picture(height, width) + 1)
    top, left = (round(-offset) for offset in origin.offset)
    assert top == (64 - height) // 2
    assert sample[top, 0, 2] == 1
    assert sample[top - 1, 0, 2] == 0
    assert sample[top, max(0, left), 1] == 1 + max(0, -left)


def test_what_a_pipeline_gives_must_be_what_the_model_takes() -> None:
    x, mask = TensorSpec("x", "float32", ("n", 4)), TensorSpec("mask", "int64", ("n", 4))
    four = np.zeros(4, np.float32)
    assert as_request(four, [x])["x"].shape == (1, 4)
    assert set(as_request({"x": four, "mask": np.ones(4, np.int64)}, [x, mask])) == {"x", "mask"}
    for prepared, inputs, words in (
        (four, [x, mask], "the pipeline gives one array, but the model takes the inputs x, mask"),
        ({"x": four}, [x, mask], f"the pipeline gives x, but the model takes {mask}"),
        (
            np.zeros(5, np.float32),
            [x],
            f"the pipeline gives [1, 5] of float32 with its batch axis, but the model takes {x}",
        ),
    ):
        with pytest.raises(InputError) as error:
            as_request(prepared, inputs)
        assert str(error.value) == words


def test_a_pipeline_without_steps_after_the_model_decides_nothing() -> None:
    outputs = {"y": np.zeros(3)}
    assert Pipeline((ToLayout(),)).decided(outputs, Origin()) is outputs


HEAD = TensorSpec("y", "float32", ("n", 84, 8400))


def test_steps_after_the_model_that_fit_its_outputs_and_each_other_are_accepted() -> None:
    Pipeline(()).check([HEAD])
    Pipeline((), (YoloBoxes(), Nms())).check([HEAD])
    Pipeline((), (TopK(),)).check([TensorSpec("y", "float32", ("n", 3))])


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            (Nms(),),
            "the step nms takes boxes, but gets the model's outputs: put yolo_boxes or "
            "darknet_boxes or "
            "ssd_boxes between",
        ),
        (
            (YoloBoxes(),),
            "the last step after the model, yolo_boxes, gives boxes, not a decision: add nms",
        ),
        (
            (YoloBoxes(), TopK()),
            "the step top_k takes the model's outputs, but gets boxes from yolo_boxes: leave out "
            "one of "
            "them",
        ),
        (
            (YoloBoxes(), Nms(), Nms()),
            "the step nms takes boxes, but gets a decision from nms: leave out one of them",
        ),
        (
            (YoloBoxes(labels=("a",)), Nms()),
            "yolo_boxes has 1 label; the model's output 'y' has 80 classes",
        ),
    ],
)
def test_steps_that_do_not_fit_say_which_and_what_is_needed(
    after: tuple[PostStep, ...], words: str
) -> None:
    with pytest.raises(InputError) as error:
        Pipeline((), after).check([HEAD])
    assert str(error.value) == words
