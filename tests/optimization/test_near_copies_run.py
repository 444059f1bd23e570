"""Whole runs whose training data, or whose search, holds near copies of what judges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.reporting.result import Result
from hasten.testing import models


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


def samples(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((300, 16), dtype=np.float32)


def test_noisy_copies_are_refused_or_stand_in_the_certificate(tmp_path: Path) -> None:
    data = samples(0)
    data[1:30:2] = data[0:30:2] + np.float32(1e-3)  # pairs, some of which the split divides
    training = np.concatenate([samples(1), data[100:160] + np.float32(1e-3)])
    model = models.linear_classifier(tmp_path)

    def run(**options: Any) -> Result:
        return hasten.optimize(
            model,
            data,
            training=training,
            out=tmp_path / "b.hasten",
            engines=("tests.support.rivals:Rival",),
            max_drop=0.05,
            metric="agreement",
            **options,
        )

    with pytest.raises(InputError, match=r"^60 of 300 samples to judge on \(20%\) are near copies"):
        run()
    assert not (tmp_path / "b.hasten").exists()
    result = run(allow_near_copies=True)
    assert result.status == "certified"
    certificate = read(result.bundle).certificate
    assert certificate is not None
    assert certificate["words"].endswith(
        "; 20% of the samples to judge on look like near copies of training samples, which was "
        "allowed: the certificate holds for new data only if they aren't copies"
    )
    assert any("which was allowed" in note for note in result.notes)
    (across,) = (note for note in result.notes if "give groups" in note)
    assert "look like near copies of samples in the search split, such as sealed" in across
