"""ONNX files, and the plans that the engine `compiled` makes of them."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.messages import changed_message
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import MOST_BYTES, Surface

from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.lowering import lower
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import write
from hasten.errors import HastenError
from hasten.inputs.models.onnx import load
from hasten.testing import models

_MOST_ELEMENTS, _MOST_AXES = 1 << 20, 32
_WORDS = ("float32", "int64", "uint8", "exp", "maximum", "sum", "copy", "x", "t0", "t1")


def trained(folder: Path) -> Path:
    """Write a classifier of irises that scikit-learn trained."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    iris = load_iris()
    rows = iris.data.astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(rows[:, :4], iris.target)
    path = folder / "iris.onnx"
    path.write_bytes(to_onnx(model, rows[:1], options={"zipmap": False}).SerializeToString())
    return path


def settled(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the request of one row that a file states, and its outputs.

    Raises:
        HastenError: the file can't be read, or its inputs are no tensors of a settled size.
    """
    model = load(path)
    samples = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in spec.shape[1:]]
        if len(shape) > _MOST_AXES or np.prod(shape, dtype=float) > _MOST_ELEMENTS:
            return (), ()
        samples[spec.name] = np.zeros(shape, spec.dtype)
    found = model.settled_by(samples)
    return found.request, found.outputs


class OnnxFiles(Surface):
    """ONNX files, as they are read first and as the engine `compiled` reads them."""

    name = "onnx"
    most_s = 5.0
    most_mib = 256

    def seeds(self) -> list[bytes]:
        made = (models.linear_classifier, models.two_inputs, models.small_cnn, trained)
        return [make(self.folder).read_bytes() for make in made]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return changed_bytes(seed, rng)
        if kind < 0.15:
            return grown(seed, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            seed = changed_message(seed, rng)
        return seed

    def check(self, data: bytes) -> str:
        path = self.folder / "input.onnx"
        path.write_bytes(data)
        try:
            request, outputs = settled(path)
        except HastenError as error:
            return refused(error)
        if not request:
            return "too large"
        try:
            lower(path, request, outputs)
        except HastenError as error:
            return f"read, then {refused(error)}"
        return "lowered"


class Plans(Surface):
    """Plans: the first byte of an input says with which weights."""

    name = "plans"
    most_s = 10.0
    most_mib = 512

    def seeds(self) -> list[bytes]:
        made = (models.linear_classifier, models.two_inputs, models.small_cnn, trained)
        pairs = [lower(path, *settled(path)) for path in (make(self.folder) for make in made)]
        self._weights = [weights for _, weights in pairs]
        self._target = Target.host()
        texts = [json.dumps(to_record(plan)).encode() for plan, _ in pairs]
        return [bytes([at]) + text for at, text in enumerate(texts)]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        record = _parsed(seed[1:])
        words = (*_WORDS, *record["tensors"])
        change = changed_leaves if rng.random() < 0.8 else changed_record
        return seed[:1] + json.dumps(change(record, rng, words)).encode()[: MOST_BYTES - 1]

    def check(self, data: bytes) -> str:
        try:
            record = json.loads(data[1:])
        except ValueError:
            return "no record"
        weights = self._weights[data[0] % len(self._weights)]
        try:
            plan: Plan = from_record(Plan, record)
            plan.check(len(weights))
            write(plan, weights, self._target)
        except HastenError as error:
            return refused(error)
        return "written"


@functools.cache
def _parsed(text: bytes) -> Any:
    return json.loads(text)
