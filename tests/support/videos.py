"""Short videos of photographs that packages bring, and a bundle of a small classifier of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.support.bundles import built, stated

import hasten.bundle
from hasten.cli.demos import package_folder
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.testing import models

LABELS = tuple(f"class {number}" for number in range(10))


def photograph() -> Image.Image:
    """Return scikit-learn's picture of a temple, of 640 x 427 pixels."""
    folder = package_folder("sklearn", "scikit-learn") / "datasets" / "images"
    return Image.open(folder / "china.jpg").convert("RGB")


def views(count: int, size: tuple[int, int] = (120, 160)) -> Iterator[Array]:
    """Yield views of a photograph, each some pixels to the right of the one before."""
    height, width = size
    whole = np.asarray(photograph())
    for number in range(count):
        left = (7 * number) % (whole.shape[1] - width)
        yield np.ascontiguousarray(whole[100 : 100 + height, left : left + width])


def video(
    path: Path,
    count: int = 12,
    rate: int = 30,
    *,
    faststart: bool = False,
    pause: tuple[int, int] = (0, 0),
) -> Path:
    """Write a video of `views` in H.264, with all frames at the times of a rate.

    With `faststart` an .mp4 file keeps its list of frames at its beginning. With a `pause` the
    frames from the first number on come as many periods later as the second one.
    """
    import av

    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = 120, 160
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, view in enumerate(views(count)):
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts = number + (pause[1] if number >= pause[0] else 0)
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def pictures(folder: Path, count: int = 5) -> Path:
    """Write `views` as PNG files into a new folder."""
    folder.mkdir()
    for number, view in enumerate(views(count)):
        Image.fromarray(view).save(folder / f"{number:03}.png")
    return folder


def classifier(folder: Path, after: tuple[PostStep, ...] = (TopK(2, LABELS),)) -> Path:
    """Write a bundle of a small classifier of pictures with its pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    winner = built(folder, models.small_cnn(folder), OnnxRuntime())
    pipeline = Pipeline(image_pipeline(32, mean=0.5, std=0.5).steps, after)
    hasten.bundle.write(folder / "b.hasten", stated(winner, None, pipeline=pipeline), {})
    return folder / "b.hasten"
