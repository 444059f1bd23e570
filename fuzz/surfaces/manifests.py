"""Manifests of bundles: what they state is changed, under a digest that fits or not, and the bundle is opened."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import Surface
from tests.support.bundles import built, stated
from tests.support.models import COLOUR, COLOURS

from hasten.bundle import MANIFEST, Manifest, load, read, write
from hasten.core.records import digest
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import HastenError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.testing import models

_WORDS = (
    "onnxruntime",
    "compiled",
    "openvino",
    "pool",
    "cascade",
    "float32",
    "int64",
    "batch",
    "exact",
)
_ALONE = OnnxRuntime(threads=1, spinning=False)


class Manifests(Surface):
    """Manifests of three bundles; the first byte of an input says of which."""

    name = "manifests"
    most_mib = 128

    def seeds(self) -> list[bytes]:
        self._bundles = [
            self._bundle("two", models.two_inputs(self.folder), _ALONE),
            self._bundle("compiled", models.linear_classifier(self.folder), CompiledC()),
            self._bundle(
                "colour",
                models.write(self.folder / "colour.onnx", COLOUR, {}),
                _ALONE,
                Pipeline(image_pipeline(8).steps, (TopK(1, COLOURS, softmax=False),)),
            ),
        ]
        return [
            bytes([number]) + (bundle / MANIFEST).read_bytes()
            for number, bundle in enumerate(self._bundles)
        ]

    def _bundle(
        self, name: str, model: Path, engine: Engine, pipeline: Pipeline | None = None
    ) -> Path:
        place = self.folder / f"{name}-parts"
        place.mkdir()
        winner = built(place, model, engine)
        path = self.folder / f"{name}.hasten"
        rng = np.random.default_rng(0)
        request = {
            spec.name: rng.integers(0, 2, [int(n) for n in spec.shape]).astype(spec.dtype)
            for spec in winner.artifact.request
        }
        manifest: Manifest = stated(winner, winner, status="exact", pipeline=pipeline)
        write(path, manifest, {"notes.json": [1, 2]}, requests=[request])
        shutil.rmtree(place)
        return path

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        kind, text = rng.random(), seed[1:]
        if kind < 0.1:
            return seed[:1] + changed_bytes(text, rng)
        if kind < 0.15:
            return seed[:1] + grown(text, rng)
        record = json.loads(text)
        del record["digest"]
        change = changed_leaves if kind < 0.6 else changed_record
        record = change(record, rng, _WORDS)
        return seed[:1] + _signed(record)

    def check(self, data: bytes) -> str:
        bundle = self._bundles[data[0] % len(self._bundles)] if data else self._bundles[0]
        (bundle / MANIFEST).write_bytes(data[1:])
        try:
            manifest = read(bundle)
        except HastenError as error:
            return refused(error)
        try:
            with load(bundle, cache=False) as model:
                model.run(zeros(model.request))
        except HastenError as error:
            return f"read, then {refused(error)}"
        return f"opened as {manifest.status}"


def zeros(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return a request of zeros."""
    return {spec.name: np.zeros([int(n) for n in spec.shape], spec.dtype) for spec in specs}


def _signed(record: object) -> bytes:
    """Return the text of a manifest with the digest that fits it, if any can."""
    try:
        stated = digest(record)
    except (TypeError, ValueError):
        stated = ""
    return json.dumps({**record, "digest": stated} if isinstance(record, dict) else record).encode()
