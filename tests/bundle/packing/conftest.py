from pathlib import Path

import numpy as np
import pytest
from tests.support import models, packed_files
from tests.support.bundles import built, stated

from hasten.bundle import write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """A bundle whose winner is OpenVINO's IR and whose exact model is ONNX, with the same weights."""
    model = models.depthwise_cnn(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    exact = built(tmp_path / "one", model, OnnxRuntime(threads=1))
    winner = built(tmp_path / "other", model, OpenVino(threads=1))
    path = tmp_path / "model.hasten"
    kept = [{"x": np.ones((1, 16, 16, 16), np.float32)}]
    write(path, stated(winner, exact), {"trials.json": [1, 2]}, {"report.html": b"<p>"}, kept)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Bytes of a packed file in which every codec is used."""
    return packed_files.write(tmp_path_factory.mktemp("packed") / "p.hastenz").read_bytes()
