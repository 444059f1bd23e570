"""Fixed-point program on disk: da4ml's operations, and the meaning of its ports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from hasten.core.records import to_record, write_json
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.fpga.formats import Format
from hasten.errors import CandidateError, InputError

Epilogue: TypeAlias = Literal["none", "softmax", "log_softmax", "logistic", "two", "label"]
PROGRAM, PORTS = "program.json", "ports.json"
VECTORS = "vectors.npz"
"""File of test requests beside a program: an array `requests`, as its ports encode them."""
_MOST_OPERATIONS, _MOST_BITS = 4_000_000, 256

# Operations of da4ml, by the operands that they read. Source: da4ml/types.py, CombLogic.
FROM_INPUT = -1
"""Operation that reads an input: its first operand is the input's number."""
_OPCODES = frozenset({FROM_INPUT, 0, 1, 2, -2, 3, -3, 4, 5, 6, -6, 7, 8, 9, -9, 10})
_WITH_TWO = frozenset({0, 1, 6, -6, 7, 10})
_WITH_ONE = _OPCODES - {5}
_SHIFTING = frozenset({0, 1})
CHOOSING = frozenset({6, -6})
"""Operations that also read the operand whose number is the lower half of their constant."""
_LOOKING_UP = 8
_MOST_ADDRESS = 16
"""Largest width of a table's address, in bits: da4ml writes a line for each address."""


@dataclass(frozen=True)
class Port:
    """Tensor that goes into or out of a design, as bits of a bus, with the first element lowest.

    Attributes:
        name: Name of the tensor in the model.
        shape: Shape of the tensor, without an axis for samples.
        signed: Sign bits of each element in order, 0 or 1.
        integer: Bits of each element before the point, without the sign.
        fraction: Bits of each element after the point.
        epilogue: Step that is left to the reader of an output: "softmax" or "log_softmax";
            "logistic" or "two", where two classes share one sum s and get 1 - p and p, with p the
            logistic of s or s itself; "label", the class with the largest sum; or "none".
        axis: Axis of the softmax.
        classes: Labels of the classes, in the order of the sums.
        meet: Value of a sum shared by two classes above which the second class is chosen.
        shift: Binary places by which each element of an input is smaller in the design than in the
            model; empty for none.
    """

    name: str
    shape: tuple[int, ...]
    signed: tuple[int, ...]
    integer: tuple[int, ...]
    fraction: tuple[int, ...]
    epilogue: Epilogue = "none"
    axis: int = -1
    shift: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    meet: float = 0.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.signed)

    @property
    def widths(self) -> Array:
        """Width of each element in bits."""
        bits = np.add(np.add(self.signed, self.integer), self.fraction)
        return np.maximum(0, bits)

    @property
    def format(self) -> Format:
        """Formats of the elements, flat."""
        return Format(*(np.asarray(v) for v in (self.signed, self.integer, self.fraction)))


@dataclass(frozen=True)
class Ports:
    """Ports of a design's inputs and outputs, in the bus's order.

    Attributes:
        inputs: Ports of the model's inputs.
        outputs: Ports of the model's outputs.
        layers: Names of the products in between, whose widths can be set.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[str, ...] = ()

    def encode(self, inputs: Tensors) -> Array:
        """Round a request's inputs to the numbers that the design takes.

        Args:
            inputs: Inputs by name, each of shape `(batch, *shape)` or `shape`.

        Returns:
            Numbers of the design as float64, of shape `(batch, elements of all inputs)`.
        """
        flat = []
        for port in self.inputs:
            values = np.asarray(inputs[port.name], np.float64).reshape(-1, port.size)
            if port.shift:
                values = values * np.exp2(-np.asarray(port.shift, np.float64))
            flat.append(port.format.rounded(values))
        return np.concatenate(flat, axis=1)

    def decode(self, answers: Array, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        """Turn a design's answers into the model's outputs.

        Args:
            answers: Numbers of the design, of shape `(batch, elements of all outputs)`.
            specs: Specs of the model's outputs.
        """
        found, start = {}, 0
        dtypes = {spec.name: spec.dtype for spec in specs}
        batched = {spec.name: len(spec.shape) for spec in specs}
        for port in self.outputs:
            part = answers[:, start : start + port.size].reshape(len(answers), *port.shape)
            start += port.size
            if batched[port.name] == len(port.shape) and port.epilogue != "label":
                part = part[0]
            part = _finished(part, port)
            found[port.name] = np.ascontiguousarray(part.astype(dtypes[port.name]))
        return found


def _finished(part: Array, port: Port) -> Array:
    """Return an output after the step that the design leaves to its reader."""
    if port.epilogue in ("softmax", "log_softmax"):
        part = part - part.max(axis=port.axis, keepdims=True)
        logarithms = part - np.log(np.exp(part).sum(axis=port.axis, keepdims=True))
        return np.asarray(np.exp(logarithms) if port.epilogue == "softmax" else logarithms)
    if port.epilogue in ("logistic", "two"):
        share = part if port.epilogue == "two" else 0.5 * (1 + np.tanh(0.5 * part))
        return np.concatenate([1 - share, share], axis=-1)
    if port.epilogue == "label":
        chosen = part[..., 0] > port.meet if len(port.classes) > port.size else part.argmax(axis=-1)
        return np.asarray(port.classes)[chosen.astype(np.int64)]
    return part


@dataclass(frozen=True)
class FpgaProgram:
    """Fixed-point program with its ports.

    Attributes:
        logic: Operations as da4ml's `CombLogic`.
        ports: Ports of the inputs and outputs.
    """

    logic: Any
    ports: Ports

    @property
    def cost(self) -> float:
        """Approximate number of 1-bit full adders, by da4ml's count."""
        return float(self.logic.cost)

    def answers(self, rounded: Array, threads: int = 1) -> Array:
        """Run the program, with the design's answers bit for bit.

        Args:
            rounded: Requests in the form that `Ports.encode` returns.
            threads: Largest number of threads.

        Returns:
            Exact answers as float64, of shape `(batch, elements of all outputs)`.
        """
        return np.asarray(self.logic.predict(rounded, n_threads=threads), np.float64)

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write the program into a folder; return the paths of its two files."""
        self.logic.save(folder / PROGRAM)
        write_json(folder / PORTS, to_record(self.ports))
        return folder / PROGRAM, folder / PORTS


def version() -> str:
    """Return da4ml's version.

    Raises:
        InputError: da4ml isn't installed.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("da4ml")
    except PackageNotFoundError as error:
        raise InputError("a design for an FPGA needs da4ml: pip install 'hasten[fpga]'") from error


