"""Recurrent layers: what each step of a sequence computes from the one before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import ALIGNMENT, C_TYPES, Access
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

ACTIVATIONS = ("sigmoid", "tanh", "relu", "softsign", "softplus")
"""Functions that a gate may have."""
_GATES = {"rnn": 1, "gru": 3, "gru_after": 3, "lstm": 4}
"""Sums of each kind for one number of the state, in ONNX's order: z, r, h; or i, o, f, c."""
_FUNCTIONS = {"rnn": 1, "gru": 2, "gru_after": 2, "lstm": 3}
_SUMS = 8
"""Independent sums that keep two multiply-add units busy, whose latency is four cycles."""
_MOST_SUMS = 12
"""Largest number of sums that leave a register of sixteen for each number that is multiplied: a layer that has no more
is one tile, whose functions don't wait for each other."""


@dataclass(frozen=True)
class Recurrent(Operation):
    """One direction of a recurrent layer over a sequence; the input's products are computed before.

    Attributes:
        kind: Equations: "gru" resets the state before its product, "gru_after" behind it.
        hidden: Numbers of the state.
        steps: Length of the sequence.
        rows: Sequences in one row of the batch, one unless the model's batch is settled.
        reverse: Whether the sequence is walked from its end.
        activations: Functions of the gates, by ONNX's order.
        clip: Bound of what the functions are given; 0 for none.
        coupled: Whether an LSTM forgets as much as it doesn't let in.
        input: Products of the input with all biases, over `rows x steps x (gates * hidden)`.
        weight: Constant of `hidden x (gates * hidden)` numbers.
        bias: Constant of `hidden` numbers that the state's product has in a "gru_after"; else "".
        peepholes: Constant of `3 * hidden` numbers by which an LSTM's gates see the cell; else "".
        state: First state, over `rows x hidden`; None for zeros.
        cell: First cell of an LSTM, over `rows x hidden`; None for zeros.
        output: State after each step, over `rows x steps x hidden`; None where nothing reads it.
        last: State after the last step, over `rows x hidden`; None where nothing reads it.
        last_cell: Cell after the last step, over `rows x hidden`; None where nothing reads it.
        scratch: Tensor of `scratch_size` numbers that nothing else uses; "" where that is 0.
    """

    task: ClassVar[Kind] = "arithmetic"

    kind: Literal["rnn", "gru", "gru_after", "lstm"]
    hidden: int
    steps: int
    rows: int
    reverse: bool
    activations: tuple[str, ...]
    clip: float
    coupled: bool
    input: Access
    weight: str
    bias: str
    peepholes: str
    state: Access | None
    cell: Access | None
    output: Access | None
    last: Access | None
    last_cell: Access | None
    scratch: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        constants = [name for name in (self.weight, self.bias, self.peepholes) if name]
        given = [access.tensor for access in (self.state, self.cell) if access]
        return (self.input.tensor, *constants, *given)

    @property
    def writes(self) -> tuple[str, ...]:
        made = [one.tensor for one in (self.output, self.last, self.last_cell) if one]
        return (*made, *((self.scratch,) if self.scratch else ()))

    @property
    def parts(self) -> tuple[tuple[Access, tuple[int, ...]], ...]:
        row, whole = (self.rows, self.hidden), (self.rows, self.steps, self.hidden)
        made = ((self.output, whole), (self.last, row), (self.last_cell, row))
        kept = (
            ((Access(self.scratch, ()), ()),) if self.scratch else ()
        )  # what is left there is nobody's
        return (*((access, shape) for access, shape in made if access), *kept)

    @property
    def work(self) -> int:
        return self.rows * self.steps * _GATES[self.kind] * self.hidden * (self.hidden + 10)

    @property
    def scratch_size(self) -> int:
        """Numbers that it keeps between its steps."""
        return len(self._sections) * self._section

    @property
    def _sections(self) -> tuple[str, ...]:
        """Names of the states that are in no other tensor."""
        found = [] if self.output or (self.steps == 1 and self.last) else ["y0", "y1"]
        if self.kind == "lstm" and not self.last_cell:
            found.append("cell")
        if self.kind == "gru":
            found += ["update", "reset"]
        return tuple(found)

    @property
    def _section(self) -> int:
        return -(-self.hidden // ALIGNMENT) * ALIGNMENT

    def check(self, plan: Plan) -> None:
        dtype = self.constant(plan, self.weight).dtype
        if dtype not in ("float32", "float64") or min(self.hidden, self.steps, self.rows) < 1:
            self.refuse(f"{self.rows} x {self.steps} x {self.hidden} of {dtype}")
        if len(self.activations) != _FUNCTIONS[self.kind] or set(self.activations) - {*ACTIVATIONS}:
            self.refuse(f"the functions {', '.join(self.activations)!r:.100}")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            self.refuse(f"a bound of {self.clip}")
        self._check_kind()
        wide = _GATES[self.kind] * self.hidden
        self.check_sizes(plan, dtype, (self.weight, self.hidden * wide))
        for name, size in ((self.bias, self.hidden), (self.peepholes, 3 * self.hidden)):
            if name:
                self.constant(plan, name)
                self.check_sizes(plan, dtype, (name, size))
        if self.scratch:
            self.check_sizes(plan, dtype, (self.scratch, self.scratch_size))
        row, whole = (self.rows, self.hidden), (self.rows, self.steps, self.hidden)
        for access, shape in (
            (self.input, (self.rows, self.steps, wide)),
            (self.state, row),
            (self.cell, row),
            (self.output, whole),
            (self.last, row),
            (self.last_cell, row),
        ):
            if access and self.check_access(plan, access, shape).dtype != dtype:
                self.refuse(f"{access.tensor!r:.100} isn't {dtype}")
            if access and access.strides[-1] != 1:
                self.refuse(f"the numbers of a state in {access.tensor!r:.100} lie apart")

    def _check_kind(self) -> None:
        """Check what some kinds have and others haven't."""
        lstm = self.kind == "lstm"
        if not lstm and (self.cell or self.last_cell or self.peepholes or self.coupled):
            self.refuse(f"a {self.kind!r} has no cell")
        if bool(self.bias) != (self.kind == "gru_after"):
            self.refuse(f"the state's bias of a {self.kind!r}")
        if bool(self.scratch) != bool(self.scratch_size):
            self.refuse(f"{self.scratch_size} numbers in between")
        if not self.writes[: -1 if self.scratch else None]:
            self.refuse("it gives nothing")
        if len(set(self.writes)) != len(self.writes):
            self.refuse("it writes two results into one tensor")

    def emit(self, writer: Writer) -> None:
        kind = C_TYPES[writer.plan.tensor(self.weight).dtype]
        products = [_Product(self, writer, one) for one in _PASSES[self.kind]]
        first = self._start(writer, self.state)
        cell = self._start(writer, self.cell) if self.kind == "lstm" else ""
        with writer.block(f"for (long b = 0; b < {self.rows}; b++)"):
            writer.line(f"const {kind} *h = {first};")
            if cell:
                writer.line(f"const {kind} *c = {cell};")
                writer.line(f"{kind} *d = {self._cell(writer)};")
            if self.kind == "gru":
                writer.line(f"{kind} *update = {self._part(writer, 'update')};")
                writer.line(f"{kind} *reset = {self._part(writer, 'reset')};")
            with writer.block(f"for (long s = 0; s < {self.steps}; s++)"):
                writer.line(f"const long at = {f'{self.steps - 1} - s' if self.reverse else 's'};")
                source = writer.read(self.input.tensor)
                writer.line(f"const {kind} *x = {source} + {_row(self.input)};")
                writer.line(f"{kind} *y = {self._target(writer)};")
                for one in products:
                    one.emit()
                writer.line("h = y;")
                if cell:
                    writer.line("c = d;")
            if self.last and self.output:
                target = f"{writer.write(self.last.tensor)} + {_row(self.last)}"
                writer.line(f"{{ {kind} *z = {target};")
                writer.line(f"for (long j = 0; j < {self.hidden}; j++) z[j] = h[j]; }}")

    def _start(self, writer: Writer, access: Access | None) -> str:
        if access:
            return f"{writer.read(access.tensor)} + {_row(access)}"
        return writer.table(np.zeros(self.hidden, writer.plan.tensor(self.weight).dtype))

    def _cell(self, writer: Writer) -> str:
        if self.last_cell:
            return f"{writer.write(self.last_cell.tensor)} + {_row(self.last_cell)}"
        return self._part(writer, "cell")

    def _target(self, writer: Writer) -> str:
        """Return the place of a step's state, in C; never that of the step before it."""
        if self.output:
            return f"{writer.write(self.output.tensor)} + {_row(self.output)}"
        last = f"{writer.write(self.last.tensor)} + {_row(self.last)}" if self.last else ""
        if last and self.steps == 1:
            return last
        turn = f"{self._part(writer, 'y0')} + (s & 1) * {self._section}"
        return f"s == {self.steps - 1} ? {last} : {turn}" if last else turn

    def _part(self, writer: Writer, section: str) -> str:
        return f"{writer.write(self.scratch)} + {self._sections.index(section) * self._section}"


def _row(access: Access) -> str:
    """Return the first element of a row, or of its step, in C."""
    places = zip(("b", "at"), access.strides[:-1], strict=False)
    return " + ".join([str(access.offset), *(f"{name} * {stride}" for name, stride in places)])


class _Equations:
    """Equations of a tile, each a loop of its own: a chain of several functions in one loop would
    leave the processor waiting for the first ones.

    Args:
        layer: Layer.
        writer: Writer of the operation.
        dtype: Element type.
        wide: Numbers of the tile.
    """

    def __init__(self, layer: Recurrent, writer: Writer, dtype: str, wide: int) -> None:
        self.layer, self.writer, self.dtype, self.wide = layer, writer, dtype, wide

    def set(self, name: str, text: str) -> None:
        """Write a loop that sets numbers to an expression of the numbers in the same place."""
        self.writer.line("#pragma GCC ivdep")
        self.writer.line(f"for (int l = 0; l < {self.wide}; l++) {name}[l] = {text};")

    def function(self, number: int, name: str, text: str, *, clipped: bool = True) -> None:
        """Write a loop that sets numbers to a function of a gate.

        Args:
            number: Number of the function, by ONNX's order.
            name: Numbers that are set.
            text: Expression that the function is given.
            clipped: Whether the layer's bound holds for it: ONNX Runtime doesn't bound cells.
        """
        writer, kind, clip = self.writer, C_TYPES[self.dtype], self.layer.clip
        writer.line("#pragma GCC ivdep")
        with writer.block(f"for (int l = 0; l < {self.wide}; l++)"):
            writer.line(f"const {kind} given = {text};")
            if clip and clipped:
                bound = programs.literal(clip.hex(), self.dtype)
                writer.line(f"const {kind} above = MAX(given, -{bound});")
                writer.line(f"const {kind} v = MIN(above, {bound});")
            else:
                writer.line(f"const {kind} v = given;")
            writer.line(f"{name}[l] = {self._expression(self.layer.activations[number])};")

    def _expression(self, op: str) -> str:
        if op == "relu":
            return "MAX(v, 0)"
        if op == "softsign":
            return "v / (1 + (v < 0 ? -v : v))"
        return programs.expression(Step(op, (0,), self.dtype), ["v"], [self.dtype])


def _rnn(write: _Equations) -> None:
    write.function(0, "made", "g0[l]")


def _gru_gates(write: _Equations) -> None:
    write.function(0, "updates", "g0[l]")
    write.function(0, "g1", "g1[l]")
    write.set("resets", "g1[l] * before[l]")


def _gru(write: _Equations) -> None:
    write.function(1, "g2", "g2[l]")
    write.set("made", "(1 - updates[l]) * g2[l] + updates[l] * before[l]")


def _gru_after(write: _Equations) -> None:
    write.function(0, "g1", "g1[l]")
    write.function(0, "g0", "g0[l]")
    write.function(1, "g2", "inputs[l] + g1[l] * g2[l]")
    write.set("made", "(1 - g0[l]) * g2[l] + g0[l] * before[l]")


def _lstm(write: _Equations) -> None:
    def gate(number: int, cells: str) -> str:
        seen = f" + peep{number}[l] * {cells}[l]" if write.layer.peepholes else ""
        return f"g{number}[l]{seen}"

    write.function(0, "g0", gate(0, "cells"))
    if write.layer.coupled:
        write.set("g2", "1 - g0[l]")
    else:
        write.function(0, "g2", gate(2, "cells"))
    write.function(1, "g3", "g3[l]")
    write.set("kept", "g2[l] * cells[l] + g0[l] * g3[l]")
    write.function(0, "g1", gate(1, "kept"))
    write.function(2, "g3", "kept[l]", clipped=False)
    write.set("made", "g1[l] * g3[l]")


@dataclass(frozen=True)
class _Pass:
    """Products of the state for some gates, tile by tile, each followed by its equations.

    Attributes:
        gates: Numbers of the gates.
        vector: Pointer that the sums run over, in C.
        loads: Names of vectors that the equations read, with the pointers of their states.
        stores: Names of vectors that the equations write, with the pointers of their states.
        equations: Writes the equations.
        apart: Gate whose input isn't a part of its sum.
    """

    gates: tuple[int, ...]
    vector: str
    loads: Mapping[str, str]
    stores: Mapping[str, str]
    equations: Callable[[_Equations], None]
    apart: int | None = None


_PASSES: Mapping[str, tuple[_Pass, ...]] = {
    "rnn": (_Pass((0,), "h", {}, {"made": "y"}, _rnn),),
    "lstm": (_Pass((0, 1, 2, 3), "h", {"cells": "c"}, {"kept": "d", "made": "y"}, _lstm),),
    "gru": (
        _Pass((0, 1), "h", {"before": "h"}, {"updates": "update", "resets": "reset"}, _gru_gates),
        _Pass((2,), "reset", {"before": "h", "updates": "update"}, {"made": "y"}, _gru),
    ),
    "gru_after": (_Pass((0, 1, 2), "h", {"before": "h"}, {"made": "y"}, _gru_after, 2),),
}


class _Product:
    """Tiles of one pass: sums in registers for all gates of some numbers, then their equations.

    Args:
        layer: Layer.
        writer: Writer of the operation.
        done: Pass over the sequence that is written.
    """

    def __init__(self, layer: Recurrent, writer: Writer, done: _Pass) -> None:
        self.layer, self.writer, self.done = layer, writer, done
        count, hidden = _GATES[layer.kind], layer.hidden
        weight = writer.constant(layer.weight).reshape(hidden, count, hidden)
        self.weight = weight[:, list(done.gates)]
        self.dtype = str(weight.dtype)
        self.kind, self.lanes = C_TYPES[self.dtype], writer.lanes(weight.dtype)
        self.loads = dict(done.loads)
        if done.apart is not None:
            self.loads["inputs"] = f"x + {done.apart * hidden}"
        for gate in range(3 if layer.peepholes else 0):
            table = writer.table(writer.constant(layer.peepholes)[gate * hidden :][:hidden])
            self.loads[f"peep{gate}"] = table
        self.starts = [
            writer.table(writer.constant(layer.bias))
            if gate == done.apart
            else f"x + {gate * hidden}"
            for gate in done.gates
        ]
        vectors = max(1, _SUMS // len(done.gates))
        if -(-hidden // self.lanes) * len(done.gates) <= _MOST_SUMS:
            vectors = -(-hidden // self.lanes)
        whole, rest = divmod(hidden, vectors * self.lanes)
        self.tiles = [(0, whole, vectors)] if whole else []
        if rest:
            self.tiles.append((hidden - rest, 1, -(-rest // self.lanes)))
        self.tables = [writer.table(self._packed(*tile)) for tile in self.tiles]

    def _packed(self, start: int, count: int, vectors: int) -> Array:
        """Return the weights of tiles in the order that they are read in."""
        hidden, gates, wide = len(self.weight), len(self.done.gates), vectors * self.lanes
        packed = np.zeros((count, hidden, gates, wide), self.dtype)
        for tile in range(count):
            part = self.weight[:, :, start + tile * wide :][:, :, :wide]
            packed[tile, :, :, : part.shape[2]] = part
        return packed

    def emit(self) -> None:
        """Write the pass of one step."""
        for table, (start, count, vectors) in zip(self.tables, self.tiles, strict=True):
            wide = vectors * self.lanes
            valid = min(wide, self.layer.hidden - start)
            with self.writer.loops((count,), name="t"):
                self.writer.line(f"const long j = {start} + t0 * {wide};")
                size = self.layer.hidden * len(self.done.gates) * wide
                self.writer.line(f"const {self.kind} *w = {table} + t0 * {size};")
                self._vectors(self.loads, wide, valid)
                starts = {f"start{n}": place for n, place in enumerate(self.starts)}
                self._vectors(starts, wide, valid)
                self._sums(vectors)
                self._equations(wide, valid)

    def _vectors(self, loads: Mapping[str, str], wide: int, valid: int) -> None:
        """Write pointers to what a tile reads; the last one's are filled up by zeros."""
        for name, place in loads.items():
            if valid == wide:
                self.writer.line(f"const {self.kind} *{name} = {place} + j;")
            else:
                self._local(name, wide, " = {0}")
                size = valid * np.dtype(self.dtype).itemsize
                self.writer.line(f"COPY({name}, {place} + j, {size});")

    def _local(self, name: str, wide: int, value: str = "") -> None:
        aligned = f"__attribute__((aligned({ALIGNMENT})))"
        self.writer.line(f"{self.kind} {name}[{wide}] {aligned}{value};")

    def _sums(self, vectors: int) -> None:
        """Write the sums of a tile, for gate n into an array gn."""
        gates, hidden, writer = self.done.gates, self.layer.hidden, self.writer
        sums = [(n, v) for n in range(len(gates)) for v in range(vectors)]
        sets = max(1, min(4, _SUMS // len(sums))) if hidden >= 8 else 1
        vector, wide = f"v{self.kind}", vectors * self.lanes
        for n, v in sums:
            place = f"start{n} + {v * self.lanes}"
            writer.line(f"{vector} a0_{n}_{v} = *(const {vector}_u *)({place});")
            for number in range(1, sets):
                writer.line(f"{vector} a{number}_{n}_{v} = {{0}};")
        writer.line("long k = 0;")
        for step in (sets, 1) if sets > 1 else (1,):
            with writer.block(f"for (; k + {step} <= {hidden}; k += {step})"):
                for number in range(step):
                    writer.line(f"const {self.kind} s{number} = {self.done.vector}[k + {number}];")
                    for n, v in sums:
                        place = (
                            f"(k + {number}) * {len(gates) * wide} + {n * wide + v * self.lanes}"
                        )
                        weights = f"*(const {vector} *)(w + {place})"
                        writer.line(f"a{number}_{n}_{v} += s{number} * {weights};")
        for n, gate in enumerate(gates):
            self._local(f"g{gate}", wide)
            for v in range(vectors):
                total = " + ".join(f"a{number}_{n}_{v}" for number in range(sets))
                writer.line(f"*({vector} *)(g{gate} + {v * self.lanes}) = {total};")

    def _equations(self, wide: int, valid: int) -> None:
        for name, place in self.done.stores.items():
            if valid == wide:
                self.writer.line(f"{self.kind} *{name} = {place} + j;")
            else:
                self._local(name, wide)
        self.done.equations(_Equations(self.layer, self.writer, self.dtype, wide))
        if valid != wide:
            for name, place in self.done.stores.items():
                size = valid * np.dtype(self.dtype).itemsize
                self.writer.line(f"COPY({place} + j, {name}, {size});")
