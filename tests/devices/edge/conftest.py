"""`make test-edge` runs this folder, in an environment of its own; elsewhere what lacks a library is skipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.devices.edge.edge_models import Digits
from tests.support.models import CONVNET, ELEMENTWISE, Build, built

from hasten.core.model import Model


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a function that writes ONNX text with random weights, loads it and settles it."""
    return partial(built, tmp_path / "source")


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
