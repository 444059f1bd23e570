"""From a JPEG of 1280 x 720 to EfficientNet-Lite0's answer: the usual way, and hasten's.

    python benchmarks/request_path.py [--out results.json] [--folder FOLDER]

Makes pictures (random crops of photographs that ship in packages, encoded as JPEG), optimizes the pretrained
network from bytes to decision, and times three ways in turns, each against hasten's, with intervals:

- Pillow, torchvision's transforms, and the original model on ONNX Runtime's defaults: what people have;
- the same preparation before hasten's own int8 model, so that only what surrounds the network differs;
- the bundle's own pipeline before the exact model.

Then it prints each stage's latency, and what surrounds the network over the fastest full decode.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hasten
from hasten.cli.demos.photos import RandomCrops, photo_files, pretrained
from hasten.cli.screen import stages, table
from hasten.core.records import to_record
from hasten.inputs.models.source import load_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline

PICTURES = 1400
WIDTH, HEIGHT = 1280, 720
USUAL = """
import io

import numpy as np
import torchvision.transforms as T
from PIL import Image

prepare = T.Compose([
    T.Resize(256, T.InterpolationMode.BICUBIC),
    T.CenterCrop(224),
    T.ToTensor(),
    T.Normalize([127 / 255] * 3, [128 / 255] * 3),
])


def decided(scores):
    scores = np.exp(scores - scores.max())
    best = int(scores.argmax())
    return [{{"class": best, "score": float(scores[best] / scores.sum())}}]


def prepared(raw):
    return prepare(Image.open(io.BytesIO(raw)).convert("RGB")).numpy()[None]

{load}

def predict(raw):
    return decided(answer(prepared(raw)))
"""
DEFAULTS = """
import onnxruntime

session = onnxruntime.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name


def answer(x):
    return session.run(None, {{name: x}})[0][0]
"""
SAME = """
import hasten

loaded = hasten.load({bundle!r})


def answer(x):
    return next(iter(loaded(x).values()))[0]
"""


def pictures(folder: Path, count: int) -> None:
    """Write JPEG files of random crops of the packages' photographs."""
    crops = RandomCrops(photo_files(), count)
    folder.mkdir()
    for index in range(count):
        photo, box, mirrored = crops._draw(index)
        image = crops._photos[photo].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(folder / f"{index:05}.jpg", quality=90)


def measured(folder: Path) -> dict[str, Any]:
    """Optimize and time; print as it goes, and return the records."""
    photos = folder / "photos"
    if not photos.exists():
        pictures(photos, PICTURES)
    steps = image_pipeline(224, 256, "bicubic", 127 / 255, 128 / 255).steps
    pipeline = Pipeline(steps, (TopK(),))
    common: dict[str, Any] = {
        "pipeline": pipeline,
        "metric": "agreement",
        "max_drop": 0.04,
        "population": "random crops of the packages' photographs",
    }
    module = pretrained()
    whole = hasten.optimize(module, photos, out=folder / "whole.hasten", end_to_end=True, **common)
    apart = hasten.optimize(module, photos, out=folder / "apart.hasten", **common)
    print(
        f"end to end: {whole.status}, {whole.winner.label}; apart: {apart.status}, {apart.winner.label}"
    )
    (folder / "export").mkdir(exist_ok=True)
    original = load_model(module, {"x": np.zeros((3, 224, 224), np.float32)}, folder / "export")
    (folder / "usual.py").write_text(USUAL.format(load=DEFAULTS.format(model=str(original.path))))
    (folder / "same.py").write_text(
        USUAL.format(load=SAME.format(bundle=str(folder / "apart.hasten")))
    )
    records = {}
    for what, against in (
        ("Pillow, torchvision, ONNX Runtime's defaults", f"{folder}/usual.py:predict"),
        ("the same preparation before hasten's int8 model", f"{folder}/same.py:predict"),
        ("hasten's pipeline before the exact model", None),
    ):
        result = hasten.bench(
            folder / "whole.hasten", against=against, data=photos, end_to_end=True
        )
        print(f"\n{what}: hasten is {result.speedup:.2f}x faster")
        print(table([result.against, result.bundle]))
        print(stages(result))
        records[what] = to_record(result)
    return records


def main() -> None:
    """Parse the command line, measure and write."""
    os.environ.setdefault("HASTEN_LEDGER", "off")  # each run is timed as a first one
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="file for the records, as JSON")
    parser.add_argument("--folder", type=Path, help="folder to work in, kept for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        records = measured(folder)
    if options.out is not None:
        options.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
