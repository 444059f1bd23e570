"""A bundle against what there is today."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.testing import models
from hasten.testing.quick import quick_runs


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def test_the_rival_is_the_exact_model_by_default(exact_bundle: Path) -> None:
    result = hasten.bench(exact_bundle, rounds=4)
    assert result.requests == "random numbers"
    assert (result.against.label, result.bundle.label) == ("onnxruntime", "onnxruntime")
    assert 0.5 < result.speedup < 2
    assert result.threads == 1


def test_the_rival_may_be_an_onnx_file(exact_bundle: Path, tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    x = np.ones((5, 16), np.float32)
    result = hasten.bench(exact_bundle, against=model, data=x, rounds=4)
    assert result.requests == "samples of the data"
    assert result.against.label == f"{model}, onnxruntime"
    assert result.against.size_bytes == model.stat().st_size


def test_the_rival_may_be_a_function_and_a_slow_one_is_slower(
    exact_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\ndef predict(x):\n    time.sleep(0.002)\n    return x[:, :4]\n"
    )
    result = hasten.bench(exact_bundle, against=f"{tmp_path}/mine.py:predict", rounds=4)
    assert result.speedup > 3


def test_a_function_that_fails_is_one_line(exact_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def predict(x):\n    raise KeyError('scaler')\n")
    with pytest.raises(hasten.InputError) as caught:
        hasten.bench(exact_bundle, against=f"{tmp_path}/mine.py:predict", rounds=4)
    assert str(caught.value).startswith("the baseline failed: ")
    assert "scaler" in str(caught.value)
