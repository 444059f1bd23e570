"""Matrix times constant matrix: the layers that small models spend their time in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map, emit_program
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import C_TYPES, Operation, Plan

if TYPE_CHECKING:
    from hasten.engines.compiled.source import Writer

_SUMS = 8
"""Independent sums that keep two multiply-add units busy, whose latency is four cycles."""


@dataclass(frozen=True)
class Dense(Operation):
    """`output = after(input @ weight + bias)`, with all but the input constant.

    Attributes:
        input: Tensor of `rows x inner` numbers.
        weight: Constant of `inner x outer` numbers.
        bias: Constant of `outer` numbers; "" without one.
        output: Tensor of `rows x outer` numbers.
        rows: Rows of the matrix for one row of the batch, as steps of a sequence are.
        inner: Numbers that each sum runs over.
        outer: Sums for each row.
        after: Program over one number, done to each result; empty for none.
    """

    input: str
    weight: str
    bias: str
    output: str
    rows: int
    inner: int
    outer: int
    after: tuple[Step, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, self.weight, *((self.bias,) if self.bias else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.rows * self.inner * self.outer

    def check(self, plan: Plan) -> None:
        dtype = self.constant(plan, self.weight).dtype
        if dtype not in ("float32", "float64") or min(self.rows, self.inner, self.outer) < 1:
            self.refuse(f"{self.rows} x {self.inner} x {self.outer} of {dtype}")
        sizes = {self.input: self.rows * self.inner, self.weight: self.inner * self.outer}
        sizes[self.output] = self.rows * self.outer
        if self.bias:
            self.constant(plan, self.bias)
            sizes[self.bias] = self.outer
        self.check_sizes(plan, dtype, sizes)
        if self.after and programs.check(self.after, (dtype,)) != dtype:
            self.refuse("its program gives another type")

    def followed(self, second: Map) -> Dense | None:
        """Return the layer with a map on its results done at once; None where it gives another type."""
        if self.after or second.steps[-1].dtype not in ("float32", "float64"):
            return None
        return replace(self, output=second.output.tensor, after=second.steps)

    def emit(self, writer: Writer) -> None:
        dtype = writer.plan.tensor(self.weight).dtype
        weight = writer.constant(self.weight).reshape(self.inner, self.outer)
        bias = writer.constant(self.bias) if self.bias else np.zeros(self.outer, dtype)
        source, target = writer.read(self.input), writer.write(self.output)
        kind = C_TYPES[dtype]
        with writer.loops((self.rows,)):
            writer.line(f"const {kind} *x = {source} + i0 * {self.inner};")
            writer.line(f"{kind} *y = {target} + i0 * {self.outer};")
            emit_product(writer, weight, bias)
            if self.after:
                with writer.loops((self.outer,), "#pragma GCC ivdep", name="j"):
                    writer.line(f"const {kind} v0 = y[j0];")
                    writer.line(f"y[j0] = {emit_program(writer, self.after, [dtype])};")


def emit_product(writer: Writer, weight: Array, bias: Array) -> None:
    """Write `y = x @ weight + bias` for pointers x and y, in registers, one tile of sums at a time.

    Args:
        writer: Writer of the operation.
        weight: Constant of shape `(inner, outer)`.
        bias: Constant of shape `(outer,)`.
    """
    lanes = writer.lanes(weight.dtype)
    if 2 * weight.shape[1] <= lanes and weight.shape[0] >= lanes:
        _emit_dots(writer, weight, bias, lanes)
        return
    outer = weight.shape[1]
    wide = _SUMS * lanes
    whole = outer // wide
    if whole:
        _emit_tiles(writer, weight, bias, 0, whole, _SUMS)
    if outer % wide:
        _emit_tiles(writer, weight, bias, whole * wide, 1, -(-(outer % wide) // lanes))


def _emit_tiles(
    writer: Writer, weight: Array, bias: Array, start: int, count: int, vectors: int
) -> None:
    """Write tiles of some vectors each, whose weights are packed in the order that they are read in."""
    kind, lanes = C_TYPES[str(weight.dtype)], writer.lanes(weight.dtype)
    inner, outer = weight.shape
    wide = vectors * lanes
    packed = np.zeros((count, inner, wide), weight.dtype)
    biases = np.zeros((count, wide), weight.dtype)
    for tile in range(count):
        left = start + tile * wide
        part = weight[:, left : left + wide]
        packed[tile, :, : part.shape[1]] = part
        biases[tile, : part.shape[1]] = bias[left : left + wide]
    sets = max(1, min(4, _SUMS // vectors)) if inner >= 8 else 1
    table, first = writer.table(packed), writer.table(biases)
    vector = f"v{kind}"
    with writer.loops((count,), name="t"):
        writer.line(f"const {kind} *w = {table} + t0 * {inner * wide};")
        for one in range(vectors):
            place = f"{first} + t0 * {wide} + {one * lanes}"
            writer.line(f"{vector} a0_{one} = *(const {vector} *)({place});")
            for number in range(1, sets):
                writer.line(f"{vector} a{number}_{one} = {{0}};")
        writer.line("long k = 0;")
        for step in (sets, 1) if sets > 1 else (1,):
            with writer.block(f"for (; k + {step} <= {inner}; k += {step})"):
                for number in range(step):
                    writer.line(f"const {kind} s{number} = x[k + {number}];")
                    for one in range(vectors):
                        place = f"w + (k + {number}) * {wide} + {one * lanes}"
                        writer.line(f"a{number}_{one} += s{number} * *(const {vector} *)({place});")
        for one in range(vectors):
            total = " + ".join(f"a{number}_{one}" for number in range(sets))
            left = start + one * lanes
            if start + wide <= outer or left + lanes <= outer:
                writer.line(f"*({vector}_u *)(y + {left} + t0 * {wide}) = {total};")
            else:
                writer.line(f"{{ {vector} last = {total};")
                writer.line(f"COPY(y + {left}, &last, {(outer - left) * weight.itemsize}); }}")


def _emit_dots(writer: Writer, weight: Array, bias: Array, lanes: int) -> None:
    """Write a few sums, each along the input: there are too few for a vector of sums."""
    kind = C_TYPES[str(weight.dtype)]
    inner, outer = weight.shape
    vector = f"v{kind}"
    table, first = writer.table(np.ascontiguousarray(weight.T)), writer.table(bias)
    sets = max(1, min(4, inner // lanes, _SUMS // outer))
    for one in range(outer):
        for number in range(sets):
            writer.line(f"{vector} d{number}_{one} = {{0}};")
        writer.line(f"{kind} all_{one} = {first}[{one}];")
    writer.line("long k = 0;")
    for step in (sets, 1) if sets > 1 else (1,):
        with writer.block(f"for (; k + {step * lanes} <= {inner}; k += {step * lanes})"):
            for number in range(step):
                writer.line(
                    f"const {vector} s{number} = *(const {vector}_u *)(x + k + {number * lanes});"
                )
                for one in range(outer):
                    place = f"{table} + {one * inner} + k + {number * lanes}"
                    writer.line(f"d{number}_{one} += s{number} * *(const {vector}_u *)({place});")
    with writer.block(f"for (; k < {inner}; k++)"):
        for one in range(outer):
            writer.line(f"all_{one} += x[k] * {table}[{one * inner} + k];")
    for one in range(outer):
        total = " + ".join(f"d{number}_{one}" for number in range(sets))
        writer.line(f"{{ const {vector} sum = {total};")
        writer.line(f"for (int l = 0; l < {lanes}; l++) all_{one} += sum[l];")
        writer.line(f"y[{one}] = all_{one}; }}")
