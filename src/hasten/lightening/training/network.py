"""A live network as training sees it: tensors by input name in, tensors by output name out."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.torch import evaluating, flat_outputs
from hasten.inputs.models.torch_inputs import takes

Named: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """A module and what its inputs are called.

    Attributes:
        module: Gives a tensor, or tensors in tuples and mappings.
        inputs: The data's names, in the order in which the module takes them.
        low_precision: Whether it may compute in bfloat16 where the machine multiplies that faster.
        outputs: What the outputs are called, in order; by default as an export calls them.
    """

    module: torch.nn.Module
    inputs: tuple[str, ...]
    low_precision: bool = True
    outputs: tuple[str, ...] = ()

    def __call__(self, inputs: Named) -> dict[str, torch.Tensor]:
        """Answer a batch; outputs by name, in float32 where floats.

        Raises:
            InputError: it has another number of outputs than names.
        """
        tensors = [inputs[name] for name in self.inputs]
        with self._precision():
            if takes(self.module, self.inputs):
                answers = self.module(**dict(zip(self.inputs, tensors, strict=True)))
            else:
                answers = self.module(*tensors)
        found = flat_outputs(answers)
        names = self.outputs or tuple(found)
        if len(names) != len(found):
            raise InputError(
                f"a network gives {', '.join(found)} where {', '.join(names)} are asked for"
            )
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in zip(names, found.values(), strict=True)
        }

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        device = self.device.type
        lower = self.low_precision and multiplies_bfloat16(device)
        return torch.autocast(device, torch.bfloat16, enabled=lower)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def frozen(self) -> Network:
        """Return a copy that only answers: the module that a caller handed in stays as it is."""
        module = copy.deepcopy(self.module).eval().requires_grad_(False)
        return replace(self, module=module)

    def answers(self, batches: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Answer batches as they would be answered in use: in eval mode, in full precision."""
        exact = replace(self, low_precision=False)
        with evaluating(self.module), torch.no_grad():
            for batch in batches:
                found = exact(tensors(batch, self.device))
                yield {name: tensor.cpu().numpy() for name, tensor in found.items()}


def tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """Return arrays as tensors on a device, laid out as they are: a network may flatten by a view."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(bool(getattr(torch.cpu, k, lambda: False)()) for k in kinds)
