"""Whole networks of the kinds that the compiled engine is for: taken, in bytes, with the same answers everywhere."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.integers import Integers

pytestmark = pytest.mark.slow

NETWORKS = ("mobilenet_v1", "mobilenet_v4", "mnasnet", "regnet", "yolov8_like", "unet_like")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    for name in ("torch", "timm", "nncf", "openvino"):
        pytest.importorskip(name)
    return importlib.import_module("byte_coverage")


def narrow(benchmark: Any, name: str) -> Any:
    """Return a network with few channels, seeded."""
    import torch

    torch.manual_seed(0)
    timm = partial(benchmark.timm_network, num_classes=10)
    match name:
        case "mobilenet_v1":
            return timm("mobilenetv1_100")
        case "mobilenet_v4":
            return timm("mobilenetv4_conv_small_035")
        case "mnasnet":
            return timm("mnasnet_small")
        case "regnet":
            return timm("regnetx_002")
        case "yolov8_like":
            return benchmark.YoloV8Like(wide=8).eval()
    return benchmark.UNetLike(transposed=False, wide=8).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_all_of_bytes_with_the_answers_of_other_vectors_or_of_integers(
    benchmark: Any, name: str, tmp_path: Path
) -> None:
    side = 64
    model = benchmark.quantized(narrow(benchmark, name), side, tmp_path / "model")
    found = benchmark.coverage(model, tmp_path / "plan")
    assert set(found.floats) <= {"map"}, found.words()  # outputs of pictures, that get their order
    assert found.narrow > 7
    noise = np.random.default_rng(1).standard_normal((1, 3, side, side)).astype(np.float32)
    target = Target.host()
    request = {found.artifact.inputs[0].name: noise}
    with (
        CompiledC().open(found.artifact, target) as session,
        Integers().open(found.artifact, replace(target, isa=())) as reference,
    ):
        answers, wanted = session.run(request), reference.run(request)
    for key, array in wanted.items():
        assert len(np.unique(array)) > 5
        np.testing.assert_array_equal(answers[key], array)
