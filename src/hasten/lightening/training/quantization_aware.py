"""Train a network that rounds as its int8 file will, so that it learns to tolerate int8.

Rounding takes place where `StaticQuantization` puts it: the file that the pass makes of the float
network says which tensors are rounded, and with which initial ranges. After training the pass makes
the final file too, with the learned weights and ranges, so that it runs as fast as any of the pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from hasten.core.model import Model
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.models import torch as frontend
from hasten.lightening.training.captured_graph import Captured, captured
from hasten.lightening.training.network import Network
from hasten.lightening.training.quantized_file import (
    Int8Range,
    Weights,
    ranges,
    weights,
    with_ranges,
)
from hasten.lightening.training.rounding import (
    Placement,
    PreparedNetwork,
    RoundedTensors,
    RoundedWeights,
)
from hasten.passes.base import Skipped
from hasten.passes.onnx_files import read_onnx
from hasten.passes.sensitivity import session_of, with_outputs
from hasten.passes.silence import first_line, silenced
from hasten.passes.static_quantization import StaticQuantization

_NEAR = 1e-3
"""Largest difference between torch and ONNX Runtime, as a share of a tensor's largest magnitude."""
_FAR = 0.1
"""Largest RMS error of a file against its network, as a share of an output's largest magnitude."""
_ROWS = 4
"""Number of samples whose values identify the tensors of a file."""
_WIDE, _NARROW = 127, 64
"""Largest integers of weights with 8 and with 7 bits in ONNX Runtime's quantizer."""


def prepare(
    network: Network,
    calibration: Dataset,
    quantization: StaticQuantization = StaticQuantization(),  # noqa: B008 - a value, frozen
) -> Network:
    """Return a copy of a network that rounds in the same places as its int8 file.

    Args:
        network: Network in float; it isn't changed.
        calibration: Samples that set the initial ranges; never those that judge.
        quantization: Pass that sets the places and widths of rounding; with the default, runtimes
            on x86-64 are fastest. Its `rounding` is ignored: weights are rounded to nearest.

    Returns:
        Network whose module is a `PreparedNetwork`, to be trained with a low learning rate.

    Raises:
        CandidateError: torch can't capture the network with a variable batch size, the network
            can't be exported or quantized, or nothing that the file rounds is found in it.
    """
    quantization = replace(quantization, rounding="nearest")
    rows = calibration.inputs([i % len(calibration) for i in range(_ROWS)])
    graph = _captured(network, rows)
    with tempfile.TemporaryDirectory() as name:
        exact, quantized = _files(
            graph, network.inputs, rows, calibration, quantization, Path(name)
        )
        placement = _placement(
            graph.operations, network.inputs, rows, exact, quantized, quantization
        )
    if not placement.weights or not any(one.nodes for one in placement.tensors):
        raise CandidateError("the network contains nothing that the quantized file rounds")
    return Network(PreparedNetwork(graph, placement), network.inputs, low_precision=False)


def export(network: Network, sample: Tensors, workdir: Path) -> Model:
    """Write a prepared network as an ONNX file with explicit QDQ.

    Args:
        network: Network from `prepare`, trained or not.
        sample: One sample by input name, without a batch axis, whose answers are checked.
        workdir: Existing, empty folder.

    Returns:
        Model file, with its request settled.

    Raises:
        CandidateError: the network can't be exported, or the file's answers differ from the
            network's.
    """
    prepared = network.module
    if not isinstance(prepared, PreparedNetwork):
        raise CandidateError("only a network from prepare() can be exported in int8")
    rows = {name: np.asarray(sample[name])[None] for name in network.inputs}
    exact, quantized = _files(
        prepared.exact(),
        network.inputs,
        rows,
        ArrayDataset(rows),
        prepared.placement.quantization,
        workdir,
    )
    made = with_ranges(quantized, exact, list(prepared.ranges()))
    _check(network, made, rows)
    for file in (exact.path, *exact.files):
        file.unlink()
    return made


def _captured(network: Network, rows: Tensors) -> Captured:
    batch = [torch.from_numpy(rows[name]) for name in network.inputs]
    return captured(network.module, batch)


def _files(
    whole: Captured,
    inputs: Sequence[str],
    rows: Tensors,
    calibration: Dataset,
    quantization: StaticQuantization,
    workdir: Path,
) -> tuple[Model, Model]:
    """Write a graph as a float file and as the int8 file that the pass makes of that."""
    sample = {name: rows[name][0] for name in inputs}
    try:
        exact = frontend.export(whole, sample, workdir, inputs)
        exact = exact.settled_by(sample)
    except InputError as error:
        raise CandidateError(f"the network can't be trained for int8: {error}") from error
    folder = workdir / "int8"
    folder.mkdir()
    try:
        return exact, quantization(exact, calibration, folder)
    except Skipped as error:
        raise CandidateError(f"the network can't be trained for int8: {error}") from error


