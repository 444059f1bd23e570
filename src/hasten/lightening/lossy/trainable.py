"""A network that can be trained, for a model file, and the way back into the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.dataset import Dataset
from hasten.lightening.training.captured_graph import captured
from hasten.lightening.training.network import Network
from hasten.passes.onnx_files import read_onnx, write_onnx
from hasten.passes.sensitivity import session_of
from hasten.passes.silence import first_line, silenced

_ROWS = 4
"""Number of samples by which a network and a file are compared."""
_NEAR = 1e-3
"""Largest difference of a network's answers to the file's, as a share of the largest magnitude."""
_ALIKE = 1e-4
"""Largest difference of a parameter to a tensor of the file, as a share of the largest magnitude."""


@dataclass(frozen=True)
class Link:
    """Parameter of a network that is a tensor of a model file.

    Attributes:
        parameter: Name in the network.
        tensor: Name in the file.
        turned: Whether the file holds the transposed matrix.
    """

    parameter: str
    tensor: str
    turned: bool = False


@dataclass(frozen=True)
class Trainable:
    """Network that answers like a model file, and whose parameters are the file's tensors.

    Parameters that can't be told in the file don't learn.

    Attributes:
        network: Network, whose module stays in eval mode.
        links: Parameters that learn.
        source: Model file.
    """

    network: Network
    links: tuple[Link, ...]
    source: Model

    def write(self, values: Mapping[str, torch.Tensor], folder: Path) -> Model:
        """Write the model file with other values.

        Args:
            values: Values of all parameters that learn, by name.
            folder: Existing folder.
        """
        proto = read_onnx(self.source)
        places = {tensor.name: tensor for tensor in proto.graph.initializer}
        for link in self.links:
            array = values[link.parameter].detach().cpu().numpy()
            array = np.ascontiguousarray(array.T if link.turned else array)
            old = places[link.tensor]
            old.CopyFrom(numpy_helper.from_array(array, old.name))
        return write_onnx(proto, self.source, folder / "model.onnx")


def trainable(source: Model, data: Dataset, live: torch.nn.Module | None) -> Trainable:
    """Return a network that answers like a model file.

    Args:
        source: Model file in ONNX, with its request settled.
        data: Samples to compare answers by.
        live: Network that the file was made from; None to make one from the file.

    Raises:
        InputError: no network can be made from the file, or it isn't the live one's.
    """
    names = tuple(spec.name for spec in source.inputs)
    outputs = tuple(spec.name for spec in source.outputs)
    open_batch = all(spec.shape and isinstance(spec.shape[0], str) for spec in source.inputs)
    rows = data.inputs([i % len(data) for i in range(_ROWS if open_batch else 1)])
    if live is None:
        module, what = _converted(source), "the network made from the file"
    else:
        module, what = _captured(live, [rows[name] for name in names]), "the network"
    network = Network(module, names, low_precision=False, outputs=outputs)
    check_alike(network, source, rows, what)
    links = _links(module, read_onnx(source))
    if not links:
        raise InputError(f"none of the parameters of {what} is a tensor of the model file")
    known = {link.parameter for link in links}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in known)
    if live is not None:
        module.to(next((p.device for p in live.parameters()), None))
    return Trainable(network, links, source)


def check_alike(network: Network, source: Model, rows: Mapping[str, Array], what: str) -> None:
    """Check that a network's answers are a model file's.

    Args:
        network: Network.
        source: Model file.
        rows: Inputs by name, each of shape (n, ...).
        what: Words for the network, for the message.

    Raises:
        InputError: the answers differ, or one of both can't answer.
    """
    names = [spec.name for spec in source.outputs]
    try:
        own = next(network.answers(iter([dict(rows)])))
        with silenced():
            found = session_of(read_onnx(source), source).run(names, dict(rows))
    except Exception as error:  # a network's own code, a library's, or the runtime's
        raise InputError(f"{what} can't be compared with the model: {first_line(error)}") from error
    for (name, one), other in zip(own.items(), found, strict=True):
        if one.shape != other.shape:
            raise InputError(f"{what} gives {name} {one.shape}, but the model gives {other.shape}")
        largest = float(np.abs(other).max(initial=0))
        off = float(np.abs(one.astype(np.float64) - other).max(initial=0))
        if not off <= _NEAR * largest:
            raise InputError(
                f"{what} isn't the bundle's exact model: its output {name!r} is off by {off:.3g} "
                f"(largest magnitude {largest:.3g})"
            )


def _converted(source: Model) -> torch.nn.Module:
    """Return a network made from a file.

    Raises:
        InputError: the library is missing, or can't take the model.
    """
    try:
        import onnx2pytorch
    except ImportError as error:
        raise missing_extra("lossy packing of a bundle", "torch") from error
    try:
        with silenced():
            module = onnx2pytorch.ConvertModel(read_onnx(source), experimental=True)
    except Exception as error:  # the library raises what its parts raise
        raise InputError(
            "no network to train can be made from the bundle's exact model "
            f"({first_line(error)}): give the torch network that the model was exported from, "
            "network=my.py:net"
        ) from error
    found: torch.nn.Module = module.eval()
    return found


def _captured(live: torch.nn.Module, batch: list[Array]) -> torch.nn.Module:
    try:
        return captured(live, [torch.from_numpy(array) for array in batch])
    except CandidateError as error:
        raise InputError(str(error)) from error


def _links(module: torch.nn.Module, proto: onnx.ModelProto) -> tuple[Link, ...]:
    """Return the parameters that equal exactly one tensor of a file, which equals no other."""
    tensors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims)
    }
    found: list[Link] = []
    for name, parameter in module.named_parameters():
        own = parameter.detach().cpu().numpy()
        alike = [Link(name, other) for other, array in tensors.items() if _equal(own, array)]
        if own.ndim == 2 and not alike:
            alike = [
                Link(name, other, turned=True)
                for other, array in tensors.items()
                if _equal(own.T, array)
            ]
        if len(alike) == 1:
            found += alike
    used = Counter(link.tensor for link in found)
    return tuple(link for link in found if used[link.tensor] == 1)


def _equal(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    return float(np.abs(one - other).max(initial=0)) <= _ALIKE * float(np.abs(other).max(initial=0))
