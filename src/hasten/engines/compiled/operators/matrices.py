"""Product of two matrices of which neither need be constant, as attention has them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map, emit_program, place
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, Access, product
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_ROWS = 4
"""Rows whose sums are made at once."""
_MANY_PRODUCTS = 4
"""Products along an axis from which threads share those; they share the rows of fewer."""
_VECTORS = {1: 8, _ROWS: 2}
"""Vectors of sums for a number of rows at once, so that they stay in registers."""
_MOST_COPIED = 1 << 24
"""Largest size of a matrix that is copied, in numbers."""


@dataclass(frozen=True)
class Product(Operation):
    """`output = after(left @ right)` for each element of the outer loops.

    Attributes:
        left: Elements that are read over loops of shape `(*outer, rows, inner)`.
        right: Elements that are read over loops of shape `(*outer, inner, columns)`.
        output: Tensor of shape `(*outer, rows, columns)`, contiguous.
        outer: Sizes of the loops around.
        rows: Rows of the left matrix.
        inner: Numbers that each sum runs over.
        columns: Columns of the right matrix.
        after: Program over one number, done to each result; empty for none.
    """

    task: ClassVar[Kind] = "arithmetic"

    left: Access
    right: Access
    output: str
    outer: tuple[int, ...]
    rows: int
    inner: int
    columns: int
    after: tuple[Step, ...] = ()

    splits: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.left.tensor, self.right.tensor)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return product(self.outer) * self.rows * self.inner * self.columns

    def check(self, plan: Plan) -> None:
        left = self.check_access(plan, self.left, (*self.outer, self.rows, self.inner))
        right = self.check_access(plan, self.right, (*self.outer, self.inner, self.columns))
        if left.dtype not in ("float32", "float64") or left.dtype != right.dtype:
            self.refuse(f"{left.dtype} by {right.dtype}")
        if self.inner * self.columns > _MOST_COPIED:
            self.refuse(f"a matrix of {self.inner} x {self.columns}")
        size = product(self.outer) * self.rows * self.columns
        self.check_sizes(plan, left.dtype, (self.output, size))
        if self.after and programs.check(self.after, (left.dtype,)) != left.dtype:
            self.refuse("its program gives another type")

    def followed(self, second: Map) -> Product | None:
        """Return it with a map on its results done at once, which keeps their type; None where it has one."""
        if self.after:
            return None
        return replace(self, output=second.output.tensor, after=second.steps)

    def preceded(self, first: Map) -> Product | None:
        """Return it reading what a map only copies; None where the map does more."""
        copied = [step.op for step in first.steps] == ["copy"] and len(first.inputs) == 1
        between = first.output.tensor
        if not copied or not first.output.is_whole(first.shape):
            return None
        read = first.inputs[0]
        accesses = []
        for access, rows, columns in (
            (self.left, self.rows, self.inner),
            (self.right, self.inner, self.columns),
        ):
            shape = (*self.outer, rows, columns)
            if access.tensor == between and not (first.shape == shape and access.is_whole(shape)):
                return None
            accesses.append(read if access.tensor == between else access)
        left, right = accesses
        return replace(self, left=left, right=right)

    def emit(self, writer: Writer) -> None:
        dtype = writer.plan.tensor(self.left.tensor).dtype
        kind, lanes = C_TYPES[dtype], writer.lanes(np.dtype(dtype))
        left, right = writer.read(self.left.tensor), writer.read(self.right.tensor)
        target = writer.write(self.output)
        cut = len(self.outer)
        down, along = self.right.strides[cut:]
        vectors = -(-self.columns // lanes)
        wide = vectors * lanes
        direct = along == 1 and self.columns == wide
        copied = "" if direct else writer.scratch(dtype, self.inner * wide, apart=True)
        many = max(self.outer, default=1) >= _MANY_PRODUCTS
        with contextlib.ExitStack() as blocks:
            share = ("0", str(self.rows))
            if not many:
                share = blocks.enter_context(writer.share(self.rows, _ROWS))
            blocks.enter_context(writer.loops(self.outer, split=many))
            outer = [Access("", one.strides[:cut], one.offset) for one in (self.left, self.right)]
            writer.line(f"const {kind} *from = {left} + {place(outer[0])};")
            writer.line(f"const {kind} *w = {right} + {place(outer[1])};")
            strides = [
                product(self.outer[at + 1 :]) * self.rows * self.columns for at in range(cut)
            ]
            writer.line(f"{kind} *to = {target} + {place(Access('', tuple(strides)))};")
            if not direct:
                self._emit_copy(writer, copied, down, along, wide)
            self._emit_rows(writer, kind, lanes, vectors, down if direct else wide, share)
            if self.after:
                first, last = (f"{bound} * {self.columns}" for bound in share)
                writer.line("#pragma GCC ivdep")
                with writer.block(f"for (long j = {first}; j < {last}; j++)"):
                    writer.line(f"const {kind} v0 = to[j];")
                    writer.line(f"to[j] = {emit_program(writer, self.after, [dtype])};")

    def _emit_copy(self, writer: Writer, copied: str, down: int, along: int, wide: int) -> None:
        """Write the copy of the right matrix whose lines are whole vectors."""
        with writer.block(f"for (long k = 0; k < {self.inner}; k++)"):
            writer.line("#pragma GCC ivdep")
            with writer.block(f"for (long j = 0; j < {self.columns}; j++)"):
                writer.line(f"{copied}[k * {wide} + j] = w[k * {down} + j * {along}];")
            if wide > self.columns:
                with writer.block(f"for (long j = {self.columns}; j < {wide}; j++)"):
                    writer.line(f"{copied}[k * {wide} + j] = 0;")
        writer.line(f"w = {copied};")

    def _emit_rows(
        self,
        writer: Writer,
        kind: str,
        lanes: int,
        vectors: int,
        line: int,
        share: tuple[str, str],
    ) -> None:
        """Write the product, or a share of its rows, some rows and vectors of columns at a time."""
        down, along = self.left.strides[len(self.outer) :]
        writer.line(f"long i = {share[0]};")
        for rows in (_ROWS, 1):
            if self.rows < rows:
                continue
            with writer.block(f"for (; i + {rows} <= {share[1]}; i += {rows})"):
                each = min(vectors, _VECTORS[rows])
                whole, rest = divmod(vectors - 1, each)
                if whole:
                    with writer.block(f"for (long q = 0; q < {whole}; q++)"):
                        place = f"q * {each * lanes}"
                        self._emit_tile(writer, kind, lanes, rows, each, line, down, along, place)
                place = str(whole * each * lanes)
                self._emit_tile(writer, kind, lanes, rows, rest + 1, line, down, along, place, True)

    def _emit_tile(
        self,
        writer: Writer,
        kind: str,
        lanes: int,
        rows: int,
        vectors: int,
        line: int,
        down: int,
        along: int,
        column: str,
        last: bool = False,
    ) -> None:
        sums = [(row, one) for row in range(rows) for one in range(vectors)]
        writer.line("{")
        for row, one in sums:
            writer.line(f"v{kind} a{row}_{one} = {{0}};")
        with writer.block(f"for (long k = 0; k < {self.inner}; k++)"):
            for one in range(vectors):
                where = f"w + k * {line} + {column} + {one * lanes}"
                writer.line(f"const v{kind} w{one} = *(const v{kind}_u *)({where});")
            for row in range(rows):
                writer.line(f"const {kind} s{row} = from[(i + {row}) * {down} + k * {along}];")
            for row, one in sums:
                writer.line(f"a{row}_{one} += s{row} * w{one};")
        for row, one in sums:
            where = f"to + (i + {row}) * {self.columns} + {column} + {one * lanes}"
            tail = self.columns % lanes if last and one == vectors - 1 else 0
            if tail:
                writer.line(f"COPY({where}, &a{row}_{one}, {tail} * sizeof({kind}));")
            else:
                writer.line(f"*(v{kind}_u *)({where}) = a{row}_{one};")
        writer.line("}")
