from pathlib import Path

import pytest
from tests.support.bundles import built, stated

from hasten.bundle import Part, write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.testing import models


@pytest.fixture
def winner(tmp_path: Path) -> Part:
    return built(tmp_path, models.linear_classifier(tmp_path), OnnxRuntime(threads=1))


@pytest.fixture
def bundle(tmp_path: Path, winner: Part) -> Path:
    path = tmp_path / "model.hasten"
    write(path, stated(winner, winner), {"trials.json": [1, 2]}, {"report.html": b"<p>"})
    return path
