from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.errors import InputError
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import from_path
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.ultralytics import from_metadata
from hasten.inputs.pipeline.yolo import YoloBoxes

DETECTOR = {
    "description": "Ultralytics YOLO11n model",
    "stride": "32",
    "task": "detect",
    "batch": "1",
    "imgsz": "[480, 640]",
    "names": "{0: 'person', 1: 'bicycle'}",
}
FRAMED = Letterbox((480, 640), interpolation="opencv_linear")
SCALING = (Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ToLayout())


def refused(make: Any) -> str:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_detector_gets_a_letterbox(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph(
        "m (float[1,3,480,640] x) => (float[1,3,480,640] y) { y = Identity(x) }"
    )
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, DETECTOR)
    onnx.save(model, tmp_path / "m.onnx")
    pipeline = from_path(tmp_path / "m.onnx")
    assert pipeline.steps == (Decode(), FRAMED, *SCALING)
    assert pipeline.after == (YoloBoxes(labels=("person", "bicycle")), Nms())


def test_a_detectors_boxes_are_told_in_the_pictures_own_pixels() -> None:
    pipeline = from_metadata({**DETECTOR, "imgsz": "[320, 320]"})
    picture = np.zeros((100, 200, 3), np.uint8)
    _, origin = pipeline.prepared(picture)
    # The picture is 1.6 times as large in the middle of the square, below 80 rows of border.
    output = np.zeros((6, 2), np.float32)
    output[:, 1] = 160, 160, 64, 32, 0.1, 0.9  # its middle, 40 pixels wide and 20 high
    (found,) = pipeline.decided({"output0": output}, origin)
    assert found["label"] == "bicycle"
    assert found["box"] == pytest.approx([80, 40, 120, 60])


def test_a_classifier_is_cropped_and_gets_its_names() -> None:
    pipeline = from_metadata({**DETECTOR, "task": "classify", "imgsz": "[224, 224]"})
    assert pipeline.steps == (Decode(), Resize(224, "bilinear"), CenterCrop(224), *SCALING)
    assert pipeline.after == (TopK(labels=("person", "bicycle"), softmax=False),)


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_other_tasks_are_prepared_and_their_outputs_left(task: str) -> None:
    pipeline = from_metadata({**DETECTOR, "task": task})
    assert pipeline.steps[1] == FRAMED
    assert pipeline.after == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": "sing"},
            "the task 'sing' isn't supported; the supported ones are classify, detect",
        ),
        ({"imgsz": "open('x')"}, "the metadata's imgsz=\"open('x')\" can't be read"),
        ({"imgsz": "0x" + "f" * 6000}, "the metadata's imgsz='0xffff"),
        ({"imgsz": "[0x" + "f" * 6000 + ", 8]"}, "the metadata's imgsz='[0xffff"),
        ({"imgsz": "{[]: 1}"}, "the metadata's imgsz='{[]: 1}' can't be read"),
        ({"imgsz": "{1, 2, []}"}, "the metadata's imgsz='{1, 2, []}' can't be read"),
        ({"names": "1" + "0" * 400 + " + 1j"}, "the metadata's names='1000"),
        ({"imgsz": "[1, 2, 3]"}, "the metadata's imgsz=[1, 2, 3]: give one side"),
        ({"imgsz": "[0, 8]"}, "letterbox.size=(0, 8): give sides of at least 1 pixel"),
        ({"names": "{1: 'a'}"}, "the metadata's names aren't one text for each class"),
        (
            {"task": "classify"},
            "imgsz=[480, 640]: classification is supported only for squares",
        ),
    ],
)
def test_what_is_not_known_is_named(change: dict[str, str], message: str) -> None:
    assert refused(lambda: from_metadata({**DETECTOR, **change})).startswith(message)


def test_files_without_metadata_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert refused(lambda: from_path(path)) == f"no such file: {path}"
    path.write_bytes(b"text")
    assert refused(lambda: from_path(path)) == f"{path} can't be read as an ONNX file"
    assert refused(lambda: from_metadata({})) == (
        "the metadata lacks imgsz, task, which Ultralytics writes: state the pipeline yourself"
    )
