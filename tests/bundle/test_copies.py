"""Copies of a request on its way: counted in memory, in front of the engine, inside it and behind it."""

import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image
from tests.support.bundles import built
from tests.support.chains import bundle, squares

import hasten
from hasten.bundle.chains.plan import ChainPlan, Member
from hasten.bundle.copies import copies_in_words
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.chains import Chain, Crop, Model
from hasten.inputs.models.onnx import load
from hasten.inputs.pipeline.base import Pipeline, PostStep, Step, as_request
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.mask import Mask
from hasten.inputs.pipeline.resample import compile_now
from hasten.serving.models.prepared import parts_of, together
from hasten.testing import models
from hasten.testing.models import HEADER

NORMALIZE = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SOME = 100_000
"""Bytes that bookkeeping may take."""


@dataclass
class Grown:
    """Largest number of bytes that Python and numpy held at once, beyond those at first."""

    peak: int = field(default=0)


@contextmanager
def grown() -> Iterator[Grown]:
    """Count what is allocated inside."""
    tracemalloc.start()
    seen = Grown()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield seen
        seen.peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def photo(kind: str) -> tuple[bytes, int]:
    """Return an encoded picture of 1280 x 720, and the size of its pixels in RGB."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8))
    image = small.resize((1280, 720), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return file.getvalue(), 1280 * 720 * 3


FOLDED = (Resize(256), CenterCrop(224), ToLayout("HWC", "uint8"))
PLANES = (Resize(256), CenterCrop(224), NORMALIZE, ToLayout())


@pytest.mark.parametrize("steps", [FOLDED, PLANES], ids=["folded", "planes"])
def test_a_jpegs_pixels_are_in_memory_once_and_its_sample_goes_to_the_engine_itself(
    steps: tuple[Step, ...],
) -> None:
    pytest.importorskip("simplejpeg")
    compile_now()
    data, whole = photo("JPEG")
    pipeline = Pipeline((Decode(), *steps))
    channels_last = steps is FOLDED
    shape = (1, 224, 224, 3) if channels_last else (1, 3, 224, 224)
    spec = TensorSpec("x", "uint8" if channels_last else "float32", shape)
    pipeline.prepared(data)
    with grown() as seen:
        prepared, _ = pipeline.prepared(data)
        request = as_request(prepared, (spec,))
    assert np.shares_memory(request["x"], prepared)
    cut = 224 * 224 * 3
    # The rows between the two passes of the resize: as wide as the crop, four bytes for each pixel.
    between = 720 * 224 * 4
    assert whole < seen.peak < whole + between + cut + SOME
    # Not the whole picture once more, and of the sample only itself.
    assert prepared.nbytes == (cut if channels_last else 4 * cut)


def test_a_frame_of_a_video_is_not_copied_before_it_is_resized() -> None:
    compile_now()
    frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    pipeline = Pipeline((Decode(), *FOLDED))
    pipeline.prepared(frame)
    with grown() as seen:
        pipeline.prepared(frame)
    assert seen.peak < frame.nbytes / 2


@dataclass(frozen=True)
class Noted(Step):
    """Step that keeps what it sees, and cuts it to one pixel."""

    seen: list[Array] = field(default_factory=list)

    def __call__(self, value: Array) -> Array:
        self.seen.append(value)
        return np.zeros((3,), np.float32)


def test_a_chains_crops_are_parts_of_the_one_decoded_picture() -> None:
    noted = Noted()
    rows = TensorSpec("x", "float32", (1, 3))
    boxes: tuple[PostStep, ...] = (GivenBoxes(labels=("square",)),)
    plan = ChainPlan(
        Chain((Model("det", "det"), Crop("crop", "det"), Model("read", "read", "crop"))),
        {
            "det": Member(Pipeline((Decode(), Noted()), boxes), (rows,)),
            "read": Member(Pipeline((Decode(), noted)), (rows,), 4),
        },
    )
    picture = squares({})
    found = np.array([[[0, 0, 64, 64, 0.9, 0], [64, 64, 128, 128, 0.8, 0]]], np.float32)
    run = plan.run(picture)
    assert next(run).model == "det"
    ask = run.send([{"rows": found}])
    assert (ask.model, len(ask.requests)) == ("read", 2)
    assert [crop.shape for crop in noted.seen] == [(64, 64, 3)] * 2
    assert all(np.shares_memory(crop, picture) for crop in noted.seen)
    run.close()


def test_one_sample_of_a_served_request_is_sent_on_itself_and_several_are_copied_once() -> None:
    rows = [{"x": np.full((1, 1_000_000), n, np.float32)} for n in range(3)]
    size_bytes = 3 * 4_000_000
    assert together(rows[:1])["x"] is rows[0]["x"]
    (only,) = parts_of(rows[:1], 8)
    assert only["x"] is rows[0]["x"]
    for made in (together, lambda given: parts_of(given, 8)[0]):
        with grown() as seen:
            joined = made(rows)
        assert np.array_equal(joined["x"], np.concatenate([row["x"] for row in rows]))
        assert size_bytes <= seen.peak < 1.5 * size_bytes


def test_the_engines_outputs_are_not_copied_before_the_decision(tmp_path: Path) -> None:
    """21 scores for each of 256 x 256 pixels, which ONNX Runtime returns in memory of its own."""
    text = """
        scores (float[batch, 3, 256, 256] x) => (float[batch, 21, 256, 256] y) {
            y = Concat <axis = 1> (x, x, x, x, x, x, x)
        }"""
    path = bundle(tmp_path, "scores", text, {}, 256, [Mask()])
    frame = np.zeros((256, 256, 3), np.uint8)
    scores = 4 * 21 * 256 * 256
    with hasten.load(path, which="exact") as loaded:
        expected = loaded.decide(frame)
        with grown() as seen:
            assert loaded.decide(frame) == expected
    # The sample, and the likeliest classes; the scores are in the runtime's own memory, and no copy of them is.
    assert seen.peak < scores / 2


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.inputs.models.onnx import load

def most():  # of this program: getrusage counts what its parent had when it was started, too
    said = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(said.split()[0]) * 1024

name, model, folder = sys.argv[1:]
target, engine = Target.host().with_threads(1), Engine.member(name)()
model = load(Path(model))
artifact = engine.build(model, target, Path(folder))
with engine.open(artifact, target) as session:
    request = {"x": np.ones(model.inputs[0].shape, np.float32)}
    request["x"][0, 7] = 3
    before = most()
    answer = session.run(request)
    assert answer["y"].tolist() == [[3.0]], answer
    print((most() - before) / request["x"].nbytes)
"""
NUMBERS = 1 << 24