def _placement(
    graph: fx.GraphModule,
    inputs: Sequence[str],
    rows: Tensors,
    exact: Model,
    quantized: Model,
    quantization: StaticQuantization,
) -> Placement:
    """Find the graph's counterparts, by value, of tensors and constants that the file rounds."""
    wanted = ranges(quantized, exact)
    names = [name for one in wanted for name in one.tensors]
    values = _values(exact, names, rows)
    found = _same_tensors(graph, [rows[name] for name in inputs], values)
    tensors = tuple(
        RoundedTensors(one, tuple(found[name] for name in one.tensors if name in found))
        for one in _revived(wanted, values)
    )
    constants = weights(quantized, exact)
    parameters, matched = _same_parameters(graph, constants, quantization)
    missed = [name for name in names if name not in found]
    missed += [one.name for one in constants if one.name not in matched]
    return Placement(quantization, tensors, parameters, tuple(missed))


def _same_parameters(
    graph: fx.GraphModule, constants: Sequence[Weights], quantization: StaticQuantization
) -> tuple[tuple[RoundedWeights, ...], set[str]]:
    """Return the parameters equal to a file's constants, transposed or not, and those constants."""
    highest = _NARROW if quantization.reduce_range else _WIDE
    parameters = {name: p.detach().numpy() for name, p in graph.named_parameters()}
    rounded, matched = {}, set()
    for one in constants:
        for name, own in parameters.items():
            if np.array_equal(own, one.values):
                axis = one.axis
            elif own.ndim == 2 and np.array_equal(own.T, one.values):
                axis = None if one.axis is None else 1 - one.axis
            else:
                continue
            rounded[name] = RoundedWeights(name, axis, highest)
            matched.add(one.name)
    return tuple(rounded.values()), matched


def _revived(wanted: Sequence[Int8Range], values: Mapping[str, Array]) -> Iterator[Int8Range]:
    """Yield ranges, with the median step for tensors that were 0 in all samples.

    ONNX Runtime's quantizer gives such a tensor a step of 1, which would round a branch that only
    now learns to give more to 0.
    """
    dead = [
        one.scale == 1.0 and not any(values[name].any() for name in one.tensors) for one in wanted
    ]
    alive = [one.scale for one, none in zip(wanted, dead, strict=True) if not none]
    for one, none in zip(wanted, dead, strict=True):
        yield replace(one, scale=float(np.median(alive))) if none and alive else one


def _values(exact: Model, names: Sequence[str], rows: Tensors) -> dict[str, Array]:
    """Return the values of a file's tensors, by name."""
    proto = read_onnx(exact)
    inputs = {name: rows[name] for name in rows if name in names}
    inner = [name for name in names if name not in inputs]
    try:
        with silenced():
            session = session_of(with_outputs(proto, inner), exact)
            return dict(zip(inner, session.run(inner, dict(rows)), strict=True)) | inputs
    except Exception as error:
        raise CandidateError(f"the exported network can't be run: {first_line(error)}") from error


def _same_tensors(
    graph: fx.GraphModule, inputs: Sequence[Array], wanted: Mapping[str, Array]
) -> dict[str, str]:
    """Return the operation of each tensor: its namesake, or the first with equal values."""
    found: dict[str, str] = {}

    class ValueReader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                values = result.numpy()
                for name, array in wanted.items():
                    if (name not in found or name == n.name) and _alike(values, array):
                        found[name] = n.name
            return result

    with torch.no_grad():
        ValueReader(graph).run(*map(torch.from_numpy, inputs))
    return found


def _alike(one: Array, other: Array) -> bool:
    if one.shape != other.shape or not one.size:
        return False
    return bool(np.abs(one - other).max() <= _NEAR * np.abs(other).max())


def _check(network: Network, made: Model, rows: Tensors) -> None:
    """Check that a file's answers equal the network's, up to values that round to the next integer.

    Raises:
        CandidateError: an output differs by too much.
    """
    wanted = next(network.answers(iter([dict(rows)])))
    found = _values(made, [spec.name for spec in made.outputs], rows)
    for (name, want), got in zip(wanted.items(), found.values(), strict=True):
        off = float(np.sqrt(np.mean(np.square(want - got, dtype=np.float64))))
        largest = float(np.abs(want).max(initial=0))
        if not off <= _FAR * largest:
            raise CandidateError(
                f"the int8 file's output {name!r} is off by {off:.3g} from the trained network's "
                f"(root mean square; largest magnitude {largest:.3g})"
            )
