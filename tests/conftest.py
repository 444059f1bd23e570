"""What holds for every test: nothing is sent, nothing is written outside a temporary folder."""

import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import hasten
from hasten.telemetry import OFF
from hasten.testing import models
from hasten.testing.quick import quick_runs

os.environ.update(OFF)
sys.dont_write_bytecode = True  # a user's module is read where it lies, and nothing is left there
_FONTS = tempfile.TemporaryDirectory(prefix="hasten-fonts-")
os.environ["MPLCONFIGDIR"] = (
    _FONTS.name
)  # else matplotlib lists this machine's fonts in the home folder
hypothesis.settings.register_profile("suite", database=None, deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def exact_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the linear classifier on ONNX Runtime; don't change it, copy it."""
    folder = tmp_path_factory.mktemp("exact")
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(folder / "eval.npz", x=x)
    with quick_runs():
        hasten.optimize(
            models.linear_classifier(folder),
            folder / "eval.npz",
            max_drop=0.05,
            out=folder / "model.hasten",
            engines=("onnxruntime",),
        )
    return folder / "model.hasten"
