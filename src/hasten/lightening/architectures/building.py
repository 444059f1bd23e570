"""Build a network with random weights from an entry of the catalogue, or count its cost alone."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hasten.errors import InputError
from hasten.lightening.architectures.catalogue import Architecture

if TYPE_CHECKING:
    from torch import nn

_FILLING = (
    *(
        "normal_",
        "uniform_",
        "trunc_normal_",
        "erfinv_",
        "clamp_",
        "fill_",
        "zero_",
        "mul_",
        "add_",
    ),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
)
"""Operations that change nothing but a tensor's values."""


def build(
    architecture: Architecture,
    classes: int,
    input_shape: Sequence[int],
    width: float = 1.0,
    pixels: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network with random weights, in training mode.

    Args:
        architecture: Entry of the catalogue.
        classes: Number of classes.
        input_shape: Shape of one sample, `(channels, height, width)`.
        width: Factor on the number of channels; one of the architecture's widths.
        pixels: Longer side of the image after resizing, in pixels; the module takes
            `input_shape` and resizes it itself. None to keep the input's size.
        seed: Seed of the weights.

    Returns:
        Module that takes float32 `(n, *input_shape)` and returns logits `(n, classes)`; a detector
        returns boxes, scores and labels, see `detection.Detector`.

    Raises:
        InputError: torch or the library isn't installed, or an argument doesn't fit the
            architecture.
    """
    _check(architecture, classes, input_shape, width, pixels)
    _require(architecture)
    import torch

    from hasten.lightening.architectures.resizing import Resized, inner_size

    channels, *outer = (int(size) for size in input_shape)
    sides = (outer[0], outer[1])
    multiple = architecture.stride if _needs_multiples(architecture) else 1
    inner = inner_size(sides, pixels or max(sides), multiple)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(architecture, classes, channels, width, inner)
    return network if inner == sides else Resized(network, sides, inner)


def deployed(module: nn.Module) -> nn.Module:
    """Return a copy for export, in eval mode, with branches that only training needs merged.

    MobileOne has such branches: unmerged, it is several times slower than published. The answers
    are equal up to rounding. Networks without such branches are only copied.
    """
    return _merged(copy.deepcopy(module).eval())


def _merged(module: nn.Module) -> nn.Module:
    from timm.models import reparameterize_model

    return reparameterize_model(module, inplace=True)


def multiply_adds(
    architecture: Architecture,
    classes: int,
    input_shape: Sequence[int],
    width: float = 1.0,
    pixels: int | None = None,
) -> tuple[int, int]:
    """Count the multiply-adds of one request and the parameters, as deployed, without running it.

    Returns:
        Number of multiply-adds in convolutions and matrix products, and number of parameters.

    Raises:
        InputError: `build` can't build the network.
    """
    _require(architecture)
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils.flop_counter import FlopCounterMode

    class Unfilled(TorchFunctionMode):
        """Leaves tensors without values unfilled: drawing weights took a third of the time."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            given = kwargs or {}
            if getattr(func, "__name__", "") in _FILLING:
                return args[0] if args else given["tensor"]
            return func(*args, **given)

    with torch.device("meta"), Unfilled():
        module = build(architecture, classes, input_shape, width, pixels).eval()
        if architecture.model.startswith("mobileone"):
            module = _merged(module)
        _skip_elementwise(module)
        sample = torch.zeros(1, *input_shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(sample)
    return counter.get_total_flops() // 2, parameters(module)


def _skip_elementwise(module: nn.Module) -> None:
    """Let normalizations and activations return their input, which changes no shape.

    Without values torch takes each apart into a dozen operations: they were most of the time, and
    count for nothing.
    """
    from torch import nn

    skipped = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)
    for part in module.modules():
        if isinstance(part, (*skipped, nn.SiLU, nn.GELU)):
            part.forward = _unchanged  # type: ignore[assignment, method-assign]


def _unchanged(value: Any) -> Any:
    return value


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(tensor.numel() for tensor in module.parameters())


def _needs_multiples(architecture: Architecture) -> bool:
    """Return whether the image must be a whole number of patches, or of cells that decode boxes."""
    return architecture.task == "detect" or architecture.model.startswith("deit")


def _network(
    architecture: Architecture, classes: int, channels: int, width: float, sides: tuple[int, int]
) -> Any:
    if architecture.task == "detect":
        from hasten.lightening.architectures.detection import Detector

        if architecture.library == "darknet":
            from hasten.lightening.architectures.darknet import Darknet
            from hasten.lightening.architectures.tiny_yolo import cfg

            return Detector(Darknet(cfg(architecture.model, classes, channels, width, sides)))
        from hasten.lightening.architectures.ssdlite import SsdLite

        return Detector(SsdLite(classes, channels, width, sides))
    from hasten.lightening.architectures.classifiers import classifier

    return classifier(architecture, classes, channels, width, sides)


def _require(architecture: Architecture) -> None:
    for module in ("torch", "timm", "torchvision"):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"the architecture {architecture.name} needs the module {module}: "
                "pip install 'hasten[torch]'"
            )


def _check(
    architecture: Architecture,
    classes: int,
    input_shape: Sequence[int],
    width: float,
    pixels: int | None,
) -> None:
    name = architecture.name
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            "an input is channels x height x width, such as 3x64x64: got "
            f"{'x'.join(map(str, input_shape))}"
        )
    if classes < 1:
        raise InputError(f"{name} needs at least one class: got {classes}")
    if width not in architecture.widths:
        known = ", ".join(f"{one:g}" for one in architecture.widths)
        raise InputError(f"{name} comes in the widths {known}: got {width:g}")
    side = pixels or max(input_shape[1:])
    if side < architecture.least:
        raise InputError(
            f"{name} needs a longer side of at least {architecture.least} pixels: got {side}"
        )
