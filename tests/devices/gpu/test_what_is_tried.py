from pathlib import Path

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.engines.installed import tried_on
from hasten.inputs.models.onnx import load
from hasten.optimization.grid import grid, variations
from hasten.testing import models

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
)


def tried(target: Target, folder: Path) -> tuple[list[str], list[str]]:
    """Return the labels of what is tried first, and of what is tried where that isn't accurate enough."""
    model = load(models.small_cnn(folder)).settled_by({"x": np.zeros((3, 32, 32), np.float32)})
    first = grid(model, target, engine_names=tried_on("cuda"))
    return [c.label for c in first], [c.label for c in variations(first, model, target)]


def test_a_gpu_that_isnt_here_is_built_for_and_nothing_of_the_hosts_is_tried(
    sm80: Target, tmp_path: Path
) -> None:
    assert tried(sm80, tmp_path) == (
        [
            "original, TensorRT for RTX",
            "simplified, TensorRT for RTX",
            "int8 (TensorRT, rest in f16), TensorRT for RTX",
            "f16 weights, TensorRT for RTX",
        ],
        [
            "int8 (TensorRT, rounded by layer, rest in f16), TensorRT for RTX",
            "int8 (TensorRT, rest in f32), TensorRT for RTX",
        ],
    )


def test_turing_is_given_nothing_in_int8_beside_float32(tmp_path: Path) -> None:
    first, more = tried(find_target("cuda:sm75", root=tmp_path), tmp_path)
    assert "int8 (TensorRT, rest in f16), TensorRT for RTX" in first
    assert more == ["int8 (TensorRT, rounded by layer, rest in f16), TensorRT for RTX"]
