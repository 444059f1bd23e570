"""Training in which a network already answers as it will in int8, so that it learns to live with it.

The places of rounding are those of `StaticQuantization`: its file of the float network says which
tensors are rounded and from which ranges, and the file that training ends with is its own again, with
the weights and ranges that were learned. It so runs as fast as any that the pass makes.
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
"""Of a tensor's largest magnitude: how far torch and ONNX Runtime may differ on the same one."""
_FAR = 0.1
"""Of an output's largest magnitude: how far a file may be from the network, as a root mean square."""
_ROWS = 4
"""Samples by which the tensors of a file are told from each other."""
_WIDE, _NARROW = 127, 64
"""Of a weight's magnitude, with 8 bits and 7, as ONNX Runtime's quantizer has them."""


def prepare(
    network: Network,
    calibration: Dataset,
    quantization: StaticQuantization = StaticQuantization(),  # noqa: B008 - a value, frozen
) -> Network:
    """Return a copy of a network that rounds as its int8 file will.

    Args:
        network: In float; stays as it is.
        calibration: Samples that the ranges start from; never those that judge.
        quantization: Whose places and widths are taken; the default is the one that runtimes on
            x86-64 are fastest with. Weights are rounded to the nearest whatever it says.

    Returns:
        A network whose module is `PreparedNetwork`, to be trained with a small rate.

    Raises:
        CandidateError: torch can't capture it with an open batch, it can't be exported or
            quantized, or training would round nothing of what the file rounds.
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
        raise CandidateError("none of what the quantized file rounds was found in the network")
    return Network(PreparedNetwork(graph, placement), network.inputs, low_precision=False)


def export(network: Network, sample: Tensors, workdir: Path) -> Model:
    """Write a prepared network as an ONNX file with explicit QDQ.

    Args:
        network: From `prepare`, trained or not.
        sample: One sample by input name, without an axis for samples; its answers are checked.
        workdir: Empty, exists.

    Returns:
        The file, with its request settled.

    Raises:
        CandidateError: it can't be exported, or the file answers otherwise than the network.
    """
    prepared = network.module
    if not isinstance(prepared, PreparedNetwork):
        raise CandidateError("only a network that was prepared can be exported in int8")
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
    """Write a graph in float, and the same as the pass quantizes it."""
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
    """Find the graph's operations and parameters that give what the file rounds, by their values."""
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
    """Return the parameters that a file's constants are, as they are or turned, and which those are."""
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
    """Yield ranges; where all samples gave 0, with a usual step, for a branch that learns to give more.

    ONNX Runtime's quantizer says a step of 1 there, below half of which all is rounded to 0.
    """
    dead = [
        one.scale == 1.0 and not any(values[name].any() for name in one.tensors) for one in wanted
    ]
    alive = [one.scale for one, none in zip(wanted, dead, strict=True) if not none]
    for one, none in zip(wanted, dead, strict=True):
        yield replace(one, scale=float(np.median(alive))) if none and alive else one


def _values(exact: Model, names: Sequence[str], rows: Tensors) -> dict[str, Array]:
    """Return tensors of the float file, by name."""
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
    """Return which operation gives each tensor: the first with these values, of its name if any."""
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
    """Check that a file answers as the network, up to values that round to the next integer."""
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