def load(path: Path) -> FpgaProgram:
    """Load a program and check it, since RTL is written from it and a bundle is untrusted.

    Args:
        path: Path of program.json, with ports.json beside it.

    Raises:
        CandidateError: the file is no program, or is damaged.
        InputError: da4ml isn't installed.
    """
    version()
    from da4ml.types import CombLogic

    try:
        data = json.loads(path.read_bytes())
        _check(data)
        logic = CombLogic.deserialize(data)
        ports = msgspec.convert(json.loads((path.parent / PORTS).read_bytes()), Ports)
    except CandidateError:
        raise
    except Exception as error:
        raise CandidateError(f"{path.name} isn't a fixed-point program: {error}") from error
    for side, count in zip((ports.inputs, ports.outputs), logic.shape, strict=True):
        if sum(port.size for port in side) != count:
            raise CandidateError(f"{PORTS} doesn't match {path.name}: their ports differ in size")
    return FpgaProgram(logic, ports)


def _check(data: Any) -> None:
    """Check that operations are numbers, read only earlier results, and aren't too many.

    Raises:
        CandidateError: the program is damaged or too long.
    """
    wrong = CandidateError(
        "the fixed-point program is damaged: its operations are malformed or out of order"
    )
    if not (isinstance(data, list) and len(data) in (8, 9)):
        raise wrong
    shape, operations = data[0], data[5]
    if not (_integers(shape, 2) and isinstance(operations, list)):
        raise wrong
    if len(operations) > _MOST_OPERATIONS:
        raise CandidateError(
            f"the fixed-point program has {len(operations):,} operations, more than the limit of "
            f"{_MOST_OPERATIONS:,}"
        )
    for vector, size in zip(data[1:4], (shape[0], shape[1], shape[1]), strict=True):
        if not _integers(vector, size):
            raise wrong
    if not (len(data[4]) == shape[1] and all(isinstance(v, bool) for v in data[4])):
        raise wrong
    if any(not -1 <= index < len(operations) for index in data[2]):
        raise wrong
    if any(not -_MOST_BITS <= shift <= _MOST_BITS for shift in (*data[1], *data[3])):
        raise wrong
    tables = len(data[8]) if len(data) == 9 and isinstance(data[8], list) else 0
    for place, operation in enumerate(operations):
        if not (isinstance(operation, list) and len(operation) == 7):
            raise wrong
        id0, id1, opcode, constant, interval, latency, cost = operation
        if not _integers([id0, id1, opcode, constant], 4):
            raise wrong
        if not (isinstance(interval, list) and len(interval) == 3 and _numbers(interval)):
            raise wrong
        if opcode not in _OPCODES or not _numbers([latency, cost]):
            raise wrong
        most = shape[0] if opcode == FROM_INPUT else place
        if not (
            _least(opcode, _WITH_ONE) <= id0 < most and _least(opcode, _WITH_TWO) <= id1 < place
        ):
            raise wrong
        if opcode in _SHIFTING and not -_MOST_BITS <= constant <= _MOST_BITS:
            raise wrong
        if opcode in CHOOSING and not 0 <= constant & 0xFFFFFFFF < place:
            raise wrong
        if opcode == _LOOKING_UP and not (
            0 <= constant < tables and _addresses(operations[id0][4]) <= 1 << _MOST_ADDRESS
        ):
            raise wrong


def _addresses(interval: list[Any]) -> float:
    """Return how many numbers an interval has, of its least one, its largest one and its step."""
    low, high, step = interval
    return float((high - low) / step + 1) if step > 0 and high >= low else float("inf")


def _least(opcode: int, reading: frozenset[int]) -> int:
    return 0 if opcode in reading else -1


def _integers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    )


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) and abs(v) < 2**63 for v in values)