def largest(folder: Path, numbers: int) -> Path:
    """Write a model that finds the largest of some numbers."""
    text = (
        f"largest (float[1, {numbers}] x) => (float[1, 1] y) {{ y = ReduceMax <axes = [1]> (x) }}"
    )
    onnx.save(parser.parse_model(HEADER + text), folder / "largest.onnx")
    return folder / "largest.onnx"


@pytest.mark.parametrize(
    ("engine", "package"),
    [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("compiled", "hasten")],
)
def test_an_engine_copies_a_request_as_often_as_it_says(
    engine: str, package: str, tmp_path: Path
) -> None:
    """Counted in the memory of a fresh process, which a copy that no Python sees makes larger too."""
    pytest.importorskip(package)
    (tmp_path / "built").mkdir()
    given = [engine, str(largest(tmp_path, NUMBERS)), str(tmp_path / "built")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *given],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    copied_into = Engine.member(engine).copied_into
    assert copied_into is not None
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(len(copied_into), abs=0.2)


def test_litert_copies_a_request_into_the_models_input(tmp_path: Path) -> None:
    """Its memory is taken when the model is opened, so that no request makes the process larger."""
    pytest.importorskip("ai_edge_litert")
    from hasten.engines.litert.engine import LiteRt

    engine, target = LiteRt(), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    artifact = engine.build(load(largest(tmp_path, 64)), target, tmp_path / "built")
    with engine.open(artifact, target) as session:
        request = {"x": np.arange(64, dtype=np.float32)[None]}
        assert session.run(request)["y"].tolist() == [[63]]
        ((_, index),) = session._from  # type: ignore[attr-defined]
        held = session._interpreter.tensor(index)()  # type: ignore[attr-defined]
        assert held.tolist() == request["x"].tolist()
        assert not np.shares_memory(held, request["x"])
        del held
    assert LiteRt.copied_into is not None
    assert len(LiteRt.copied_into) == 1


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("onnxruntime", "a request's 64 bytes are read where they are, without a copy"),
        ("openvino", "a request's 64 bytes are copied once, into OpenVINO's input buffers"),
        (
            "tensorrt",
            "a request's 64 bytes are copied twice, into pinned memory and then into the device's memory",
        ),
        ("cascade", ""),
        ("an engine of a plug-in that isn't here", ""),
    ],
)
def test_a_bundle_says_what_is_copied(tmp_path: Path, engine: str, said: str) -> None:
    part = built(tmp_path, models.linear_classifier(tmp_path), OnnxRuntime(threads=1))
    part.engine["type"] = engine
    assert copies_in_words(part) == said
