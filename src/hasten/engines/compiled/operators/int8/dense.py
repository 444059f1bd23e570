"""Fast C for convolutions of bytes that sum over channels: pointwise, k x k, grouped, fully connected.

A tile is some pixels times some vectors of output channels, whose sums stay in registers: for each few
channels of the input, a pixel's are put into all lanes of a vector, and multiplied with the weights of as many
output channels as there are lanes. Pixels go through in chunks: a chunk is widened to 16 bits first where the
processor multiplies such (unless it has VNNI), then each block of output channels takes all its tiles. At
the end a chunk's bytes, which are in the cache, go through the tables and the residual.

One C function answers a range of output rows and of blocks of channels, so that threads may share either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8 import amx, arm, point_sums, short_sums, winograd
from hasten.engines.compiled.operators.int8.definition import Convolution
from hasten.engines.compiled.operators.int8.layouts import Block, Layout, whole
from hasten.engines.compiled.operators.int8.quads import grouped
from hasten.engines.compiled.operators.int8.tiles import End, Tile, packed_together
from hasten.engines.compiled.operators.int8.words import include
from hasten.engines.compiled.tensors import ALIGNMENT, MOST_BYTES, product
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_PIXELS = ({1: 6, 2: 6, 3: 4, 4: 3}, {1: 8, 2: 8, 3: 8, 4: 7})
"""Largest number of pixels of a tile for each number of vectors, with 16 registers and with 32."""
_ARM_PIXELS = {"dots": {1: 8, 2: 8, 3: 7, 4: 5}, "matrices": {1: 8, 2: 8, 3: 6, 4: 6}}
"""Pixels of a tile with the 32 registers of ARM, which also hold bytes of each pixel."""

_TILES = {"": Tile, "dots": arm.Dots, "matrices": arm.Matrices}


class Table:
    """A layer's constants, one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[tuple[int, int, Callable[[Array], None]]] = []

    def add(self, array: Array) -> int:
        """Add an array; return its place in bytes, aligned."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self.add_later(content.size, lambda room: np.copyto(room, content))

    def add_later(self, size: int, fill: Callable[[Array], None]) -> int:
        """Add some bytes, which a function writes when all are stored; return their place, aligned."""
        place = self.size
        self._parts.append((place, size, fill))
        self.size += whole(size)
        return place

    def store(self, writer: Writer) -> str:
        """Store all of it; return a pointer in C."""
        pointer, room = writer.table_of(self.size)
        for place, size, fill in self._parts:
            fill(room[place : place + size])
        return pointer


def emit_rows(conv: Convolution, writer: Writer) -> bool:
    """Write a pointwise convolution of all rows at once; return whether it is one."""
    if not conv.pointwise:
        return False
    layout = _laid_out(conv, writer)
    if layout.direct and layout.ragged:
        return False
    _emit(layout, writer, f"n * {product(conv.size)}" if writer.plan.by_row else None)
    return True


def emit(conv: Convolution, writer: Writer) -> None:
    """Write the convolution of one row."""
    _emit(_laid_out(conv, writer), writer, None)


def _laid_out(conv: Convolution, writer: Writer) -> Layout:
    """Return the layout for the processor that a plan is written for, and for the convolution's weights."""
    layout = Layout.of(conv, writer)
    if layout.weights > MOST_BYTES:
        raise IntegrityError(f"the plan asks for more than {MOST_BYTES / 1e6:,.0f} MB of tables")
    if not short_sums.possible(layout):
        return layout
    short = replace(layout, quads=True, short=())
    parts = list(_parts(short, writer))
    quads = tuple(grouped(part[g]) for g in range(short.groups) for part in parts)
    return replace(short, short=quads) if short_sums.faster(quads, layout) else layout


