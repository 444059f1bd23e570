"""Build classifiers from timm and torchvision, with any width and with fewer first strides."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hasten.errors import InputError
from hasten.lightening.architectures.catalogue import Architecture

_GENERATORS: Mapping[str, tuple[str, str, str]] = {
    "mobilenetv2_100": ("efficientnet", "_gen_mobilenet_v2", "channel_multiplier"),
    "mobilenetv3_small_100": ("mobilenetv3", "_gen_mobilenet_v3", "channel_multiplier"),
    "mobilenetv3_large_100": ("mobilenetv3", "_gen_mobilenet_v3", "channel_multiplier"),
    "mobilenetv4_conv_small": ("mobilenetv3", "_gen_mobilenet_v4", "channel_multiplier"),
    "mobilenetv4_conv_medium": ("mobilenetv3", "_gen_mobilenet_v4", "channel_multiplier"),
    "efficientnet_lite0": ("efficientnet", "_gen_efficientnet_lite", "channel_multiplier"),
    "efficientnet_b0": ("efficientnet", "_gen_efficientnet", "channel_multiplier"),
    "lcnet_100": ("mobilenetv3", "_gen_lcnet", "channel_multiplier"),
    "ghostnet_100": ("ghostnet", "_create_ghostnet", "width"),
}
"""timm's module, function and keyword that set any width; `create_model` only knows a few widths,
each by a name."""
_SHUFFLENET: Mapping[float, tuple[int, ...]] = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
"""Channels of each stage, by width. Source: Ma et al., arXiv:1807.11164, table 5."""


def classifier(
    architecture: Architecture, classes: int, channels: int, width: float, sides: tuple[int, int]
) -> nn.Module:
    """Build a network that returns logits `(n, classes)`.

    Args:
        architecture: Architecture for the task "classify".
        classes: Number of classes.
        channels: Number of the input's channels.
        width: Factor on the number of channels; one of the architecture's widths.
        sides: Height and width of the input, in pixels.
    """
    model = architecture.model
    taken: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if model in _GENERATORS:
        return _lessened(_generated(model, width, taken), architecture.stride)
    if model.startswith("resnet"):
        return _lessened(_resnet(model, width, taken), architecture.stride)
    if model.startswith("convnext"):
        return _convnext(model, width, architecture.stride, taken)
    if model.startswith("deit"):
        return _vit(width, architecture.stride, sides, taken)
    if model.startswith("shufflenet"):
        return _lessened(_shufflenet(width, classes, channels), architecture.stride)
    import timm

    return _lessened(timm.create_model(model, pretrained=False, **taken), architecture.stride)


def _generated(model: str, width: float, taken: Mapping[str, Any]) -> Any:
    module, function, keyword = _GENERATORS[model]
    try:
        generate = getattr(importlib.import_module(f"timm.models.{module}"), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"this version of timm can't build {model} in other widths ({error}): install timm 1.0"
        ) from error
    return generate(model, pretrained=False, **{keyword: width}, **taken)


def _resnet(model: str, width: float, taken: Mapping[str, Any]) -> Any:
    """Build a ResNet of basic blocks with the deep stem, whose channels follow the width too.

    Source: He et al., arXiv:1812.01187, section 4.
    """
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock
    return ResNet(
        block,
        (1, 1, 1, 1) if model == "resnet10t" else (2, 2, 2, 2),
        stem_width=_rounded(32 * width),
        stem_type="deep_tiered" if model == "resnet10t" else "deep",
        avg_down=True,
        channels=tuple(_rounded(one * width) for one in (64, 128, 256, 512)),
        **taken,
    )


def _convnext(model: str, width: float, stride: int, taken: Mapping[str, Any]) -> nn.Module:
    """Build a ConvNeXt-Atto, called Femto at 1.2 times its width. Only its stem loses strides.

    Source: Woo et al., arXiv:2301.00808, table 9.
    """
    from timm.models.convnext import ConvNeXt

    second = model.startswith("convnextv2")
    network = ConvNeXt(
        depths=(2, 2, 6, 2),
        dims=tuple(_rounded(one * width) for one in (40, 80, 160, 320)),
        conv_mlp=True,
        use_grn=second,
        ls_init_value=None if second else 1e-6,
        **taken,
    )
    first: Any = network.stem[0]
    if stride == 16:
        first.stride, first.padding = (2, 2), (1, 1)
    elif stride == 8:
        network.stem[0] = nn.Conv2d(first.in_channels, first.out_channels, 3, 1, 1)
    return network


def _vit(width: float, patch: int, sides: tuple[int, int], taken: Mapping[str, Any]) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    dim = round(192 * width / 48) * 48
    heads = max(3, dim // 64)
    return VisionTransformer(
        img_size=sides, patch_size=patch, embed_dim=dim, num_heads=heads, **taken
    )


def _shufflenet(width: float, classes: int, channels: int) -> Any:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    network = ShuffleNetV2([4, 8, 4], list(_SHUFFLENET[width]), num_classes=classes)
    if channels != 3:
        first = network.conv1[0]
        network.conv1[0] = nn.Conv2d(channels, first.out_channels, 3, 2, 1, bias=False)
    return network


def _lessened(network: Any, stride: int) -> nn.Module:
    """Leave out the first strides of 2 until the sides shrink by `stride` in all, at most 32 times.

    A network made for images of 224 pixels loses all detail of one of 32 pixels: its last feature
    map is a single position.
    """
    left = {32: 0, 16: 1, 8: 2}[stride]
    if left and isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
        network.maxpool = nn.Identity()
        left -= 1
    for unit in _units(network):
        if not left:
            break
        strided = [
            part for part in unit.modules() if isinstance(part, nn.Conv2d) and 2 in part.stride
        ]
        for convolution in strided:
            convolution.stride = (1, 1)
        left -= bool(strided)
    return network  # type: ignore[no-any-return]


def _units(network: Any) -> Iterator[nn.Module]:
    """Yield the stem and the blocks, from the input on; the branches of each have one stride."""
    for name in ("conv_stem", "stem", "conv1"):
        if hasattr(network, name):
            yield getattr(network, name)
    for name in ("blocks", "stages"):
        stages: Sequence[Any] = getattr(network, name, ())
        for stage in stages:
            yield from stage


def _rounded(channels: float) -> int:
    return max(8, round(channels / 8) * 8)
