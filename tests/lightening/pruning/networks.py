"""Tiny networks of each kind, and costs that are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from hasten.lightening.pruning.costs import Costs, grid
from hasten.lightening.pruning.importance import Losses
from hasten.lightening.pruning.layers import Layer, LayerShape, Sample, call, layers


def conv(
    inputs: int, outputs: int, stride: int = 1, size: int = 3, groups: int = 1
) -> nn.Sequential:
    """A convolution with its normalization and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, inner), conv(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.second(self.first(x))
        return x + given


@torch.no_grad()
def silence(part: nn.Module) -> None:
    """Make what a part gives 0."""
    for parameter in part.parameters():
        parameter.zero_()


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(
            self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        )


class Head(nn.Module):
    """A classifier's end, flattened with its pixels or pooled."""

    def __init__(self, inputs: int, pooled: bool = True) -> None:
        super().__init__()
        self.pooled, self.linear = pooled, nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.linear(x.mean((2, 3)) if self.pooled else x.flatten(1))
        return given


class TwoHeaded(nn.Module):
    """Two scales, one of which reads the other's features again, as in YOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = conv(3, 32, 2), conv(32, 64, 2)
        self.side, self.coarse = conv(64, 32, size=1), nn.Conv2d(64, 15, 1)
        self.up, self.fine = nn.Upsample(scale_factor=2), nn.Conv2d(64, 15, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        early = self.early(x)
        late = self.late(early)
        fine = self.fine(torch.cat([self.up(self.side(late)), early], 1))
        return {"coarse": self.coarse(late), "fine": fine}


def plain() -> nn.Module:
    """Convolutions and a linear layer over all pixels."""
    return nn.Sequential(conv(3, 32), nn.MaxPool2d(2), conv(32, 64), Head(64 * 64, pooled=False))


def residual() -> nn.Module:
    """A stem and two residual blocks."""
    return nn.Sequential(conv(3, 32), Residual(32, 64), Residual(32, 64), Head(32))


def separable() -> nn.Module:
    """Depthwise-separable, with an inverted bottleneck."""
    return nn.Sequential(
        conv(3, 32), conv(32, 64, size=1), conv(64, 64, groups=64), conv(64, 32, size=1), Head(32)
    )


def excited() -> nn.Module:
    """With squeeze and excitation between."""
    return nn.Sequential(conv(3, 32), Excite(32), conv(32, 32), Head(32))


def transformer() -> nn.Module:
    """timm's VisionTransformer, two blocks of four heads."""
    import timm

    module: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=4,
        num_classes=10,
    )  # fmt: skip
    return module


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "separable": separable,
    "squeeze-excite": excited,
    "transformer": transformer,
    "two-headed": TwoHeaded,
}


def made(kind: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Make a network with some life in it, and a sample of two pictures of 16 (or 32) pixels."""
    torch.manual_seed(0)
    module = KINDS[kind]().eval()
    side = 32 if kind == "transformer" else 16
    return module, (torch.randn(2, 3, side, side),)


def by_products(shape: LayerShape) -> float:
    """A made-up time: so many nanoseconds for each 100 products, and 1000 more."""
    return 1000 + shape.macs / 100


def costs(
    module: nn.Module,
    sample: Sample,
    time_ns: Callable[[LayerShape], float] = by_products,
    snap: int = 8,
) -> Costs:
    """Costs that nothing was measured for."""
    found: list[Layer] = list(layers(module, sample))
    return Costs({layer.name: grid(layer.shape, time_ns) for layer in found}, snap)


def squares(sample: Sample) -> Losses:
    """A loss without labels that has a gradient: the mean square of all answers."""

    def losses(module: nn.Module) -> Iterable[torch.Tensor]:
        from hasten.lightening.pruning.layers import tensors

        yield torch.stack([one.square().mean() for one in tensors(call(module, sample))]).sum()

    return losses
