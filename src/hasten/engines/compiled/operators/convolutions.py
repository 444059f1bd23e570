"""Convolutions of small pictures and sequences.

Channels lie one after the other, as in ONNX. The picture is copied with its pads, split into what each
step of the stride reads; then each tap of the kernel is one offset, and sums run along the flat picture
in vectors, for some channels at once. The few sums between the lines are thrown away.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map, emit_program
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, product
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_PARTS = 4
"""Parts that units of work are to be even for: those of two threads."""
_MOST_STRIPS = 8
"""Largest number of strips that a picture is cut into for threads."""
_MOST_SIZE = 1 << 24
"""Largest number of elements along an axis."""
_MOST_PADDED = 1 << 36
"""Largest number of elements of all pictures with their pads: what is copied within minutes."""
_MOST_PARTS = 4096
"""Largest number of parts that a picture is split into, each of which is a statement: a stride of 64 in both ways."""
_MOST_UNROLLED = 32
"""Largest number of taps that are written one after the other; more are a loop."""
_MOST_AT_ONCE = 6
"""Largest number of channels whose sums are made at once, from the same numbers of the picture."""
_VECTORS = {1: 8, 2: 4, 3: 3, 4: 2, 5: 2, 6: 2}
"""Vectors of sums for a number of channels at once, so that they stay in registers."""


@dataclass(frozen=True)
class Conv(Operation):
    """`output = after(convolution(input, weight) + bias)`, with all but the input constant.

    Attributes:
        input: Tensor of `channels[0] x size[0] x size[1]` numbers; a sequence has a height of 1.
        weight: Constant of `channels[1] x (channels[0] / groups) x kernel[0] x kernel[1]` numbers.
        bias: Constant of `channels[1]` numbers; "" without one.
        output: Tensor of `channels[1] x output_size[0] x output_size[1]` numbers.
        channels: Channels that are read and written.
        groups: Groups of channels, each of which sees its own only.
        size: Height and width of the picture.
        kernel: Height and width of the kernel.
        strides: Steps down and to the right.
        dilations: Distances of the kernel's taps.
        pads: Zeros at the top, left, bottom and right.
        pictures: Pictures for one row of the batch, one behind the other.
        after: Program over one number, done to each result; empty for none.
    """

    task: ClassVar[Kind] = "arithmetic"

    input: str
    weight: str
    bias: str
    output: str
    channels: tuple[int, int]
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    pictures: int = 1
    after: tuple[Step, ...] = ()

    splits: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, self.weight, *((self.bias,) if self.bias else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (
            (self.size[at] + self.pads[at] + self.pads[at + 2] - self._reach(at) - 1)
            // self.strides[at]
            + 1
            for at in (0, 1)
        )
        return high, wide

    def _reach(self, at: int) -> int:
        """Distance of a kernel's last tap from its first."""
        return (self.kernel[at] - 1) * self.dilations[at]

    @property
    def work(self) -> int:
        taps = product(self.kernel) * (self.channels[0] // self.groups)
        return self.pictures * product(self.output_size) * self.channels[1] * taps

    def check(self, plan: Plan) -> None:
        given = (*self.channels, self.groups, *self.size, *self.kernel, self.pictures)
        ones = (*given, *self.strides, *self.dilations)
        if min(*ones) < 1 or min(self.pads) < 0 or max(*ones, *self.pads) > _MOST_SIZE:
            self.refuse("a size is out of bounds")
        padded = [self.size[at] + self.pads[at] + self.pads[at + 2] for at in (0, 1)]
        if any(self._reach(at) >= padded[at] for at in (0, 1)):
            self.refuse("its kernel is larger than the picture")
        area = (padded[0] + self.strides[0]) * (padded[1] + self.strides[1])
        if self.channels[0] * area > 4 * _MOST_SIZE:
            self.refuse("the picture is too large")
        if self.pictures * self.channels[0] * area > _MOST_PADDED:
            self.refuse("it would copy its pictures with their pads for too long")
        parts = [min(self.kernel[at], self.strides[at]) for at in (0, 1)]
        if product(parts) > _MOST_PARTS:
            self.refuse(f"strides of {self.strides} for a kernel of {self.kernel}")
        if product(self.kernel) > _MOST_SIZE or any(one % self.groups for one in self.channels):
            self.refuse(f"{self.channels} channels in {self.groups} groups")
        dtype = self.constant(plan, self.weight).dtype
        if dtype not in ("float32", "float64"):
            self.refuse(f"of {dtype}")
        taps = self.channels[0] // self.groups * product(self.kernel)
        sizes = [
            (self.input, self.pictures * self.channels[0] * product(self.size)),
            (self.weight, self.channels[1] * taps),
            (self.output, self.pictures * self.channels[1] * product(self.output_size)),
        ]
        if self.bias:
            self.constant(plan, self.bias)
            sizes.append((self.bias, self.channels[1]))
        self.check_sizes(plan, dtype, *sizes)
        if self.after and programs.check(self.after, (dtype,)) != dtype:
            self.refuse("its program gives another type")

    def followed(self, second: Map) -> Conv | None:
        """Return it with a map on its results done at once, which keeps their type; None where it has one."""
        if self.after:
            return None
        return replace(self, output=second.output.tensor, after=second.steps)

    def emit(self, writer: Writer) -> None:
        with writer.loops((self.pictures,), name="z"):
            _Emission(self, writer).emit()


class _Emission:
    """Convolution that is being written as C.

    Args:
        conv: The convolution.
        writer: Where to.
    """

    def __init__(self, conv: Conv, writer: Writer) -> None:
        self.conv, self.writer = conv, writer
        self.dtype = writer.plan.tensor(conv.weight).dtype
        self.kind = C_TYPES[self.dtype]
        self.lanes = writer.lanes(np.dtype(self.dtype))
        self.ins, self.outs = (channels // conv.groups for channels in conv.channels)
        rows, columns = (
            -(-(conv.size[at] + conv.pads[at] + conv.pads[at + 2]) // conv.strides[at])
            for at in (0, 1)
        )
        self.line = columns
        (down, top), (right, left) = (
            np.divmod(np.arange(conv.kernel[at]) * conv.dilations[at], conv.strides[at])
            for at in (0, 1)
        )
        (tops, upper), (lefts, inner) = (np.unique(one, return_inverse=True) for one in (top, left))
        self.phases = list(itertools.product(tops.tolist(), lefts.tolist()))
        self.plane = rows * columns
        self.channel = self.plane * len(self.phases)
        upper = upper * len(lefts) * self.plane + down * columns
        self.offsets = (upper[:, None] + inner * self.plane + right).ravel()
        high, wide = conv.output_size
        self.flat = (high - 1) * columns + wide
        self.strips = 1

    def emit(self) -> None:
        conv, writer = self.conv, self.writer
        weight = writer.constant(conv.weight).reshape(conv.groups, self.outs, self.ins, -1)
        bias = writer.constant(conv.bias) if conv.bias else np.zeros(conv.channels[1], self.dtype)
        bias = bias.reshape(conv.groups, self.outs)
        tiles = -(-self.outs // _MOST_AT_ONCE)
        most = -(-self.outs // tiles)
        fewer = tiles * most - self.outs
        forms = [(most, tiles - fewer), (most - 1, fewer)]
        vectors = {channels: self._vectors(channels) for channels, count in forms if count}
        widest = max(vectors.values()) * self.lanes
        source = f"({writer.read(conv.input)} + z0 * {conv.channels[0] * product(conv.size)})"
        if conv.strides != (1, 1) or any(conv.pads) or self.flat < widest:
            source = self._emit_padded(source, widest)
        results = writer.scratch(self.dtype, most * self._results(widest), apart=True)
        self.strips = self._strips(tiles, widest) if writer.shared else 1
        start = done = 0
        if self.strips > 1:  # one thread has nothing to gain by them
            writer.line(f"const long strips = me->threads > 1 ? {self.strips} : 1;")
        with writer.share(self._units(conv.groups * tiles)) as share:
            for channels, count in forms:
                if count:
                    units = conv.groups * count
                    bounds = share
                    if fewer:
                        bounds = writer.clip(share, self._units(done), self._units(units))
                    at = (bounds, start, channels, count, vectors[channels])
                    self._emit_channels(source, results, weight, bias, *at)
                    start += channels * count
                    done += units

    def _units(self, tiles: int) -> str:
        """Return how many units of work some tiles of channels are, in C."""
        return f"{tiles} * strips" if self.strips > 1 else str(tiles)

    def _strips(self, tiles: int, widest: int) -> int:
        """Return how many strips of lines a picture is cut into for threads: little waste, even parts.

        No strip has fewer sums than the widest tile, so that none reads beyond the picture.
        """
        high, wide = self.conv.output_size
        units = self.conv.groups * tiles

        def cost(strips: int) -> float:
            ends = [strip * high // strips for strip in range(strips + 1)]
            flat = [(end - top - 1) * self.line + wide for top, end in itertools.pairwise(ends)]
            if min(flat) < widest:
                return math.inf
            parts = -(-units * strips // _PARTS) * _PARTS / (units * strips)
            return parts * sum(-(-one // widest) for one in flat)

        most = min(high, _MOST_STRIPS)
        return min(range(1, most + 1), key=cost) if self.flat >= widest else 1

    def _vectors(self, channels: int) -> int:
        """Return how many vectors of sums a tile of some channels has: as few wasted as possible."""
        needed = -(-self.flat // self.lanes)
        most = min(_VECTORS[channels], needed)
        return min(range(most - most // 3, most + 1), key=lambda n: (-(-needed // n) * n, -n))

    def _results(self, widest: int) -> int:
        return max(self.flat, widest)

    def _emit_padded(self, source: str, slack: int) -> str:
        """Write the copy of the picture with its pads; return a pointer to it."""
        conv, writer = self.conv, self.writer
        made = writer.scratch(self.dtype, conv.channels[0] * self.channel + slack)
        with writer.shared_loop("ch", conv.channels[0]):
            writer.line(f"const {self.kind} *from = {source} + ch * {product(conv.size)};")
            writer.line(f"{self.kind} *to = {made} + ch * {self.channel};")
            if any(conv.pads):
                writer.line(f"for (long i = 0; i < {self.channel}; i++) to[i] = 0;")
            for number, phase in enumerate(self.phases):
                (top, high), (left, wide) = (self._covered(at, phase[at]) for at in (0, 1))
                if high <= top or wide <= left:
                    continue
                first = [
                    place * stride + part - pad
                    for place, stride, part, pad in zip(
                        (top, left), conv.strides, phase, conv.pads[:2], strict=True
                    )
                ]
                into = number * self.plane + top * self.line + left
                with writer.block(f"for (long i = 0; i < {high - top}; i++)"):
                    writer.line("#pragma GCC ivdep")
                    with writer.block(f"for (long j = 0; j < {wide - left}; j++)"):
                        place = f"({first[0]} + i * {conv.strides[0]}) * {conv.size[1]}"
                        place += f" + {first[1]} + j * {conv.strides[1]}"
                        writer.line(f"to[{into} + i * {self.line} + j] = from[{place}];")
        return made

    def _covered(self, at: int, part: int) -> tuple[int, int]:
        """Return the range of places, every so-manieth of the padded axis, that lie in the picture."""
        stride, pad, size = self.conv.strides[at], self.conv.pads[at], self.conv.size[at]
        low = max(0, -(-(pad - part) // stride))
        return low, -(-(size + pad - part) // stride)

    def _emit_channels(
        self,
        source: str,
        results: str,
        weight: Array,
        bias: Array,
        bounds: tuple[str, str],
        start: int,
        at_once: int,
        count: int,
        vectors: int,
    ) -> None:
        """Write all groups' channels from one on, in tiles of some at once."""
        conv, writer, kind = self.conv, self.writer, self.kind
        part = weight[:, start : start + count * at_once]
        taps = part.shape[-1]
        packed = part.reshape(conv.groups, count, at_once, self.ins, taps).transpose(0, 1, 3, 4, 2)
        weights = writer.table(np.ascontiguousarray(packed))
        biases = writer.table(np.ascontiguousarray(bias[:, start : start + count * at_once]))
        step = vectors * self.lanes
        with writer.block(f"for (long u = {bounds[0]}; u < {bounds[1]}; u++)"):
            unit = "u / strips" if self.strips > 1 else "u"
            writer.line(f"const long t = {unit}, g0 = t / {count}, g1 = t % {count};")
            begin, flat = self._emit_strip()
            writer.line(f"const {kind} *first = {biases} + t * {at_once};")
            writer.line(f"const long last = {flat} > {step} ? {flat} - {step} : 0;")
            with writer.block(f"for (long f = 0; f < {flat}; f += {step})"):
                writer.line(f"const long at = {begin} + (f < last ? f : last);")
                writer.line(f"const {kind} *w = {weights} + t * {self.ins * taps * at_once};")
                place = f"g0 * {self.ins * self.channel} + at"
                writer.line(f"const {kind} *x = {source} + {place};")
                self._emit_sums(results, at_once, vectors, taps, step)
            self._emit_results(results, start, at_once, step)

    def _emit_strip(self) -> tuple[str, str]:
        """Write which lines a unit of work is of; return its first sum, and the number of them."""
        high, wide = self.conv.output_size
        if self.strips == 1:
            return "0", str(self.flat)
        self.writer.line("const long strip = u % strips;")
        self.writer.line(f"const long top = strip * {high} / strips;")
        self.writer.line(f"const long end = (strip + 1) * {high} / strips;")
        return f"top * {self.line}", f"((end - top - 1) * {self.line} + {wide})"

    def _emit_sums(self, results: str, at_once: int, vectors: int, taps: int, step: int) -> None:
        """Write one tile: some channels and some vectors along the flat picture."""
        writer, kind, lanes = self.writer, self.kind, self.lanes
        sums = [(one, part) for one in range(at_once) for part in range(vectors)]
        for one, part in sums:
            writer.line(f"v{kind} a{one}_{part} = first[{one}] - (v{kind}){{0}};")
        unrolled = taps <= _MOST_UNROLLED
        with writer.block(f"for (long k = 0; k < {self.ins}; k++)"):
            if unrolled:
                for tap, offset in enumerate(self.offsets.tolist()):
                    self._emit_tap(str(offset), f"{tap * at_once}", at_once, vectors)
            else:
                offsets = writer.table(self.offsets.astype(np.int32))
                with writer.block(f"for (long tap = 0; tap < {taps}; tap++)"):
                    self._emit_tap(f"{offsets}[tap]", f"tap * {at_once}", at_once, vectors)
            writer.line(f"x += {self.channel}; w += {taps * at_once};")
        flat = self._results(step)
        for one, part in sums:
            place = f"{results} + {one * flat + part * lanes} + at"
            writer.line(f"*(v{kind}_u *)({place}) = a{one}_{part};")

    def _emit_tap(self, offset: str, weight: str, at_once: int, vectors: int) -> None:
        writer, kind = self.writer, self.kind
        writer.line("{")
        for part in range(vectors):
            place = f"x + {offset} + {part * self.lanes}"
            writer.line(f"const v{kind} x{part} = *(const v{kind}_u *)({place});")
        for one in range(at_once):
            writer.line(f"const {kind} w{one} = w[{weight} + {one}];")
            for part in range(vectors):
                writer.line(f"a{one}_{part} += w{one} * x{part};")
        writer.line("}")

    def _emit_results(self, results: str, start: int, at_once: int, step: int) -> None:
        """Write the copy of a tile's channels to the output, without what lies between the lines."""
        conv, writer, kind = self.conv, self.writer, self.kind
        high, wide = conv.output_size
        target = f"{writer.write(conv.output)} + z0 * {conv.channels[1] * high * wide}"
        top, end = ("top", "end") if self.strips > 1 else ("0", str(high))
        apart = self.line != wide
        lines = (top, end) if apart else ("0", "1")
        columns = ("0", str(wide)) if apart else (f"{top} * {wide}", f"{end} * {wide}")
        channel = f"g0 * {self.outs} + {start} + g1 * {at_once} + o"
        with writer.block(f"for (long o = 0; o < {at_once}; o++)"):
            writer.line(f"const {kind} *from = {results} + o * {self._results(step)};")
            writer.line(f"{kind} *to = {target} + ({channel}) * {high * wide};")
            with writer.block(f"for (long i = {lines[0]}; i < {lines[1]}; i++)"):
                writer.line("#pragma GCC ivdep")
                with writer.block(f"for (long j = {columns[0]}; j < {columns[1]}; j++)"):
                    writer.line(f"const {kind} v0 = from[i * {self.line} + j];")
                    result = emit_program(writer, conv.after, [self.dtype])
                    writer.line(f"to[i * {wide} + j] = {result};")
