from pathlib import Path

import pytest
from tests.support import chains

from hasten.inputs.pipeline.base import PostStep


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in chains.REGISTERED.items():
        monkeypatch.setitem(PostStep.registry._own, name, path)


@pytest.fixture
def det(tmp_path: Path) -> Path:
    return chains.detector(tmp_path)


@pytest.fixture
def colour(tmp_path: Path) -> Path:
    return chains.classifier(tmp_path)
