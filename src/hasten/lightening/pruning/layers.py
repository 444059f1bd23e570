"""List the layers of a torch module that do its arithmetic, by running one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from hasten.errors import InputError
from hasten.inputs.models.torch import evaluating
from hasten.passes.silence import first_line

Sample: TypeAlias = tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]
"""Arguments of a module: tensors in order, or by the names of forward's parameters."""
Kind: TypeAlias = Literal["convolution", "depthwise", "linear", "attention"]


@dataclass(frozen=True)
class LayerShape:
    """Properties that decide how long a layer takes.

    Attributes:
        kind: Kind of layer; "attention" is the part between the projections: two products and a
            softmax.
        inputs: Number of input channels; for attention, the width of one head.
        outputs: Number of output channels; for attention, the number of heads.
        size: Height and width of the input; for "linear" and "attention", rows (tokens) and 1.
        kernel: Kernel size of a convolution.
        stride: Stride of a convolution.
        padding: Padding of a convolution.
        dilation: Dilation of a convolution.
        groups: Groups of a convolution; 1 for a depthwise one, whose groups are its `outputs`.
        batch: Number of samples (or windows) that are read at once.
        signed: Whether inputs are below 0 in the sample; integers then have a zero point, which
            doubles the time of some runtimes.
        pooling: Kernel, stride and padding of the max pooling after a convolution, whose time
            depends on the same channels; (0, 0, 0) for none.
    """

    kind: Kind
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    signed: bool = False
    pooling: tuple[int, int, int] = (0, 0, 0)

    def of(self, inputs: int, outputs: int) -> LayerShape:
        """Return this shape with other numbers of channels."""
        if self.kind == "depthwise":
            return replace(self, inputs=outputs, outputs=outputs)
        return replace(self, inputs=inputs, outputs=outputs)

    @property
    def area(self) -> int:
        """Number of values per output channel; 0 for attention, whose channels stay inside."""
        if self.kind == "attention":
            return 0
        if self.kind == "linear":
            return self.size[0]
        return self.given[0] * self.given[1] * self.batch

    @property
    def given(self) -> tuple[int, int]:
        """Height and width of a convolution's output."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def macs(self) -> int:
        """Number of multiply-adds."""
        rows = self.size[0] * self.batch
        if self.kind == "linear":
            return rows * self.inputs * self.outputs
        if self.kind == "attention":
            return 2 * rows * self.size[0] * self.inputs * self.outputs
        each = 1 if self.kind == "depthwise" else self.inputs // self.groups
        height, width = self.given
        kernel = self.kernel[0] * self.kernel[1]
        return self.batch * height * width * kernel * each * self.outputs


@dataclass(frozen=True)
class Layer:
    """One call of a layer.

    Attributes:
        name: Layer's path in the module.
        shape: Shape of the layer in this call.
    """

    name: str
    shape: LayerShape


def call(module: nn.Module, sample: Sample) -> Any:
    """Call a module with a sample."""
    return module(**sample) if isinstance(sample, Mapping) else module(*sample)


def tensors(outputs: Any) -> list[torch.Tensor]:
    """Return every tensor in a module's nested outputs, in order."""
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def answers(module: nn.Module, sample: Sample) -> list[torch.Tensor]:
    """Return a module's answers in eval mode, without gradients.

    Raises:
        InputError: the module can't run the sample.
    """
    with evaluating(module), torch.no_grad():
        try:
            return tensors(call(module, sample))
        except Exception as error:  # the user's own code runs here
            raise InputError(f"the model can't run the sample: {first_line(error)}") from error


def is_attention(module: nn.Module) -> bool:
    """Return whether a module is timm's attention, with one projection for q, k and v."""
    parts = ("qkv", "proj", "num_heads", "head_dim", "attn_dim")
    return all(hasattr(module, part) for part in parts) and isinstance(module.qkv, nn.Linear)


def layers(module: nn.Module, sample: Sample) -> tuple[Layer, ...]:
    """Return a module's convolutions, linear layers and attentions, in the order of their calls.

    Raises:
        InputError: the module can't run the sample.
    """
    found: list[Layer] = []
    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) or is_attention(part):
            hooks.append(part.register_forward_pre_hook(_noting(name, found), with_kwargs=True))
        elif isinstance(part, nn.MaxPool2d):
            hooks.append(part.register_forward_pre_hook(_pooling(found)))
    try:
        answers(module, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def _noting(name: str, found: list[Layer]) -> Callable[..., None]:
    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())[0]
        shape = shape_of(part, tuple(given.shape))
        found.append(Layer(name, replace(shape, signed=bool((given < 0).any()))))

    return note


def _pooling(found: list[Layer]) -> Callable[..., None]:
    """Return a hook that records a pooling if its input has the last convolution's output shape."""

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        numbers = [_one(getattr(part, name)) for name in ("kernel_size", "stride", "padding")]
        if not found or None in numbers:
            return
        last = found[-1].shape
        spatial = last.kind in ("convolution", "depthwise") and last.pooling == (0, 0, 0)
        if spatial and tuple(args[0].shape[1:]) == (last.outputs, *last.given):
            kernel, stride, padding = (int(n or 0) for n in numbers)
            pooled = replace(last, pooling=(kernel, stride, padding))
            found[-1] = Layer(found[-1].name, pooled)

    return note


def _one(setting: int | tuple[int, ...]) -> int | None:
    """Return a setting that is equal for height and width; None if it differs."""
    if isinstance(setting, int):
        return setting
    return setting[0] if len(set(setting)) == 1 else None


def shape_of(part: nn.Module, given: tuple[int, ...]) -> LayerShape:
    """Return the layer shape of a module that reads a tensor of the given shape."""
    if isinstance(part, nn.Conv2d):
        padding = part.padding
        if isinstance(padding, str):
            same = [d * (k - 1) // 2 for k, d in zip(part.kernel_size, part.dilation, strict=True)]
            padding = tuple(same) if padding == "same" else (0, 0)
        depthwise = part.groups > 1 and part.groups == part.in_channels == part.out_channels
        return LayerShape(
            "depthwise" if depthwise else "convolution",
            part.in_channels,
            part.out_channels,
            (given[2], given[3]),
            kernel=_pair(part.kernel_size),
            stride=_pair(part.stride),
            padding=_pair(padding),
            dilation=_pair(part.dilation),
            groups=1 if depthwise else part.groups,
            batch=given[0],
        )
    if isinstance(part, nn.Linear):
        rows = 1
        for n in given[:-1]:
            rows *= n
        return LayerShape("linear", part.in_features, part.out_features, (rows, 1))
    head, heads = int(part.head_dim), int(part.num_heads)  # type: ignore[arg-type]
    return LayerShape("attention", head, heads, (given[-2], 1), batch=given[0])


def _pair(pair: tuple[int, ...]) -> tuple[int, int]:
    return pair[0], pair[1]
