"""What holds for every test: nothing is sent, nothing is written outside a temporary folder."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.core.telemetry import OFF
from hasten.testing import models

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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file that certifies 127.0.0.1 by itself; `key.pem` beside it is its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate
