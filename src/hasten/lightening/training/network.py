"""Call a live network with tensors by input name, and get tensors by output name."""

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
    """Module with the names of its inputs and outputs.

    Attributes:
        module: Module that returns a tensor, or tensors in tuples and mappings.
        inputs: Names of the inputs in the data, in the order of the module's arguments.
        low_precision: Whether to compute in bfloat16 if the machine multiplies that faster.
        outputs: Names of the outputs, in order; by default those that an export gives them.
    """

    module: torch.nn.Module
    inputs: tuple[str, ...]
    low_precision: bool = True
    outputs: tuple[str, ...] = ()

    def __call__(self, inputs: Named) -> dict[str, torch.Tensor]:
        """Answer a batch; return outputs by name, with floats converted to float32.

        Raises:
            InputError: the numbers of outputs and of names differ.
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
                f"the network returns the outputs {', '.join(found)}; expected {', '.join(names)}"
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
        """Device of the parameters."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def frozen(self) -> Network:
        """Return a copy in eval mode without gradients; the original module isn't changed."""
        module = copy.deepcopy(self.module).eval().requires_grad_(False)
        return replace(self, module=module)

    def answers(self, batches: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Answer batches as in deployment: in eval mode, in full precision."""
        exact = replace(self, low_precision=False)
        with evaluating(self.module), torch.no_grad():
            for batch in batches:
                found = exact(tensors(batch, self.device))
                yield {name: tensor.cpu().numpy() for name, tensor in found.items()}


def tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """Return arrays as tensors on a device in their own layout, since a network may use `view`."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(bool(getattr(torch.cpu, k, lambda: False)()) for k in kinds)
