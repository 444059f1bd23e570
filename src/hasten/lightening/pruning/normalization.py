"""Reset batch normalization after pruning, whose statistics are those of the original network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hasten.errors import InputError
from hasten.lightening.pruning.layers import Sample, call


def recalibrate(module: nn.Module, batches: Iterable[Sample]) -> None:
    """Recompute the running means and variances in place, as averages over the batches.

    All other parts are in eval mode meanwhile; afterwards each part has its former mode.

    Args:
        module: Module to change; without batch normalization it stays as it is.
        batches: Batches of several samples each; no gradients are computed.

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
        raise InputError("statistics are computed from batches: got none")
