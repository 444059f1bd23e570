"""Whole networks of the kinds that the compiled engine is for: taken, in bytes, with the same answers everywhere."""

from __future__ import annotations

import importlib
from dataclasses import replace
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


def shallow(benchmark: Any, name: str) -> Any:
    """Return one of timm's networks without the blocks that repeat another of their stage.

    The export, which takes most of a test's time, takes as long as there are operators.
    """
    network = benchmark.timm_network(name, num_classes=10)
    blocks = getattr(network, "blocks", None)
    for stage in blocks or [network.s1, network.s2, network.s3, network.s4]:
        kinds = set()
        for block, module in [*stage.named_children()]:
            if repr(module) in kinds:
                delattr(stage, block)
            kinds.add(repr(module))
    return network


def narrow(benchmark: Any, name: str) -> Any:
    """Return a network with few channels and few blocks, seeded."""
    import torch

    torch.manual_seed(0)
    match name:
        case "mobilenet_v1":
            return shallow(benchmark, "mobilenetv1_100")
        case "mobilenet_v4":
            return shallow(benchmark, "mobilenetv4_conv_small_035")
        case "mnasnet":
            return shallow(benchmark, "mnasnet_small")
        case "regnet":
            return shallow(benchmark, "regnetx_002")
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
