"""A real model in two generations, what is asked of it, and every answer that is right."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests' own pieces

import numpy as np
import onnx
from tests.support import digits
from tests.support.bundles import forge
from tests.support.servers import bundle_of

import hasten
from hasten.engines.openvino.engine import OpenVino

ASKED = 16
"""Number of different requests, asked in turn: an answer to another request must be told from the right one."""
TOLERANCE = 1e-3
"""Error that an answer may have, as a share of its largest number: engines add up in another order in a batch."""
_SHIFT = 0.5
"""Number by which each of the second generation's answers is higher."""


class Known:
    """A model whose answers are known.

    Args:
        model: ONNX file with one input, one float32 output and a matrix product with a bias at its end.
        samples: Samples for the input, of shape `(n, ...)`.
        folder: Folder to write both generations to.

    Attributes:
        generations: Bundles whose answers differ by a constant; either may be served.
        requests: Inputs of each request, by name.
        right: Right answers by request, generation and engine (winner, exact), flat: shape `(n, 4, numbers)`.
    """

    def __init__(self, model: Path, samples: np.ndarray, folder: Path) -> None:
        self.generations = (
            _bundle(model, folder / "first"),
            _bundle(_shifted(model, folder), folder / "second"),
        )
        (spec,) = onnx.load(model, load_external_data=False).graph.input
        self.requests = [{spec.name: np.ascontiguousarray(row[np.newaxis])} for row in samples]
        answers = [
            _answers(bundle, which, self.requests)
            for bundle in self.generations
            for which in ("winner", "exact")
        ]
        self.right = np.stack(answers, axis=1)
        self._margins = TOLERANCE * np.abs(self.right).max(axis=(1, 2))
        for turn in range(len(self.requests)):
            for other in np.delete(self.right, turn, axis=0).reshape(-1, self.right.shape[2]):
                if self._fits(turn, other):
                    raise ValueError(f"the answer to request {turn} can't be told from another's")

    def _fits(self, turn: int, found: np.ndarray) -> bool:
        return bool((np.abs(self.right[turn] - found) <= self._margins[turn]).all(axis=1).any())

    def fault(self, turn: int, raw: bytes | memoryview) -> str:
        """Say what is wrong with the numbers that answer a request; "" where they are right."""
        turn %= len(self.requests)
        size_bytes = 4 * self.right.shape[2]
        if len(raw) != size_bytes:
            return f"request {turn} has {size_bytes} bytes as its answer; {len(raw)} came"
        found = np.frombuffer(raw, "<f4")
        if self._fits(turn, found):
            return ""
        least = np.abs(self.right[turn] - found).max(axis=1).min()
        others = [other for other in range(len(self.requests)) if self._fits(other, found)]
        whose = f"it is the answer to request {others[0]}" if others else "no request has it"
        return f"the answer to request {turn} is off by {least:.3g} at least: {whose}"


def photos(folder: Path) -> Known:
    """Return an EfficientNet-Lite0 with its published weights, asked about crops of photographs."""
    from hasten.cli.demos.photos import RandomCrops, photo_files, pretrained
    from hasten.inputs.models.torch import export

    samples = RandomCrops(photo_files(), ASKED).inputs(range(ASKED))["x"]
    folder.mkdir()
    return Known(export(pretrained(), {"x": samples[0]}, folder).path, samples, folder)


def handwriting(folder: Path) -> Known:
    """Return a linear classifier of handwritten digits, which answers in microseconds."""
    folder.mkdir()
    return Known(digits.classifier(folder), digits.digits()[0][:ASKED], folder)


def _shifted(model: Path, folder: Path) -> Path:
    """Write the same model with each answer higher by a constant."""
    proto = onnx.load(model)
    bias = proto.graph.node[-1].input[2]
    (weights,) = [each for each in proto.graph.initializer if each.name == bias]
    higher = onnx.numpy_helper.to_array(weights) + np.float32(_SHIFT)
    weights.CopyFrom(onnx.numpy_helper.from_array(higher, bias))
    path = folder / "shifted.onnx"
    onnx.save(proto, path)
    return path


def _bundle(model: Path, folder: Path) -> Path:
    """Write a bundle with OpenVINO as the fast engine, ONNX Runtime as the exact one, and a guard."""
    folder.mkdir()
    bundle = bundle_of(folder, model, engine=OpenVino(threads=1), exact=model)
    judgement = {"guard": "changed", "max_drop": 0.5}
    forge(bundle, lambda record: record.update(certificate={"judgement": judgement}))
    return bundle


def _answers(bundle: Path, which: str, requests: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    with hasten.load(bundle, which=which, cache=False) as model:
        return np.stack([next(iter(model(each).values())).reshape(-1) for each in requests])
