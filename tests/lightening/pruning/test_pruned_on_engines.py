"""Prune, fine-tune one step, export, run: the whole way, without a clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lightening.pruning.networks import costs, made
from torch import nn

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.models.torch import export
from hasten.lightening.architectures import tiny_yolo
from hasten.lightening.architectures.darknet import Darknet
from hasten.lightening.pruning.channels import Prunable
from hasten.lightening.pruning.importance import sensitivity
from hasten.lightening.pruning.layers import answers, layers, tensors
from hasten.lightening.pruning.normalization import recalibrate

pytestmark = pytest.mark.seconds

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


class Heads(nn.Module):
    """A detector up to its heads, which can be learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Darknet(tiny_yolo.cfg("yolov3-tiny.cfg", 4, 3, 0.5, (64, 64)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head for _, head in self.network.heads(x)]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.5),
    "efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "resnet18": lambda: torchvision.models.resnet18(),
    "short mobilenet_v2": lambda: torchvision.models.MobileNetV2(
        width_mult=0.5,
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]],
    ),
    "short resnet": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [2, 1, 1, 1]
    ),
    "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2),
    "yolov3_tiny": Heads,
}
WHOLE = ("mobilenet_v2", "efficientnet_lite0", "resnet18")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in WHOLE else name for name in NETWORKS],
)
def test_a_pruned_and_tuned_network_answers_alike_on_the_engines(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, sample = NETWORKS[name]().eval(), (torch.randn(2, 3, 64, 64),)
    recalibrate(module, [sample])
    table = costs(module, sample)
    prunable = Prunable(module, sample, sensitivity([sample]))
    pruned = prunable.to(table, 0.7 * table.predicted_ns(layers(module, sample))).module
    recalibrate(pruned, [sample])
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-4)
    wanted = answers(module, sample)
    given = tensors(pruned.train()(*sample))
    loss = torch.stack([(g - w).square().mean() for g, w in zip(given, wanted, strict=True)]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    x = sample[0].numpy()
    model = export(pruned.eval(), {"x": x[0]}, tmp_path, ["x"]).settled_by({"x": x[0]})
    target, tuned = Target.host().with_threads(1), answers(pruned, (sample[0][:1],))
    engines: tuple[Engine, ...] = (OpenVino(precision="f32"), OnnxRuntime())
    for engine in engines:
        folder = tmp_path / type(engine).__name__
        folder.mkdir()
        with engine.open(engine.build(model, target, folder), target) as session:
            outputs = session.run({"x": x[:1]})
        for one, other in zip(outputs.values(), tuned, strict=True):
            off = np.linalg.norm(one - other.numpy()) / np.linalg.norm(other.numpy())
            assert off < 1e-3


def test_one_look_serves_several_targets() -> None:
    module, sample = made("residual")
    table = costs(module, sample)
    looks = 0
    inner = sensitivity([sample])

    def losses(part):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return inner(part)

    prunable = Prunable(module, sample, losses, blocks=False)
    before = looks
    now_ns = table.predicted_ns(layers(module, sample))
    some, fewer = (prunable.to(table, share * now_ns) for share in (0.8, 0.6))
    assert fewer.macs_after < some.macs_after < some.macs_before
    assert looks == before
