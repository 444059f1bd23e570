"""`make test-edge` runs this folder, in an environment of its own; elsewhere what lacks a library is skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.devices.edge.edge_models import CONVNET, ELEMENTWISE, Build, Digits, settled

from hasten.core.model import Model
from hasten.inputs.models.onnx import load

pytest.register_assert_rewrite("hasten.testing.engine_tests", "hasten.testing.pass_tests")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a function that writes ONNX text with random weights, loads it and settles it."""

    def write(text: str, name: str = "model") -> Model:
        proto = onnx.parser.parse_model(text)
        random = np.random.default_rng(3)
        given = {value.name for value in proto.graph.initializer}
        given |= {name for node in proto.graph.node for name in node.output}
        for value in proto.graph.value_info:
            if value.name not in given:
                shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                fan = max(1, int(np.prod(shape[1:])) if len(shape) == 4 else shape[0])
                weight = (random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
                proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
        del proto.graph.value_info[:]
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        onnx.save(proto, str(folder / f"{name}.onnx"))
        return settled(load(folder / f"{name}.onnx"))

    return write


@pytest.fixture
def convnet(build: Build) -> Model:
    """Two convolutions (one depthwise), a residual addition, a classifier."""
    return build(CONVNET, "convnet")


@pytest.fixture
def elementwise(build: Build) -> Model:
    """Nothing to quantize."""
    return build(ELEMENTWISE, "elementwise")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The network and the digits, made once."""
    return Digits(tmp_path_factory.mktemp("digits"))
