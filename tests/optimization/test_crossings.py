"""The model and the data go down through the rooms of the house, from one to the next below."""

from pathlib import Path

import numpy as np
import pytest
from scripts.crossings import follow
from tests.support.quick import quick_runs

import hasten
from hasten.testing import models

pytestmark = pytest.mark.slow


def test_a_run_hands_the_model_and_the_data_to_no_room_above(tmp_path: Path) -> None:
    model, data = str(models.linear_classifier(tmp_path)), str(tmp_path / "eval.npz")
    np.savez(data, x=np.random.default_rng(0).standard_normal((600, 16), dtype=np.float32))

    def run() -> None:
        hasten.optimize(model, data, out=tmp_path / "b.hasten")

    with quick_runs(passes=True):
        found = follow(run, (model, data))
    called = {one.called.partition("/")[0] for one in found.crossings}
    assert called == {"inputs", "passes", "measure"}
    assert found.up == []
    # A busy host makes a further race worthwhile, which makes a race's moves again.
    moves = sorted({(one.caller, one.called) for one in found.crossings})
    assert len(moves) <= 14, moves
