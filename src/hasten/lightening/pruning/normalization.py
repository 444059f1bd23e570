"""Batch normalization after pruning: its statistics are those of the network as it was."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hasten.errors import InputError
from hasten.lightening.pruning.layers import Sample, call


def recalibrate(module: nn.Module, batches: Iterable[Sample]) -> None:
    """Set the running means and variances anew, in place: averages over the batches.

    Everything else is in eval mode meanwhile, and all is put back in the mode that it had.

    Args:
        module: One without batch normalization stays as it is.
        batches: Of several samples each; the weights see no gradient.

    Raises:
        InputError: there are no batches.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]
    if not norms:
        return
    modes = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    count = 0
    try:
        module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
        with torch.no_grad():
            for batch in batches:
                call(module, batch)
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes:
            part.training = mode
    if count == 0:
        raise InputError("statistics are set from batches; got none")
