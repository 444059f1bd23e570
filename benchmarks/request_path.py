"""From a JPEG of 1280 x 720 to EfficientNet-Lite0's answer: the usual way, and hasten's.

    python benchmarks/request_path.py [--out results.json] [--folder FOLDER] [--no-search]

Makes pictures (random crops of photographs that ship in packages, encoded as JPEG), optimizes the pretrained
network from bytes to decision, and times three ways in turns, each against hasten's, with intervals:

- Pillow, torchvision's transforms, and the original model on ONNX Runtime's defaults: what people have;
- the same preparation before hasten's own int8 model, so that only what surrounds the network differs;
- the bundle's own pipeline before the exact model.

Then it prints each stage's latency, a table of decoders (`jpeg_decoders.py`), and what surrounds the network over the
fastest full decode: the pipeline before and after the model, without the model, in turns with the decoders.

With `--no-search` it only does that, for the pipeline that decodes whole pictures and for the one that decodes
them at half their size, which the search takes where it is certified. The model is left out, and takes pixels as
bytes as a folded one does. This takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jpeg_decoders import (
    compared,
    decoders,
    equal,
    fastest,
    in_words,
    median_ms,
    pictures,
    taken,
)

import hasten
from hasten.cli.demos.photos import pretrained
from hasten.cli.screen import stages, table
from hasten.core.records import to_record
from hasten.inputs.models.source import load_model
from hasten.inputs.pipeline.base import Pipeline, Step, as_request
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.image import Decode
from hasten.measure.intervals import paired_ratio

PICTURES = 1400
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


AROUND, WHOLE = "what surrounds the network", "from the file to the decision"
DECODED, TURNS = 100, 10


def surrounding(bundle: Path, photos: Path, count: int, turns: int) -> dict[str, Any]:
    """Time what surrounds a bundle's network beside full decodes; print, and return the records.

    Args:
        bundle: The bundle.
        photos: Folder of JPEG files.
        count: Number of files that are timed.
        turns: Number of times that each is.
    """
    files = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))[:count]]
    known, missing = decoders()
    with hasten.load(bundle) as loaded:
        pipeline = loaded.manifest.pipeline_of("winner")
        assert pipeline is not None
        outputs = [
            {
                name: array[0]
                for name, array in loaded(
                    **as_request(pipeline.prepared(data)[0], loaded.inputs)
                ).items()
            }
            for data in files
        ]

        def around(picture: int) -> Any:
            prepared, origin = pipeline.prepared(files[picture])
            as_request(prepared, loaded.inputs)
            return pipeline.decided(outputs[picture], origin)

        spans = taken(
            {
                **{name: lambda n, way=way: way(files[n]) for name, way in known.items()},
                AROUND: around,
                WHOLE: lambda n: loaded.decide(files[n]),
            },
            len(files),
            turns,
        )
    same = [name for name in known if equal(known[name], files[:20])]
    best, best_same = fastest(spans, known), fastest(spans, same)
    print(f"\n{compared(spans, known, files[:20])}")
    for line in missing:
        print(line)
    for name in (WHOLE, AROUND):
        print(f"{name}: {median_ms(spans[name]):.2f} ms")
    ratios = {}
    for what, name in (("of all", best), ("with Pillow's pixels", best_same)):
        ratios[what] = paired_ratio(spans[AROUND], spans[name])
        print(f"{AROUND} over the fastest full decode {what} ({name}): {in_words(ratios[what])}")
    return {
        "p50_ms": {name: median_ms(each) for name, each in spans.items()},
        f"{AROUND} over the fastest full decode": to_record(ratios),
    }


def steps_of() -> tuple[Step, ...]:
    """Return the steps that EfficientNet-Lite0 was trained with."""
    return image_pipeline(224, 256, "bicubic", 127 / 255, 128 / 255).steps


def unsearched(folder: Path) -> dict[str, Any]:
    """Time pipelines alone beside full decodes; print, and return the records."""
    photos = folder / "photos"
    if not photos.exists():
        pictures(photos, DECODED)
    files = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))[:DECODED]]
    known, _ = decoders()
    logits = {"y": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    decode, resize, crop, *_ = steps_of()
    assert isinstance(decode, Decode)
    pipelines = {
        f"around the network, {what}": Pipeline(
            (replace(decode, least=least), resize, crop), (TopK(),)
        )
        for what, least in (("decoded whole", 0), ("decoded at half the size", 256))
    }

    def around(pipeline: Pipeline, picture: int) -> Any:
        _, origin = pipeline.prepared(files[picture])
        return pipeline.decided(logits, origin)

    spans = taken(
        {
            **{name: lambda n, way=way: way(files[n]) for name, way in known.items()},
            **{name: partial(around, pipeline) for name, pipeline in pipelines.items()},
        },
        len(files),
        TURNS,
    )
    for name, each in spans.items():
        print(f"{name}: {median_ms(each):.2f} ms")
    best = fastest(spans, known)
    ratios = {name: paired_ratio(spans[name], spans[best]) for name in pipelines}
    for name, ratio in ratios.items():
        print(f"{name} over the fastest full decode ({best}): {in_words(ratio)}")
    return {
        "p50_ms": {name: median_ms(each) for name, each in spans.items()},
        "over the fastest full decode": to_record(ratios),
    }


def measured(folder: Path) -> dict[str, Any]:
    """Optimize and time; print as it goes, and return the records."""
    photos = folder / "photos"
    if not photos.exists():
        pictures(photos, PICTURES)
    pipeline = Pipeline(steps_of(), (TopK(),))
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
    records["decoders"] = surrounding(folder / "whole.hasten", photos, DECODED, TURNS)
    return records


def main() -> None:
    """Parse the command line, measure and write."""
    os.environ.setdefault("HASTEN_LEDGER", "off")  # each run is timed as a first one
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="file for the records, as JSON")
    parser.add_argument("--folder", type=Path, help="folder to work in, kept for the next time")
    parser.add_argument("--no-search", action="store_true", help="time pipelines alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        records = unsearched(folder) if options.no_search else measured(folder)
    if options.out is not None:
        options.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
