"""Find blocks that can be removed as a whole: those whose output has the shape of their input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hasten.errors import InputError
from hasten.lightening.pruning.importance import Losses, loss_values, mean_square_change
from hasten.lightening.pruning.layers import Sample, answers
from hasten.lightening.pruning.skip import Skip


def candidates(module: nn.Module, sample: Sample) -> tuple[str, ...]:
    """Return the paths of blocks that can be skipped, in the order of their calls.

    A block is a submodule with convolutions or linear layers inside that is called once, with one
    tensor, and returns one of the same shape; the module must still run without it. Blocks inside
    a block count too.

    Raises:
        InputError: the module can't run the sample.
    """
    calls: dict[str, list[bool]] = {}
    hooks = [
        part.register_forward_hook(_noting(name, calls), with_kwargs=True)
        for name, part in module.named_modules()
        if name and _is_block(part)
    ]
    try:
        answers(module, sample)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, fits in calls.items():
        if fits == [True]:
            with skipping(module, name):
                try:
                    answers(module, sample)
                except InputError:
                    continue  # other code reads attributes that only the block has
            found.append(name)
    return tuple(found)


def hurts(module: nn.Module, losses: Losses, blocks: tuple[str, ...]) -> dict[str, float]:
    """Return the mean squared change of the loss over the batches when each block alone is skipped.

    The unit is that of `importance.importance`, so that blocks and channels can be compared.
    """
    if not blocks:
        return {}
    before = loss_values(module, losses)
    found = {}
    for name in blocks:
        with skipping(module, name):
            found[name] = mean_square_change(module, losses, before)
    return found


@contextmanager
def skipping(module: nn.Module, name: str) -> Iterator[None]:
    """Replace a block by a `Skip`, and put the block back at the end."""
    block = module.get_submodule(name)
    module.set_submodule(name, Skip())
    try:
        yield
    finally:
        module.set_submodule(name, block)


def _is_block(part: nn.Module) -> bool:
    inside = list(part.modules())[1:]
    return any(isinstance(one, nn.Conv2d | nn.Linear) for one in inside)


def _noting(name: str, calls: dict[str, list[bool]]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        one = len(given) == 1 and isinstance(answer, torch.Tensor)
        same = one and given[0].shape == answer.shape and given[0].dtype == answer.dtype
        calls.setdefault(name, []).append(same)

    return note
