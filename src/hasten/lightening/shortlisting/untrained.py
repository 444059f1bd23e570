"""Write an option as an ONNX file with random weights, which are as fast as trained ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.errors import CandidateError
from hasten.inputs.models import onnx
from hasten.lightening.architectures.building import build, deployed, multiply_adds, parameters
from hasten.lightening.shortlisting.options import Option
from hasten.passes.silence import first_line

_OPSET = 18
_BATCH = 2


@dataclass(frozen=True)
class Untrained:
    """Option as a file, before it is measured.

    Attributes:
        model: Model with its request settled.
        madds: Counted multiply-adds of one request.
        parameters: Number of parameters.
    """

    model: Model
    madds: int
    parameters: int


def written(option: Option, classes: int, input_shape: Sequence[int], folder: Path) -> Untrained:
    """Build an option and write it with torch's old exporter, in a tenth of the new one's time.

    Networks that ship are written by the new exporter. The normalizations take their statistics
    from random inputs, so that activations have the usual size, as after training.

    Args:
        option: Option to build.
        classes: Number of classes.
        input_shape: Channels, height and width of one sample.
        folder: Existing folder for the file.

    Raises:
        CandidateError: the option can't be built or exported.
        InputError: torch isn't installed.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("building architectures", "torch") from error

    knobs: tuple[Any, ...] = (
        option.architecture,
        classes,
        input_shape,
        option.width,
        option.pixels,
    )
    path = folder / "untrained.onnx"
    try:
        with warnings.catch_warnings(), _one_thread():
            warnings.simplefilter("ignore")  # the old exporter warns that it is deprecated
            module = build(*knobs)
            madds = _settle(module, input_shape)
            ready = deployed(module)
            if parameters(ready) < parameters(module):  # branches were merged
                madds, _ = multiply_adds(*knobs)
            torch.onnx.export(
                ready,
                (torch.zeros(1, *input_shape),),
                str(path),
                dynamo=False,
                input_names=["x"],
                opset_version=_OPSET,
            )
    except Exception as error:  # timm and the exporter raise what their parts raise
        raise CandidateError(f"{option.name} can't be exported: {first_line(error)}") from error
    model = onnx.load(path).settled_by({"x": np.zeros(tuple(input_shape), np.float32)})
    return Untrained(model, madds, parameters(ready))


def _settle(module: Any, input_shape: Sequence[int]) -> int:
    """Set the statistics of all normalizations by one batch of random inputs.

    Returns:
        Multiply-adds of one input, as `multiply_adds` counts them.
    """
    import torch
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    # Plain products, since the counter doesn't know the processor's fused attention.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        module.train()(torch.randn(_BATCH, *input_shape))
    return int(counter.get_total_flops()) // 2 // _BATCH


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: for so little work, threads cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
