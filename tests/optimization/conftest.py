from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk

from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import Spool, write_spool


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """20 samples for the linear classifier, with labels."""
    x = np.random.default_rng(0).standard_normal((20, 16), dtype=np.float32)
    return write_spool(ArrayDataset({"x": x}, np.arange(20) % 4), tmp_path / "spool")
