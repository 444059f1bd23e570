"""Fast C for convolutions of bytes that sum over channels: pointwise, k x k, grouped, fully connected.

A tile is some pixels times some vectors of output channels, whose sums stay in registers: for each few
channels of the input, a pixel's are put into all lanes of a vector, and multiplied with the weights of as many
output channels as there are lanes. Pixels go through in chunks: a chunk is widened to 16 bits first where the
processor multiplies such (unless it has VNNI), then each block of output channels takes all its tiles. At
the end a chunk's bytes, which are in the cache, go through the tables and the residual.

One C function answers a range of output rows and of blocks of channels, so that threads may share either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.tiles import End, Steps, Tile
from hasten.engines.compiled.plan import ALIGNMENT, MOST_BYTES, product
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.convolutions import Conv8
    from hasten.engines.compiled.source import Writer

_CHUNK_PIXELS = 48
"""Pixels for which weights come from a farther cache once."""
_FEW_PIXELS = 100
"""Pixels below which each thread computes some channels of all pixels."""
_MOST_ROWS = 24
"""Rows of a batch that are computed at once where a layer is pointwise."""
_CHUNK_BYTES = 96 << 10
"""Most bytes of a chunk that is read again for each block of channels."""
_PIXELS = ({1: 6, 2: 6, 3: 4, 4: 3}, {1: 6, 2: 6, 3: 6, 4: 6})
"""Pixels of a tile for each number of vectors, with 16 registers and with 32."""
_WIDE_WEIGHTS = 24 << 10
"""Most weights of a layer that are kept in 16 bits; others are widened while they run."""


@dataclass(frozen=True)
class Block:
    """Output channels whose sums stay in registers together.

    Attributes:
        vectors: Vectors of channels.
        channels: Channels that there are; the others of the vectors are nothing.
    """

    vectors: int
    channels: int


@dataclass(frozen=True)
class Layout:
    """How a convolution's work is laid out for a processor.

    Attributes:
        conv: The convolution.
        wide: Bytes of a vector.
        quads: Whether four bytes are multiplied at once, by VNNI; else two numbers of 16 bits.
        pixels: Most pixels of the input that come at once, of all rows of a batch.
    """

    conv: Conv8
    wide: int
    quads: bool
    pixels: int

    @classmethod
    def of(cls, conv: Conv8, writer: Writer) -> Layout:
        """Return the layout for the processor that a plan is written for."""
        isa = writer.isa
        wide = 64 if "avx512bw" in isa else 32 if "avx2" in isa else 16
        quads = ("avx512_vnni" if wide == 64 else "avx_vnni") in isa
        return cls(conv, wide, quads, product(conv.size) * (_MOST_ROWS if writer.plan.by_row else 1))

    @property
    def lanes(self) -> int:
        """Output channels of a vector."""
        return self.wide // 4

    @property
    def each(self) -> int:
        """Numbers of the input that a dot product takes."""
        return 4 if self.quads else 2

    @property
    def item(self) -> int:
        """Bytes of a number of the input where tiles read it."""
        return 1 if self.quads else 2

    @cached_property
    def merged(self) -> int:
        """Groups that are computed as one, with weights of zero between them, to fill vectors."""
        ins, outs = (channels // self.conv.groups for channels in self.conv.channels)
        taps = product(self.conv.kernel)

        def cost(merged: int) -> int:
            vectors = -(-merged * outs // self.lanes)
            return self.conv.groups // merged * vectors * (taps * -(-merged * ins // self.each) + 8)

        most = min(self.conv.groups, 2 * self.lanes)
        return min((one for one in range(1, most + 1) if self.conv.groups % one == 0), key=cost)

    @property
    def groups(self) -> int:
        """Groups after some were merged."""
        return self.conv.groups // self.merged

    @property
    def ins(self) -> int:
        """Channels that a group reads."""
        return self.conv.channels[0] // self.groups

    @property
    def outs(self) -> int:
        """Channels that a group writes."""
        return self.conv.channels[1] // self.groups

    @cached_property
    def steps(self) -> Steps:
        """Runs of bytes that a pixel's sums read."""
        conv = self.conv
        pitch = conv.padded_size[1] * conv.channels[0]
        down = conv.dilations[0] * pitch * self.item
        if self.groups > 1 or conv.dilations[1] > 1:
            right = conv.dilations[1] * conv.channels[0] * self.item
            return Steps(*conv.kernel, self._run(self.ins), down, right)
        across = conv.kernel[1] * conv.channels[0]
        if across == pitch and conv.dilations[0] == 1 or conv.kernel[0] == 1:
            return Steps(1, 1, self._run(across * conv.kernel[0]), 0, 0)
        return Steps(conv.kernel[0], 1, self._run(across), down, 0)

    def _run(self, count: int) -> int:
        return -(-count // self.each) * 4

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of a group: all alike but the last two."""
        vectors = -(-self.outs // self.lanes)
        fours, rest = divmod(vectors, 4)
        if rest in (1, 2) and fours:
            fours, rest = fours - 1, rest + 4
        last = {0: (), 5: (3, 2), 6: (3, 3)}.get(rest, (rest,))
        sizes = [*(4,) * fours, *last]
        ends = np.minimum(np.cumsum(sizes) * self.lanes, self.outs)
        counts = np.diff(ends, prepend=0).tolist()
        return tuple(Block(size, count) for size, count in zip(sizes, counts, strict=True))

    @property
    def units(self) -> int:
        """Blocks of all groups."""
        return self.groups * len(self.blocks)

    @property
    def pointwise(self) -> bool:
        """Whether pixels are read one after the other, so that rows don't matter."""
        conv = self.conv
        return product((*conv.kernel, *conv.strides)) == 1 and not any(conv.pads)

    @cached_property
    def chunk_rows(self) -> int:
        """Output rows of a chunk; of a pointwise layer, pixels."""
        high, wide = self.conv.output_size
        if self.pointwise:
            most = _CHUNK_BYTES // (self.conv.channels[0] * self.item) // 12 * 12
            return min(self.pixels, max(12, min(most, _CHUNK_PIXELS)))
        rows = 1
        while (
            rows < high
            and rows * wide < _CHUNK_PIXELS
            and self.row_bytes(rows + 1) * self.item <= _CHUNK_BYTES
        ):
            rows += 1
        return rows

    @property
    def lines(self) -> int:
        """Output rows; of a pointwise layer, pixels."""
        return product(self.conv.output_size) if self.pointwise else self.conv.output_size[0]

    @property
    def line(self) -> tuple[int, int]:
        """Bytes of the input, and numbers of the output, from one of `lines` to the next."""
        conv = self.conv
        if self.pointwise:
            return conv.channels
        down = conv.strides[0] * conv.padded_size[1] * conv.channels[0]
        return down, conv.output_size[1] * conv.channels[1]

    @property
    def by_channels(self) -> bool:
        """Whether threads share blocks of channels, not rows: where pixels are few."""
        return product(self.conv.output_size) < _FEW_PIXELS and self.units > 3

    @property
    def ragged(self) -> bool:
        """Whether a run's last dot product takes bytes behind it."""
        conv = self.conv
        across = self.ins if self.steps.across > 1 or self.groups > 1 else 0
        return bool((across or conv.kernel[1] * conv.channels[0]) % self.each)

    def row_bytes(self, rows: int) -> int:
        """Bytes of the padded input that some output rows read."""
        conv = self.conv
        if self.pointwise:
            return rows * conv.channels[0]
        high = (rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilations[0] + 1
        return high * conv.padded_size[1] * conv.channels[0]

    @property
    def chunk_pixels(self) -> int:
        """Pixels of a chunk."""
        return self.chunk_rows * (1 if self.pointwise else self.conv.output_size[1])

    @cached_property
    def weights(self) -> int:
        """Weights as they are packed, with zeros."""
        vectors = sum(block.vectors for block in self.blocks)
        return self.groups * vectors * self.steps.dots * self.wide // self.item

    @cached_property
    def mode(self) -> str:
        """How weights are kept: "words", "bytes", or "widened" for a chunk, block by block."""
        if self.quads:
            return "bytes"
        if self.weights <= _WIDE_WEIGHTS:
            return "words"
        return "widened" if product(self.conv.output_size) > 6 else "bytes"

    @property
    def places(self) -> Array:
        """Byte of each pixel of a chunk relative to the chunk's first one, as int32."""
        conv = self.conv
        right = conv.strides[1] * conv.channels[0] * self.item
        if self.pointwise:
            return np.arange(self.chunk_pixels, dtype=np.int32) * right
        down = conv.strides[0] * conv.padded_size[1] * conv.channels[0] * self.item
        rows, columns = np.arange(self.chunk_rows), np.arange(conv.output_size[1])
        return (rows[:, None] * down + columns * right).astype(np.int32).ravel()

    @property
    def scratch(self) -> tuple[int, int]:
        """Bytes of memory for the widened chunk, and for a block's widened weights."""
        chunk = 0 if self.quads else self.row_bytes(self.chunk_rows) * 2
        block = max(block.vectors for block in self.blocks) * self.steps.dots * self.wide
        return _whole(chunk + ALIGNMENT), block if self.mode == "widened" else 0


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Table:
    """A layer's constants, one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: Array) -> int:
        """Add an array; return its place in bytes, aligned."""
        place = self.size
        content = np.ascontiguousarray(array).tobytes()
        self.parts.append(content + bytes(_whole(len(content)) - len(content)))
        self.size += len(self.parts[-1])
        return place

    @property
    def content(self) -> Array:
        """All bytes, as uint8."""
        return np.frombuffer(b"".join(self.parts), np.uint8)


def emit_rows(conv: Conv8, writer: Writer) -> bool:
    """Write a pointwise convolution of all rows at once; return whether it is one."""
    layout = Layout.of(conv, writer)
    if not layout.pointwise or (layout.quads and layout.ragged):
        return False
    _emit(layout, writer, f"n * {product(conv.size)}" if writer.plan.by_row else None)
    return True


def emit(conv: Conv8, writer: Writer) -> None:
    """Write the convolution of one row."""
    _emit(Layout.of(conv, writer), writer, None)


def _emit(layout: Layout, writer: Writer, pixels: str | None) -> None:
    """Write calls for parts of the rows or of the blocks of channels; `pixels` are those of all rows."""
    conv = layout.conv
    if layout.weights > MOST_BYTES:
        raise IntegrityError(f"the plan asks for more than {MOST_BYTES / 1e6:,.0f} MB of tables")
    writer.part("dense8.c", WIDE=layout.wide, QUADS=int(layout.quads))
    table = Table()
    name = _rows(layout, writer, table)
    x, y = writer.read(conv.input), writer.write(conv.output)
    t = writer.table(table.content)
    r = writer.read(conv.residual) if conv.residual else "0"
    s = writer.scratch("uint8", sum(layout.scratch), apart=True)
    count = pixels or str(layout.lines)
    line_in, line_out = layout.line
    item = 4 if conv.rounding is None else 1
    copied = any(conv.pads) or (layout.quads and layout.ragged)
    if copied:
        padded = writer.scratch("uint8", layout.row_bytes(layout.chunk_rows) + ALIGNMENT, apart=True)
    if layout.by_channels:
        share, first, last = writer.share(layout.units), "0", count
    else:
        share = writer.share(count, 12 if layout.pointwise else 1)
    with share as (begin, end):
        units = f"{begin}, {end}" if layout.by_channels else f"0, {layout.units}"
        if not layout.by_channels:
            first, last = begin, end

        def call(source: str, row: str, rows: str) -> str:
            residual = f"{r} + {row} * {line_out}" if conv.residual else "0"
            target = f"(u8 *){y} + {row} * {line_out * item}"
            return f"{name}({source}, {target}, {residual}, {rows}, {units}, {t}, {s});"

        if not copied:
            writer.line(call(f"{x} + {first} * {line_in}", first, f"{last} - {first}"))
            return
        chunk = layout.chunk_rows
        with writer.block(f"for (long row = {first}; row < {last}; row += {chunk})"):
            writer.line(f"const long rows = {last} - row < {chunk} ? {last} - row : {chunk};")
            writer.line(_padding(layout, padded, x))
            writer.line(call(padded, "row", "rows"))


def _padding(layout: Layout, padded: str, x: str) -> str:
    """Return the call that copies what `rows` output rows from `row` on read, with pads."""
    conv, c = layout.conv, layout.conv.channels[0]
    if layout.pointwise:
        return f"__builtin_memcpy({padded}, {x} + row * {c}, rows * {c});"
    taps = (conv.kernel[0] - 1) * conv.dilations[0] + 1
    return (
        f"pad_rows({padded}, {x}, row * {conv.strides[0]}, (rows - 1) * {conv.strides[0]} + {taps}, "
        f"{conv.size[0]}, {conv.size[1] * c}, {conv.pads[1] * c}, {conv.pads[3] * c}, {conv.pads[0]}, "
        f"{conv.zero});"
    )


def _rows(layout: Layout, writer: Writer, table: Table) -> str:
    """Write the function of a range of rows and blocks, and fill the layer's table; return its name.

    Its arguments are padded rows, output rows, the residual's rows, how many output rows, the first block of
    channels and the one behind the last, the layer's table, and memory that it may use. For a pointwise
    layer each row is one pixel. With VNNI up to 3 bytes behind the padded rows are read, if `ragged`.
    """
    conv, steps = layout.conv, layout.steps
    outs, item = conv.channels[1], 4 if conv.rounding is None else 1
    places = [table.add(part) for part in (_end(conv), layout.places, _scales(layout, writer))]
    at_weights = table.add(_weights(layout, writer))
    blocks = layout.blocks
    size = steps.dots * layout.wide // (1 if layout.quads or layout.mode == "words" else 2)
    body = [
        "static void @(const u8 *restrict x, u8 *restrict y, const u8 *restrict r, long rows, long first, "
        "long last, const u8 *restrict t, u8 *restrict s) {",
        f"const struct end *e = (const struct end *)t; const i32 *at = (const i32 *)(t + {places[1]});",
    ]
    chunk, pixels = layout.chunk_rows, layout.chunk_pixels // layout.chunk_rows
    body += [
        f"for (long row = 0; row < rows; row += {chunk}) {{",
        f"const long some = rows - row < {chunk} ? rows - row : {chunk}, m = some * {pixels};",
        *_chunk(layout),
        "for (long unit = first; unit < last; unit++) {",
        f"const long g = unit / {len(blocks)}, k = unit % {len(blocks)};",
        f"const long v = {_first(layout, 'k')}, o = g * {sum(b.vectors for b in blocks)} + v;",
        f"u8 *to = y + (row * {pixels * outs} + g * {layout.outs} + v * {layout.lanes}) * {item};",
        f"const u8 *from = z + g * {layout.ins * layout.item};",
        f"const u8 *b = t + {places[2]} + o * {2 * layout.wide}, *w = t + {at_weights} + o * {size}l;",
    ]
    for block in dict.fromkeys(blocks):
        which = " || ".join(f"k == {k}" for k, one in enumerate(blocks) if one == block)
        if block == blocks[0] and blocks.count(block) > 2:
            which = f"k < {blocks.count(block)}"
        body.append(f"if ({which}) {{")
        weights = "w"
        if layout.mode == "widened":
            count = block.vectors * steps.dots * layout.wide // 2
            body.append(f"widen_weights(s + {layout.scratch[0]}, w, {count});")
            weights = f"s + {layout.scratch[0]}"
        body.append(f"{_line(layout, block, writer)}(from, at, {weights}, b, e, to, m);")
        body.append("}")
    body.append("}")
    body += _finish(layout, writer, table)
    body += ["}", "}"]
    return writer.static("dense", "\n".join(body))


def _first(layout: Layout, k: str) -> str:
    """Return C for the first vector of a block of a group by its number."""
    sizes = [block.vectors for block in layout.blocks]
    ends = f" - ({k} == {len(sizes) - 1}) * {sizes[0] - sizes[-2]}" if len(sizes) > 2 else ""
    return f"{k} * {sizes[0]}{ends}"


def _chunk(layout: Layout) -> list[str]:
    """Return C that makes `z` the chunk as tiles read it."""
    conv = layout.conv
    line = conv.channels[0] * (1 if layout.pointwise else conv.padded_size[1])
    first = f"row * {line * (1 if layout.pointwise else conv.strides[0])}"
    if layout.quads:
        return [f"const u8 *z = x + {first};"]
    if layout.pointwise:
        count = f"some * {line}"
    else:
        taps = (conv.kernel[0] - 1) * conv.dilations[0] + 1
        count = f"((some - 1) * {conv.strides[0]} + {taps}) * {line}"
    return [f"widen((i16 *)s, x + {first}, {count});", "const u8 *z = s;"]


def _finish(layout: Layout, writer: Writer, table: Table) -> list[str]:
    """Return C that sends a chunk's bytes through the tables and the residual."""
    conv = layout.conv
    calls = []
    if conv.table:
        calls.append(
            f"look_up(o, count, t + {table.add(_differences(writer.constant(conv.table), layout.wide))});"
        )
    if conv.sum is not None:
        calls.append("add_residual(o, r + (o - y), count, e);")
    if conv.last:
        calls.append(
            f"look_up(o, count, t + {table.add(_differences(writer.constant(conv.last), layout.wide))});"
        )
    if not calls:
        return []
    outs, blocks = conv.channels[1], len(layout.blocks)
    pixels = layout.chunk_pixels // layout.chunk_rows

    def channel(unit: str) -> str:
        first = _first(layout, f"({unit} % {blocks})")
        return f"{unit} / {blocks} * {layout.outs} + ({first}) * {layout.lanes}"

    return [
        f"const long c0 = {channel('first')}, c1 = {channel('last')};",
        f"const long lines = c1 - c0 == {outs} ? 1 : m, count = lines == 1 ? m * (c1 - c0) : c1 - c0;",
        f"u8 *o = y + row * {pixels * outs} + c0;",
        f"for (long line = 0; line < lines; line++, o += {outs}) {{ {' '.join(calls)} }}",
    ]


def _line(layout: Layout, block: Block, writer: Writer) -> str:
    """Write the function of a block for a chunk's pixels; return its name."""
    conv = layout.conv
    end = End.of(conv)
    most = _PIXELS[layout.wide == 64][block.vectors]
    item = 4 if end.floats else 1
    head = "const u8 *x, const i32 *at, const u8 *w, const u8 *b, const struct end *e, u8 *y"

    def tile(pixels: int) -> str:
        one = Tile(
            pixels,
            block.vectors,
            block.channels,
            layout.wide,
            conv.channels[1],
            layout.steps,
            layout.mode == "bytes" and not layout.quads,
            end,
            pixels == most,
        )
        name = writer.static("tile", f"static void @({head}) {{\n{one.text}\n}}")
        return f"{name}(x, at, w, b, e, y);"

    tails = "".join(f"case {pixels}: {tile(pixels)} break;\n" for pixels in range(1, most))
    return writer.static(
        "line",
        f"static __attribute__((noinline)) void @({head}, long m) {{\n"
        f"for (; m >= {most}; m -= {most}, at += {most}, y += {most * conv.channels[1] * item})\n"
        f"{tile(most)}\nswitch (m) {{\n{tails}}}\n}}",
    )


def _end(conv: Conv8) -> Array:
    """Return the numbers of C's `struct end`."""
    numbers = [0, 0, 255, 0, 0, 0, 0, 255]
    if conv.rounding is not None:
        numbers[:3] = [conv.rounding.zero, conv.rounding.low, conv.rounding.high]
    if conv.sum is not None:
        first, second = (factor & 0xFFFF for factor in conv.sum.factors)
        factors = first | second << 16
        numbers[3:] = [factors, conv.sum.offset, conv.sum.shift, conv.sum.low, conv.sum.high]
    return np.array(numbers, np.int64).astype(np.int32)


def _merged(layout: Layout, writer: Writer) -> Array:
    """Return the weights as int8 of shape (groups, outs, taps down, across, ins), after merging."""
    conv, merged = layout.conv, layout.merged
    ins, outs = (channels // conv.groups for channels in conv.channels)
    given = writer.constant(conv.weight).reshape(-1, merged, outs, *conv.kernel, ins)
    if merged == 1:
        return given[:, 0]
    found = np.zeros((layout.groups, merged, outs, *conv.kernel, merged, ins), np.int8)
    for one in range(merged):
        found[:, one, ..., one, :] = given[:, one]
    return found.reshape(layout.groups, layout.outs, *conv.kernel, layout.ins)


def _order(layout: Layout, block: Block, start: int) -> Array:
    """Return the channel of each lane of a block's vectors, in its group; `outs` for none."""
    lanes = layout.lanes
    order = np.arange(block.vectors * lanes).reshape(block.vectors, lanes)
    if layout.conv.rounding is not None:
        packed = block.vectors // 2 * 2
        if packed:
            together = order[:packed].reshape(-1, packed, 4)
            order[:packed] = together.transpose(1, 0, 2).reshape(packed, lanes)
    return np.where(order < block.channels, order + start, layout.outs)


def _orders(layout: Layout) -> list[Array]:
    starts = np.cumsum([0, *(block.channels for block in layout.blocks)]).tolist()
    return [
        _order(layout, block, start) for block, start in zip(layout.blocks, starts, strict=False)
    ]


def _scales(layout: Layout, writer: Writer) -> Array:
    """Return bias and scale of each lane, block by block, as int32; the zero is within the bias."""
    conv = layout.conv
    weight = writer.constant(conv.weight).reshape(conv.channels[1], -1)
    bias = writer.constant(conv.bias).astype(np.int64) - conv.zero * weight.sum(1, np.int64)
    scale = writer.constant(conv.scale)
    found = np.zeros((layout.groups, layout.outs + 1, 2), np.int32)
    found[:, :-1, 0] = bias.astype(np.int32).reshape(layout.groups, -1)
    found[:, :-1, 1] = scale.view(np.int32).reshape(layout.groups, -1)
    parts = [
        found[:, order].transpose(0, 3, 1, 2).reshape(layout.groups, -1)
        for order in _orders(layout)
    ]
    return np.concatenate(parts, axis=1)


def _weights(layout: Layout, writer: Writer) -> Array:
    """Return the weights in the order in which tiles read them."""
    steps, each = layout.steps, layout.each
    runs = steps.down * steps.across
    given = _merged(layout, writer).reshape(layout.groups, layout.outs, runs, -1)
    whole = np.zeros((layout.groups, layout.outs + 1, runs, steps.run // 4 * each), np.int8)
    whole[:, :-1, :, : given.shape[-1]] = given
    whole = whole.reshape(layout.groups, layout.outs + 1, runs, -1, each)
    parts = [
        whole[:, order].transpose(0, 3, 4, 1, 2, 5).reshape(layout.groups, -1)
        for order in _orders(layout)
    ]
    packed = np.concatenate(parts, axis=1)
    return packed.astype(np.int16) if layout.mode == "words" else packed


def _differences(table: Array, wide: int) -> Array:
    """Return a table with what C's `look_up` reads behind it."""
    parts = table.reshape(16, 16).copy()
    parts[1:8] ^= table.reshape(16, 16)[:7]
    parts[9:] ^= table.reshape(16, 16)[8:15]
    return np.concatenate([table, np.tile(parts, (1, wide // 16)).ravel()])
