"""What TensorRT's engine says without the library: it is on no registry here, and needs a GPU to build."""

import sys
from pathlib import Path

import pytest

from hasten.core.target import Target
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models


def test_a_library_that_isnt_installed_is_said_with_what_to_take_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError,
        match=r"^TensorRT isn't installed \(.+\): use version 10 or newer: "
        r"pip install tensorrt-cu13, which downloads it from NVIDIA's own index; on a Jetson, JetPack contains it$",
    ):
        Tensorrt.version()


def test_it_builds_for_no_gpu_that_isnt_here(
    sm80: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensorrt, "toolkit", classmethod(lambda cls: None))
    model = load(models.linear_classifier(tmp_path))
    with pytest.raises(
        CandidateError,
        match=r"^TensorRT builds only on the GPU that it builds for, and cuda:sm80 isn't available: "
        r"TensorRT for RTX builds without the GPU$",
    ):
        Tensorrt().build(model, sm80, tmp_path)
    assert list(Tensorrt.variants(sm80)) == []
    assert list(Tensorrt.variants(Target.host())) == []
