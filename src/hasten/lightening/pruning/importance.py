"""Estimate to first order how much answers would change without a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hasten.errors import InputError
from hasten.inputs.models.torch import evaluating
from hasten.lightening.pruning.layers import Sample, call, tensors
from hasten.lightening.pruning.structure import Group, Member

Losses: TypeAlias = Callable[[nn.Module], Iterable[torch.Tensor]]
"""Function that yields a module's loss on one batch after another, with equal batches each call."""


def importance(
    module: nn.Module, losses: Losses, groups: Sequence[Group]
) -> dict[str, npt.NDArray[np.float64]]:
    """Estimate to first order how much the loss would change without each channel of each group.

    Removing a channel removes the weights by which other layers read it: to first order the loss
    changes by the sum of these weights times their gradients, over all layers that read it. The
    square of that is averaged over the batches, so small batches tell more. Squares add up if
    channels (or blocks, see `blocks.hurts`) are independent of each other; absolute values would
    overrate many small ones together.

    Args:
        module: Module to rate, in eval mode meanwhile; its parameters aren't changed.
        losses: Losses to differentiate one by one. The distance of a network to itself doesn't
            work, since its gradient is 0; `sensitivity` needs no labels.
        groups: Groups of channels from `structure.groups`.

    Returns:
        One non-negative figure per channel, by the group's root.

    Raises:
        InputError: a loss has no gradient.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019,
    equation 8, over all that a group shares.
    """
    totals = {group.root: np.zeros(group.channels) for group in groups}
    before = [parameter.requires_grad for parameter in module.parameters()]
    count, moved = 0, False
    try:
        module.requires_grad_(True)
        with evaluating(module), torch.enable_grad():
            for loss in losses(module):
                if not loss.requires_grad:
                    raise InputError(
                        "the loss has no gradient: it doesn't depend on the model's answers"
                    )
                module.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                count += 1
                for group in groups:
                    totals[group.root] += _moved(module, group) ** 2
                moved = moved or any(totals[group.root].any() for group in groups)
    finally:
        module.zero_grad(set_to_none=True)
        for parameter, wanted in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(wanted)
    if groups and not moved:
        raise InputError(
            "the loss has a gradient of 0 everywhere, as the distance of a network to itself "
            "does: give a loss on labels, or pruning.importance.sensitivity(batches)"
        )
    return {root: total / max(count, 1) for root, total in totals.items()}


def _moved(module: nn.Module, group: Group) -> npt.NDArray[np.float64]:
    """Estimate the change of the last batch's loss without each channel."""
    moved = np.zeros(group.channels)
    for member in group.members:
        if member.axis != "inputs":
            continue
        weight = module.get_submodule(member.name).weight
        assert isinstance(weight, torch.Tensor)
        if weight.grad is None:
            continue
        product = (weight.detach() * weight.grad).transpose(0, 1).flatten(1).sum(1)
        moved += _by_channel(product.double().cpu().numpy(), member)
    return moved


def _by_channel(values: npt.NDArray[np.float64], member: Member) -> npt.NDArray[np.float64]:
    return np.array([values[list(indices)].sum() for indices in member.indices])


def sensitivity(
    batches: Sequence[Sample], answer: Callable[[nn.Module, Sample], object] = call
) -> Losses:
    """Return losses that need no labels and measure how far the answers themselves move.

    Each loss is the product of the module's answers with a random direction that is fixed per
    batch, relative to the norm of each output. The mean square of its change is the squared
    distance by which the answers move.

    Args:
        batches: Batches to answer.
        answer: Function that returns the answers that count, for example a detector's heads; by
            default all. Tensors that aren't floats, or have no gradient, don't count.

    Source: Hutchinson's estimator, Commun. Stat. Simul. Comput. 18:1059, 1989.
    """
    sizes: dict[tuple[int, int], float] = {}

    def losses(module: nn.Module) -> Iterable[torch.Tensor]:
        for number, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(number)
            total = torch.zeros(())
            for place, output in enumerate(tensors(answer(module, batch))):
                if not output.is_floating_point():
                    continue
                direction = torch.randn(output.shape, generator=generator).to(output.device)
                size = sizes.setdefault((number, place), max(float(output.detach().norm()), 1e-12))
                total = total + (output * direction).sum() / size
            yield total

    return losses


def mean_square_change(module: nn.Module, losses: Losses, before: Sequence[float]) -> float:
    """Return the mean squared change of a module's losses."""
    now = loss_values(module, losses)
    return float(np.mean([(one - other) ** 2 for one, other in zip(now, before, strict=True)]))


def loss_values(module: nn.Module, losses: Losses) -> list[float]:
    """Return the loss on each batch, in eval mode and without gradients."""
    with evaluating(module), torch.no_grad():
        return [float(loss) for loss in losses(module)]