def _emit(layout: Layout, writer: Writer, pixels: str | None) -> None:
    """Write calls for parts of the rows or of the blocks of channels; `pixels` are those of all rows."""
    conv = layout.conv
    include(writer, layout.points or "int16" in (conv.given_type, conv.made_type))
    if layout.points:
        writer.part("winograd.c")
    if layout.short:
        writer.part("short_sums.c")
    if layout.rows:
        writer.part("amx.c")
    if layout.arm:
        writer.part("arm.c")
    table = Table()
    name = _rows(layout, writer, table)
    x, y = writer.read(conv.input), writer.write(conv.output)
    t = table.store(writer)
    r = writer.read(conv.residual) if conv.residual else "0"
    s = writer.scratch("uint8", sum(layout.scratch), apart=True)
    count = pixels or str(layout.lines)
    line_in, line_out = layout.line
    item = layout.made_bytes
    copied = layout.points or any(conv.pads) or (layout.direct and layout.ragged)
    if copied:
        size = layout.row_numbers(layout.chunk_rows) + ALIGNMENT
        padded = writer.scratch(conv.given_type, size, apart=True)
    if layout.by_channels:
        share, first, last = writer.share(layout.units), "0", count
    else:
        share = writer.share(count, layout.together)
    with share as (begin, end):
        units = f"{begin}, {end}" if layout.by_channels else f"0, {layout.units}"
        if not layout.by_channels:
            first, last = begin, end

        def call(source: str, row: str, rows: str) -> str:
            residual = f"{r} + {row} * {line_out}" if conv.residual else "0"
            target = f"(u8 *){y} + {row} * {line_out * item}"
            return (
                f"{name}((const u8 *)({source}), {target}, {residual}, {rows}, {units}, {t}, {s});"
            )

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
        return f"__builtin_memcpy({padded}, {x} + row * {c}, rows * {c * layout.given_bytes});"
    taps = (conv.kernel[0] - 1) * conv.dilations[0] + 1
    return (
        f"{'pad_rows' if layout.given_bytes == 1 else 'pad_words'}({padded}, {x}, row * {conv.strides[0]}, (rows - 1) * {conv.strides[0]} + {taps}, "
        f"{conv.size[0]}, {conv.size[1] * c}, {conv.pads[1] * c}, {conv.pads[3] * c}, {conv.pads[0]}, "
        f"{conv.zero});"
    )


