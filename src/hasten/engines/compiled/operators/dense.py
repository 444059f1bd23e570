"""Matrix times constant matrix: the layers that small models spend their time in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map, emit_program
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_SUMS = 8
"""Independent sums that keep two multiply-add units busy, whose latency is four cycles."""
_ROWS = 6
"""Rows that share each vector of weights that is loaded."""
_MANY_ROWS = 16 * _ROWS
"""Rows from which threads share them; they share the sums of fewer."""


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

    task: ClassVar[Kind] = "arithmetic"

    input: str
    weight: str
    bias: str
    output: str
    rows: int
    inner: int
    outer: int
    after: tuple[Step, ...] = ()

    splits: ClassVar[bool] = True

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
        sizes = [(self.input, self.rows * self.inner), (self.weight, self.inner * self.outer)]
        sizes.append((self.output, self.rows * self.outer))
        if self.bias:
            self.constant(plan, self.bias)
            sizes.append((self.bias, self.outer))
        self.check_sizes(plan, dtype, *sizes)
        if self.after and programs.check(self.after, (dtype,)) != dtype:
            self.refuse("its program gives another type")

    def followed(self, second: Map) -> Dense | None:
        """Return the layer with a map on its results done at once, which keeps their type; None where it has one."""
        if self.after:
            return None
        return replace(self, output=second.output.tensor, after=second.steps)

    def emit(self, writer: Writer) -> None:
        self._emit(writer, str(self.rows))

    def emit_rows(self, writer: Writer) -> None:
        self._emit(writer, f"n * {self.rows}" if writer.plan.by_row else str(self.rows))

    def _emit(self, writer: Writer, rows: str) -> None:
        dtype = writer.plan.tensor(self.weight).dtype
        weight = writer.constant(self.weight).reshape(self.inner, self.outer)
        bias = writer.constant(self.bias) if self.bias else np.zeros(self.outer, dtype)
        source, target = writer.read(self.input), writer.write(self.output)
        kind = C_TYPES[dtype]
        pointers = (
            f"const {kind} *x = {source} + i * {self.inner};",
            f"{kind} *y = {target} + i * {self.outer};",
        )
        dots = _as_dots(writer, weight)
        sums = not dots and self.rows < _MANY_ROWS
        writer.line(f"const long m = {rows};")
        with writer.share(*((_tile_count(writer, weight), 1) if sums else ("m", _ROWS))) as share:
            first, last = ("0", "m") if sums else share
            writer.line(f"long i = {first};")
            if not dots and (writer.plan.by_row or self.rows >= _ROWS):
                with writer.block(f"for (; i + {_ROWS} <= {last}; i += {_ROWS})"):
                    for line in pointers:
                        writer.line(line)
                    _emit_rows(writer, weight, bias, share if sums else None)
            with writer.block(f"for (; i < {last}; i++)"):
                for line in pointers:
                    writer.line(line)
                emit_product(writer, weight, bias, share if sums else None)
            if self.after and sums and writer.shared:
                wide = _SUMS * writer.lanes(weight.dtype)
                with writer.block("for (long i = 0; i < m; i++)"):
                    bounds = (
                        f"i * {self.outer} + MIN({one} * {wide}, {self.outer})" for one in share
                    )
                    self._emit_after(writer, target, *bounds)
            elif self.after:
                self._emit_after(
                    writer, target, *(f"{one} * {self.outer}" for one in (first, last))
                )

    def _emit_after(self, writer: Writer, target: str, first: str, last: str) -> None:
        """Write the program over some results, whose sums are done."""
        dtype = writer.plan.tensor(self.weight).dtype
        writer.line("#pragma GCC ivdep")
        with writer.block(f"for (long j = {first}; j < {last}; j++)"):
            writer.line(f"const {C_TYPES[dtype]} v0 = {target}[j];")
            writer.line(f"{target}[j] = {emit_program(writer, self.after, [dtype])};")


def emit_product(
    writer: Writer, weight: Array, bias: Array, share: tuple[str, str] | None = None
) -> None:
    """Write `y = x @ weight + bias` for pointers x and y, in registers, one tile of sums at a time.

    Args:
        writer: Writer of the operation.
        weight: Constant of shape `(inner, outer)`.
        bias: Constant of shape `(outer,)`.
        share: Bounds, in C, of the tiles to compute; None for all.
    """
    if _as_dots(writer, weight):
        _emit_dots(writer, weight, bias, writer.lanes(weight.dtype))
        return
    for tiles in _tiled(writer, weight, bias):
        _emit_tiles(writer, tiles, share)


def _as_dots(writer: Writer, weight: Array) -> bool:
    """Whether there are too few sums for a vector of them, so that each goes along the input."""
    lanes = writer.lanes(weight.dtype)
    inner, outer = weight.shape
    return 2 * int(outer) <= lanes <= int(inner)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of some vectors of sums each, whose weights are packed in the order that they are read in.

    Attributes:
        kind: Type in C.
        lanes: Numbers in a vector.
        weights: Pointer to the weights, of shape `(count, inner, vectors, lanes)`.
        biases: Pointer to what the sums begin with, of shape `(count, vectors, lanes)`.
        start: Sum that the first tile begins with.
        count: Number of tiles.
        vectors: Vectors of each tile.
        inner: Numbers that each sum runs over.
        outer: Sums of the whole layer.
    """

    kind: str
    lanes: int
    weights: str
    biases: str
    start: int
    count: int
    vectors: int
    inner: int
    outer: int

    @property
    def wide(self) -> int:
        """Sums of a tile."""
        return self.vectors * self.lanes

    @property
    def sets(self) -> int:
        """Parts of each sum, so that there are enough independent ones: every so-manieth number."""
        return max(1, min(4, _SUMS // self.vectors)) if self.inner >= 8 else 1

    def loop(self, writer: Writer, share: tuple[str, str] | None) -> AbstractContextManager[None]:
        """Write a loop over the tiles t0, or over those of a share of all the layer's tiles."""
        if share is None:
            return writer.loops((self.count,), name="t")
        first, last = writer.clip(share, self.start // (_SUMS * self.lanes), self.count)
        return writer.block(f"for (long t0 = {first}; t0 < {last}; t0++)")

    def load(self, place: str) -> str:
        """Return a vector of weights in C."""
        return f"*(const v{self.kind} *)({place})"

    def store(self, writer: Writer, left: int, place: str, total: str, last: bool) -> None:
        """Write a vector of results, of which fewer may be left from the sum `left` on."""
        if not last or left + self.lanes <= self.outer:
            writer.line(f"*(v{self.kind}_u *)({place}) = {total};")
        else:
            size = f"{self.outer - left} * sizeof({self.kind})"
            writer.line(f"{{ v{self.kind} last = {total}; COPY({place}, &last, {size}); }}")


def _tile_count(writer: Writer, weight: Array) -> int:
    """Return how many tiles `_tiled` cuts a matrix into."""
    return -(-int(weight.shape[1]) // (_SUMS * writer.lanes(weight.dtype)))


def _tiled(writer: Writer, weight: Array, bias: Array) -> list[_Tiles]:
    """Pack a matrix: tiles of as many vectors as there are sums to keep, and one of the rest."""
    kind, lanes = C_TYPES[str(weight.dtype)], writer.lanes(weight.dtype)
    inner, outer = weight.shape
    whole, rest = divmod(outer, _SUMS * lanes)
    found = []
    for start, count, vectors in (
        (0, whole, _SUMS),
        (whole * _SUMS * lanes, 1, -(-rest // lanes)),
    ):
        if not count or not vectors:
            continue
        wide = vectors * lanes
        packed = np.zeros((count, inner, wide), weight.dtype)
        biases = np.zeros((count, wide), weight.dtype)
        for tile in range(count):
            left = start + tile * wide
            part = weight[:, left : left + wide]
            packed[tile, :, : part.shape[1]] = part
            biases[tile, : part.shape[1]] = bias[left : left + wide]
        tables = writer.table(packed), writer.table(biases)
        found.append(_Tiles(kind, lanes, *tables, start, count, vectors, inner, outer))
    return found


def _emit_tiles(writer: Writer, tiles: _Tiles, share: tuple[str, str] | None) -> None:
    """Write tiles, or those of a share, for one row."""
    kind, lanes, wide, sets = tiles.kind, tiles.lanes, tiles.wide, tiles.sets
    vector = f"v{kind}"
    with tiles.loop(writer, share):
        writer.line(f"const {kind} *w = {tiles.weights} + t0 * {tiles.inner * wide};")
        for one in range(tiles.vectors):
            place = f"{tiles.biases} + t0 * {wide} + {one * lanes}"
            writer.line(f"{vector} a0_{one} = {tiles.load(place)};")
            for number in range(1, sets):
                writer.line(f"{vector} a{number}_{one} = {{0}};")
        writer.line("long k = 0;")
        for step in (sets, 1) if sets > 1 else (1,):
            with writer.block(f"for (; k + {step} <= {tiles.inner}; k += {step})"):
                for number in range(step):
                    writer.line(f"const {kind} s{number} = x[k + {number}];")
                    for one in range(tiles.vectors):
                        place = f"w + (k + {number}) * {wide} + {one * lanes}"
                        writer.line(f"a{number}_{one} += s{number} * {tiles.load(place)};")
        for one in range(tiles.vectors):
            total = " + ".join(f"a{number}_{one}" for number in range(sets))
            left = tiles.start + one * lanes
            tiles.store(writer, left, f"y + {left} + t0 * {wide}", total, tiles.count == 1)


def _emit_rows(writer: Writer, weight: Array, bias: Array, share: tuple[str, str] | None) -> None:
    """Write the product for some rows at once, each sum in the order of the form for one row."""
    for tiles in _tiled(writer, weight, bias):
        pairs, single = divmod(tiles.vectors, 2)
        tail = tiles.count == 1 and tiles.start + tiles.wide > tiles.outer
        if tail and not single:
            pairs, single = pairs - 1, 2
        with tiles.loop(writer, share):
            writer.line(
                f"const {tiles.kind} *w = {tiles.weights} + t0 * {tiles.inner * tiles.wide};"
            )
            writer.line(f"const {tiles.kind} *first = {tiles.biases} + t0 * {tiles.wide};")
            writer.line(f"{tiles.kind} *to = y + {tiles.start} + t0 * {tiles.wide};")
            with writer.block(f"for (long q = 0; q < {pairs}; q++)"):
                _emit_pair(writer, tiles, 2, tiles.start, False)
                step = 2 * tiles.lanes
                writer.line(f"w += {step}; first += {step}; to += {step};")
            if single:
                left = tiles.start + 2 * pairs * tiles.lanes
                _emit_pair(writer, tiles, single, left, tiles.count == 1)


def _emit_pair(writer: Writer, tiles: _Tiles, vectors: int, left: int, last: bool) -> None:
    """Write one or two vectors of sums for some rows."""
    kind, lanes, sets = tiles.kind, tiles.lanes, tiles.sets
    whole = tiles.inner // sets * sets
    sums = [(row, one) for row in range(_ROWS) for one in range(vectors)]
    writer.line("{")
    for row, one in sums:
        writer.line(f"v{kind} a{row}_{one} = {tiles.load(f'first + {one * lanes}')};")
    for number in range(sets):
        name = "a" if number == 0 else "b"
        if number:
            writer.line("{")
            for row, one in sums:
                writer.line(f"v{kind} b{row}_{one} = {{0}};")
        ranges = [(number, whole, sets)]
        if number == 0 and whole < tiles.inner:
            ranges.append((whole, tiles.inner, 1))
        for begin, end, step in ranges:
            with writer.block(f"for (long k = {begin}; k < {end}; k += {step})"):
                for one in range(vectors):
                    place = f"w + k * {tiles.wide} + {one * lanes}"
                    writer.line(f"const v{kind} w{one} = {tiles.load(place)};")
                for row in range(_ROWS):
                    writer.line(f"const {kind} s{row} = x[{row * tiles.inner} + k];")
                for row, one in sums:
                    writer.line(f"{name}{row}_{one} += s{row} * w{one};")
        if number:
            for row, one in sums:
                writer.line(f"a{row}_{one} += b{row}_{one};")
            writer.line("}")
    for row, one in sums:
        place = f"to + {row * tiles.outer + one * lanes}"
        tiles.store(writer, left + one * lanes, place, f"a{row}_{one}", last)
    writer.line("}")


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
