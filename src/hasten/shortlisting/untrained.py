"""An option as an ONNX file: with fresh weights, which are as slow as trained ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.architectures.building import build, deployed, multiply_adds
from hasten.errors import CandidateError
from hasten.frontends import onnx
from hasten.frontends.extras import missing_extra
from hasten.model import Model
from hasten.passes.silence import first_line
from hasten.shortlisting.options import Option

_OPSET = 18
_BATCH = 2


@dataclass(frozen=True)
class Untrained:
    """What is known of an option before it is measured.

    Attributes:
        model: With its request settled.
        madds: Multiply-adds of one request, counted.
        parameters: How many.
    """

    model: Model
    madds: int
    parameters: int


def written(option: Option, classes: int, input_shape: Sequence[int], folder: Path) -> Untrained:
    """Build an option and write it, by torch's old exporter: it takes a tenth of the new one's time.

    What ships is written by the new one. The normalizations take the statistics of random inputs, so
    that activations are of the usual size, as after training.

    Args:
        option: What to build.
        classes: How many it tells apart.
        input_shape: Channels, height and width.
        folder: Exists.

    Raises:
        CandidateError: it can't be built or exported.
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old exporter tells of its age
            module = build(*knobs)
            _settle(module, input_shape)
            torch.onnx.export(
                deployed(module),
                (torch.zeros(1, *input_shape),),
                str(path),
                dynamo=False,
                input_names=["x"],
                opset_version=_OPSET,
            )
            madds, parameters = multiply_adds(*knobs)
    except Exception as error:  # timm and the exporter raise what their parts raise
        raise CandidateError(f"{option.name} can't be exported: {first_line(error)}") from error
    model = onnx.load(path).settled_by({"x": np.zeros(tuple(input_shape), np.float32)})
    return Untrained(model, madds, parameters)


def _settle(module: Any, input_shape: Sequence[int]) -> None:
    """Set the statistics of all normalizations by one batch of random inputs."""
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    try:
        torch.set_num_threads(1)  # several wait for each other longer than this takes
        with torch.no_grad():
            module.train()(torch.randn(_BATCH, *input_shape))
    finally:
        torch.set_num_threads(threads)