def _rows(layout: Layout, writer: Writer, table: Table) -> str:
    """Write the function of a range of rows and blocks, and fill the layer's table; return its name.

    Its arguments are padded rows, output rows, the residual's rows, how many output rows, the first block of
    channels and the one behind the last, the layer's table, and memory that it may use. For a pointwise
    layer each row is one pixel. Where bytes are multiplied as they are, up to 7 behind the padded rows are
    read, if `ragged`.
    """
    conv, steps = layout.conv, layout.steps
    outs, item = conv.channels[1], layout.made_bytes
    places = [table.add(part) for part in (_end(conv), layout.places, _scales(layout, writer))]
    blocks = layout.blocks
    if layout.short:
        weights = _short(layout, table)
    else:
        item_bytes = 2 if layout.mode == "words" else 1
        at_weights = table.add_later(layout.weights * item_bytes, partial(_pack, layout, writer))
        size = steps.dots * layout.wide // (1 if layout.quads or layout.mode == "words" else 2)
        weights = f"{at_weights} + o * {size}l"
    body = [
        "static void @(const u8 *restrict x, u8 *restrict y, const u8 *restrict r, long rows, long first, "
        "long last, const u8 *restrict t, u8 *restrict s) {",
        f"const struct end *e = (const struct end *)t; const i32 *at = (const i32 *)(t + {places[1]});",
        f"const u8 *f = t + {_at_table(layout, writer, table)};",
    ]
    chunk, pixels = layout.chunk_rows, layout.chunk_pixels // layout.chunk_rows
    if layout.rows:
        body.append(
            f"struct matrices set = {{}}; matrices_for(&set, {layout.rows}, {layout.deep});"
        )
    body += [
        f"for (long row = 0; row < rows; row += {chunk}) {{",
        f"const long some = rows - row < {chunk} ? rows - row : {chunk}, m = some * {pixels};",
        *_chunk(layout),
        "for (long unit = first; unit < last; unit++) {",
        f"const long g = unit / {len(blocks)}, k = unit % {len(blocks)};",
        f"const long v = {_first(layout, 'k')}, o = g * {sum(b.vectors for b in blocks)} + v;",
        f"u8 *to = y + (row * {pixels * outs} + g * {layout.outs} + v * {layout.lanes}) * {item};",
        f"const u8 *from = z + g * {layout.ins * layout.item};",
        f"const u8 *b = t + {places[2]} + o * {(3 if conv.slope else 2) * layout.wide}, *w = t + {weights};",
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
        if layout.points:
            end, most = End.of(conv, layout.permutes), _tile_pixels(layout, block)
            line = point_sums.line(layout, block, end, most, writer)
            body.append(f"{line}(from, w, b, e, f, to, some, s + {layout.scratch[0]});")
        elif layout.rows:
            line = amx.line(layout, block, writer)
            body.append(f"{line}(from, at, w, b, e, f, to, m, &set, s + {layout.scratch[0]});")
        else:
            line = _line(layout, block, writer)
            body.append(f"{line}(from, at, {weights}, b, e, f, to, m);")
        body.append("}")
    body.append("}")
    body += _finish(layout, writer, table)
    body += ["}", "MATRIX_END();" if layout.rows else "", "}"]
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
    if layout.points:
        return point_sums.chunk(layout, first)
    if layout.direct:
        return [f"const u8 *z = x + {first} * {layout.item};"]
    if layout.pointwise:
        count = f"some * {line}"
    else:
        taps = (conv.kernel[0] - 1) * conv.dilations[0] + 1
        count = f"((some - 1) * {conv.strides[0]} + {taps}) * {line}"
    return [f"widen((i16 *)s, x + {first}, {count});", "const u8 *z = s;"]


def _at_table(layout: Layout, writer: Writer, table: Table) -> int:
    """Return the place of the table that follows the rounding; 0 without one."""
    name = layout.conv.table
    return table.add(_differences(writer.constant(name), layout.wide)) if name else 0


def _finish(layout: Layout, writer: Writer, table: Table) -> list[str]:
    """Return C that sends a chunk's bytes through the tables and the residual."""
    conv = layout.conv
    calls = []
    if conv.table and not layout.permutes:
        calls.append("look_up(o, count, f);")
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
    end = End.of(conv, layout.permutes)
    most = _tile_pixels(layout, block)
    item = layout.made_bytes
    head = "const u8 *x, const i32 *at, const u8 *w, const u8 *b, const struct end *e, const u8 *f, u8 *y"

    def tile(pixels: int) -> str:
        kind = short_sums.ShortTile if layout.short else _TILES[layout.arm]
        one = kind(
            pixels,
            block.vectors,
            block.channels,
            layout.wide,
            conv.channels[1],
            layout.steps,
            layout.mode == "bytes" and not layout.quads,
            end,
            layout.arm != "" or (pixels == most and layout.wide > 16),
            "dot" if conv.given_type == "uint8" else "dot16",
            layout.half(block),
        )
        name = writer.static("tile", f"static void @({head}) {{\n{one.text}\n}}")
        return f"{name}(x, at, w, b, e, f, y);"

    step = conv.channels[1] * item
    return writer.static(
        "line",
        f"static __attribute__((noinline)) void @({head}, long m) {{\n"
        f"const long whole = m;\n"
        f"for (; m >= {most}; m -= {most}, at += {most}, y += {most * step})\n"
        f"{tile(most)}\n"
        f"if (m && whole >= {most}) {{\n"  # the last ones, of which some are there already
        f"at -= {most} - m; y -= ({most} - m) * {step}; {tile(most)}\n"
        f"}} else for (; m; m--, at++, y += {step}) {tile(1)}\n}}",
    )


def _tile_pixels(layout: Layout, block: Block) -> int:
    """Return the pixels of a block's tiles: with many registers, as many as divide a chunk best."""
    if layout.short:
        return short_sums.PIXELS[block.vectors]
    most = _ARM_PIXELS.get(layout.arm, _PIXELS[layout.wide == 64])[block.vectors]
    if layout.wide < 64:
        return most
    pixels = layout.tiles if layout.points else layout.chunk_pixels
    return min(range(most, most - 3, -1), key=lambda one: -(-pixels // one) * one)


def _end(conv: Convolution) -> Array:
    """Return the numbers of C's `struct end`."""
    numbers = [0, 0, 255, 0, 0, 0, 0, 255]
    rounding = conv.rounding if conv.words is None else conv.words
    if rounding is not None:
        numbers[:3] = [rounding.zero, rounding.low, rounding.high]
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
        packed = packed_together(block.vectors, layout.half(block))
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
    """Return bias, scale and slope, if any, of each lane, block by block, as int32; the bias includes the zero."""
    conv = layout.conv
    weight = writer.constant(conv.weight).reshape(conv.channels[1], -1)
    zero = conv.zero - writer.byte_shift * (layout.arm == "dots")
    bias = writer.constant(conv.bias).astype(np.int64) - zero * weight.sum(1, np.int64)
    numbers = [bias.astype(np.int32)]
    numbers += [writer.constant(name).view(np.int32) for name in (conv.scale, conv.slope) if name]
    found = np.zeros((layout.groups, layout.outs + 1, len(numbers)), np.int32)
    for place, each in enumerate(numbers):
        found[:, :-1, place] = each.reshape(layout.groups, -1)
    parts = [
        found[:, order].transpose(0, 3, 1, 2).reshape(layout.groups, -1)
        for order in _orders(layout)
    ]
    return np.concatenate(parts, axis=1)


def _short(layout: Layout, table: Table) -> str:
    """Store each block's quads; return C for the place of a unit's."""
    places = np.array(layout.steps.places)
    parts = [quads.packed(places) for quads in layout.short or ()]
    starts = np.cumsum([0, *(part.size for part in parts)]).astype(np.int32)
    at_starts = table.add(starts)
    return f"{table.add(np.concatenate(parts))} + ((const i32 *)(t + {at_starts}))[unit]"


def _parts(layout: Layout, writer: Writer) -> Iterator[Array]:
    """Yield the weights of some vectors at a time: int8 or int16 of shape (groups, dots, vectors, lanes, each)."""
    steps, each, groups = layout.steps, layout.each, layout.groups
    runs, dots = steps.down * steps.across, steps.run // layout.item // each
    given = _merged(layout, writer)
    if layout.points:
        given = winograd.weights(given[0])[None]
    given = given.reshape(groups, layout.outs, runs, -1)
    at_once = 2 if layout.rows else 4
    for order in _orders(layout):
        for first in range(0, len(order), at_once):
            own = order[first : first + at_once]
            known = own < layout.outs
            part = np.zeros((groups, *own.shape, runs, dots * each), given.dtype)
            part[:, known, :, : given.shape[-1]] = given[:, own[known]]
            yield part.reshape(groups, *own.shape, runs * dots, each).transpose(0, 3, 1, 2, 4)


def _pack(layout: Layout, writer: Writer, room: Array) -> None:
    """Write the weights in the order in which tiles read them."""
    packed = room.view(np.int16 if layout.mode == "words" else np.int8).reshape(layout.groups, -1)
    place = 0
    for part in _parts(layout, writer):
        count = part.size // layout.groups
        packed[:, place : place + count].reshape(part.shape)[...] = part
        place += count


def _differences(table: Array, wide: int) -> Array:
    """Return a table with what C's `look_up` reads behind it."""
    parts = table.reshape(16, 16).copy()
    parts[1:8] ^= table.reshape(16, 16)[:7]
    parts[9:] ^= table.reshape(16, 16)[8:15]
    return np.concatenate([table, np.tile(parts, (1, wide // 16)).ravel()])
