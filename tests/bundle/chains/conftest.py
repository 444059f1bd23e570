from pathlib import Path

import pytest
from tests.support import chains


@pytest.fixture
def det(tmp_path: Path) -> Path:
    return chains.detector(tmp_path)


@pytest.fixture
def colour(tmp_path: Path) -> Path:
    return chains.classifier(tmp_path)
