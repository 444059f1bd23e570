"""A certified bundle with a model that was really made int8; no clock has a say in it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tests.support.once import made_once
from tests.support.quick import quick_runs

import hasten
from hasten.measure.latency import Round


def classifier(folder: Path) -> Path:
    """Write input: float32[batch, 64] -> logits: float32[batch, 8], right about `points`."""
    text = """<ir_version: 10, opset_import: ["": 17]>
        classifier (float[batch, 64] input) => (float[batch, 8] logits) {
            product = MatMul(input, w1)
            hidden = Relu(product)
            logits = MatMul(hidden, w2)
        }"""
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((64, 128), np.float32)
    w2 = np.linalg.pinv(np.maximum(centers() @ w1, 0))
    model = parser.parse_model(text)
    for name, weight in (("w1", w1), ("w2", w2)):
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "classifier.onnx")
    return folder / "classifier.onnx"


def centers() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((8, 64), np.float32)


def points(path: Path, count: int, seed: int) -> Path:
    """Write points around the middle of the class that is their label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, count)
    noise = rng.standard_normal((count, 64), np.float32)
    np.savez(path, input=centers()[labels] + 0.5 * noise, labels=labels)
    return path


def steady(entrants: dict[str, Any], *_: Any, first: int = 0, **__: Any) -> Iterator[Round]:
    """Rounds by a clock of their own: the baseline takes 8 ms, all else 1."""
    for number in itertools.count(first):
        block = {who: 8_000_000 if who.startswith("baseline") else 1_000_000 for who in entrants}
        yield Round(number, {who: (ns,) * 3 for who, ns in block.items()}, {}, True)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with a model that was really made int8, and the samples that it was judged on."""
    with made_once(tmp_path_factory, "int8") as (folder, missing):
        if missing:
            make_int8(folder)
    return folder / "int8.hasten", folder / "eval.npz"


def make_int8(folder: Path) -> None:
    file = points(folder / "eval.npz", 1200, seed=2)
    with quick_runs(passes=True, races=False), pytest.MonkeyPatch.context() as patch:
        for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
            patch.setattr(f"{place}.rounds", steady)
        result = hasten.optimize(
            classifier(folder),
            file,
            max_drop=0.05,
            out=folder / "int8.hasten",
            engines=("onnxruntime",),
            passes=("dynamic_quantization",),
        )
    assert result.status == "certified", result.why


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """400 samples that the bundle wasn't made with."""
    return points(tmp_path / "new.npz", 400, seed=3)
