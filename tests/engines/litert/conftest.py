"""Small ONNX graphs, run by LiteRT and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models.onnx import load

Compare = Callable[..., str]


def write(path: Path, text: str, opset: int = 20, **constants: Any) -> Model:
    """Write a graph with constants: arrays, or shapes of normally distributed ones."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        drawn = isinstance(value, tuple)
        array = rng.standard_normal(value, np.float32) if drawn else np.asarray(value)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return load(path)


def request_of(model: Model, batch: int = 1) -> dict[str, Array]:
    """Draw a request that isn't symmetric around 0."""
    rng = np.random.default_rng(1)
    request = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else batch for size in spec.shape]
        floats = 0.3 + 2 * rng.standard_normal(shape)
        drawn = floats if spec.dtype == "float32" else rng.integers(0, 2, shape)
        request[spec.name] = drawn.astype(spec.dtype)
    return request


def compare(model: Model, folder: Path, tolerance: float = 1e-4, reference: bool = True) -> str:
    """Check that both answer the same, and return how much XNNPACK runs."""
    target = Target.host().with_threads(1)
    answers = []
    said = ""
    for engine in (OnnxRuntime(), LiteRt()) if reference else (LiteRt(),):
        own = folder / type(engine).__name__
        own.mkdir()
        artifact = engine.build(model, target, own)
        with engine.open(artifact, target) as session:
            batches = (1,) if session.batch_sizes == (1,) else (1, 3)
            requests = [request_of(model, batch) for batch in batches]
            answers.append([session.run(request) for request in requests])
            said = session.properties().get("xnnpack", "")
    for expected, got in zip(*answers, strict=False):
        assert list(got) == list(expected)
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            assert got[name].shape == value.shape
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * scale)
    return said


@pytest.fixture(scope="session")
def compared() -> Compare:
    """Return a function that writes a graph into a folder and compares."""

    def check(
        folder: Path, text: str, opset: int = 20, reference: bool = True, **constants: Any
    ) -> str:
        model = write(folder / "model.onnx", text, opset, **constants)
        return compare(model, folder, reference=reference)

    return check


@pytest.fixture
def agree(compared: Compare, tmp_path: Path) -> Compare:
    """Return a function that writes a graph and compares, once in a test."""
    return partial(compared, tmp_path)
