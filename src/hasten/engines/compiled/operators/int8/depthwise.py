"""Convolutions of bytes in which each channel sees itself alone.

Some rows of the picture are laid side by side ("braided"), so that a channel's taps in them are neighbours:
two numbers of 16 bits, or four bytes where the processor has dot products of bytes. One instruction then
multiplies and adds those taps of a column for a vector of channels. A braid serves all rows of results that
see it, and none of the work between the first load and the sums is a permutation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.epilogue import ChannelSums, Epilogue, laned_channels
from hasten.engines.compiled.tensors import product

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.definition import Convolution
    from hasten.engines.compiled.writer import Writer

_MOST_TAPS = 64
"""Largest number of taps that are written one after the other."""
_MOST_PRODUCTS = 640
"""Largest number of vectors of products in the text of one tile."""
_MANY_ROWS = 28
"""Rows of results from which threads share rows; of fewer, they share channels."""
_TILE = 8
"""Largest number of pixels of a row that are computed at once, each in a register; half as many where strides make them
read more columns than they have products."""
_STRIP_BYTES = 128 << 10
"""Memory of the rows that a call reads, a part of a core's second cache."""
_RING_BYTES = 24 << 10
"""Memory that braids may take: a part of a core's first cache."""
_LEAST_CHANNELS = 8
"""Largest number of channels that are read at once if there are no more: pixels of fewer need room after the last."""


_CROSSED_TILE = 4
"""Pixels of a row that are computed at once from braids in registers."""


def supported(conv: Convolution) -> bool:
    """Whether a convolution can be written so."""
    return conv.depthwise and product(conv.kernel) <= _MOST_TAPS and max(conv.kernel) <= 16


@dataclass(frozen=True)
class Run:
    """Blocks of channels that the same C computes.

    Attributes:
        start: First channel.
        blocks: Number of blocks one behind the other.
        wide: Bytes of a vector.
        parts: Vectors of sums in a block: 1, 2 or 4.
        tile: Pixels in a row that are computed at once.
    """

    start: int
    blocks: int
    wide: int
    parts: int
    tile: int

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return self.parts * self.wide // 4

    @property
    def order(self) -> list[int]:
        """Channel of each sum of a block, counted from the block's first."""
        return laned_channels(self.wide) if self.parts == 4 else list(range(self.channels))


@dataclass(frozen=True)
class Braids:
    """Which rows lie side by side, and where each tap is found.

    Attributes:
        taps: Rows of a braid.
        step: Rows from a braid's first to the next one's.
        period: Rows of results after which all is as before, some braids on.
        places: For each row of a period, its first braid.
        offsets: Braids, counted from that one, of which sums are made.
    """

    taps: int
    step: int
    period: int
    places: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, conv: Convolution, taps: int) -> Braids:
        """Choose the step for which a row of results needs the fewest braids."""
        steps = (taps, 2) if taps > 2 else (taps,)
        return min((cls._with(conv, taps, step) for step in steps), key=lambda one: one.cost)

    @classmethod
    def _with(cls, conv: Convolution, taps: int, step: int) -> Braids:
        period = step // np.gcd(step, conv.strides[0])
        places, offsets = [], set()
        for row in range(int(period)):
            found = cls._covering(conv, taps, step, row)
            places.append(found[0])
            offsets |= {one - found[0] for one in found}
        return cls(taps, step, int(period), tuple(places), tuple(sorted(offsets)))

    @staticmethod
    def _covering(conv: Convolution, taps: int, step: int, row: int) -> list[int]:
        """Return the braids in which a row of results finds all its taps."""
        found: list[int] = []
        for tap in range(conv.kernel[0]):
            at = row * conv.strides[0] + tap * conv.dilations[0]
            if not found or at >= found[-1] * step + taps:
                found.append(at // step)
        return found

    @property
    def cost(self) -> float:
        """Braids that are read for a row of results, and a little for making them."""
        return len(self.offsets) + 0.4 * self.taps / self.step

    @property
    def count(self) -> int:
        """Braids that are kept at a time."""
        return max(self.places) + self.offsets[-1] + 1

    def weights(self, conv: Convolution, weight: Array) -> Array:
        """Return weights of shape (period, braids, columns, channels, taps), 0 where a braid has no tap.

        Args:
            conv: The convolution.
            weight: int8 of shape (channels, *kernel).
        """
        shape = (self.period, len(self.offsets), conv.kernel[1], len(weight), self.taps)
        made = np.zeros(shape, np.int8)
        for row, place in enumerate(self.places):
            left = set(range(conv.kernel[0]))
            for number, offset in enumerate(self.offsets):
                for tap in sorted(left):
                    first = (place + offset) * self.step
                    at = row * conv.strides[0] + tap * conv.dilations[0] - first
                    if 0 <= at < self.taps:
                        made[row, number, :, :, at] = weight[:, tap].T
                        left.remove(tap)
        return made


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution that is written as a C function of some rows of results.

    The function reads rows of the picture as they are, or, of a convolution without pads and with the padded
    size, rows of the padded picture. It writes rows of results one behind the other.

    Attributes:
        writer: Where to.
        conv: The convolution; see `supported`.
    """

    writer: Writer
    conv: Convolution

    @cached_property
    def braids(self) -> Braids:
        """Layout of rows side by side."""
        return Braids.of(self.conv, self.writer.byte_taps)

    @cached_property
    def runs(self) -> list[Run]:
        """Blocks of all channels; the last ones of a picture may overlap others."""
        runs: list[Run] = []
        channels, start = self.conv.channels[0], 0
        for wide in self.writer.byte_widths:
            blocks = (channels - start) // wide
            if blocks:
                runs.append(self._run(start, blocks, wide, 4))
                start += blocks * wide
        while start < channels:
            parts = 2 if channels - start > wide // 4 and channels >= wide // 2 else 1
            first = max(0, min(start, channels - parts * wide // 4))
            runs.append(self._run(first, 1, wide, parts))
            start = first + parts * wide // 4
        return runs

    def _crossed(self, run: Run) -> bool:
        """Whether a tile braids its own columns in registers.

        With a step of 2 few results share a braid, and storing it takes longer than making it again.
        """
        conv, braids = self.conv, self.braids
        one = (braids.taps, braids.period, len(braids.offsets), run.parts) == (4, 1, 1, 4)
        near = conv.kernel[1] <= 3 and conv.strides[1] == 2 and conv.dilations == (1, 1)
        return one and near and self._registers == 32

    @property
    def _registers(self) -> int:
        """Vectors that registers hold."""
        return 32 if self.writer.byte_widths[0] == 64 or self.writer.byte_shift else 16

    @property
    def blocks(self) -> int:
        """Number of blocks of channels."""
        return sum(run.blocks for run in self.runs)

    def _run(self, start: int, blocks: int, wide: int, parts: int) -> Run:
        most = _TILE if self.conv.strides[1] == 1 or self.conv.kernel[1] > 3 else _TILE // 2
        across = self.conv.output_size[1]
        run = Run(start, blocks, wide, parts, -(-across // -(-across // most)))
        if self._crossed(run):
            return replace(run, tile=min(across, _CROSSED_TILE))
        return run

    def _across(self, run: Run) -> int:
        """Return how many pixels of a row are computed from braids of some columns."""
        conv, wide = self.conv, self.conv.output_size[1]
        column = self.braids.count * run.parts * run.wide * conv.strides[1]
        most = max(run.tile, _RING_BYTES // column)
        strips = -(-wide // most)
        return min(wide, -(-wide // strips // run.tile) * run.tile)

    def _columns(self, across: int) -> int:
        """Return the columns of the picture that some neighbouring results see."""
        conv = self.conv
        return (across - 1) * conv.strides[1] + (conv.kernel[1] - 1) * conv.dilations[1] + 1

    @property
    def _ring_bytes(self) -> int:
        """Memory for braids, or for the columns of a tile with pads."""
        return max(
            self.conv.kernel[0] * self._columns(run.tile) * run.wide
            if self._crossed(run)
            else self.braids.count * self._columns(self._across(run)) * run.parts * run.wide
            for run in self.runs
        )

    @property
    def scratch_bytes(self) -> int:
        """Memory that a call needs: braids, and a row of pads."""
        pads = self.conv.pads
        return self._ring_bytes + (self._pitch + _LEAST_CHANNELS if pads[0] or pads[2] else 0)

    @property
    def _pitch(self) -> int:
        """Bytes of a row of the picture."""
        return self.conv.size[1] * self.conv.channels[0]

    @property
    def rows_at_once(self) -> int:
        """Rows of results that a call should have, so that what all blocks of channels read stays near."""
        strips = -(-product(self.conv.size) * self.conv.channels[0] // _STRIP_BYTES)
        period, high = self.braids.period, self.conv.output_size[0]
        return min(high, -(-high // strips // period) * period)

    def rows_of(self, rows: int) -> int:
        """Return how many rows some neighbouring rows of results see, pads among them."""
        conv = self.conv
        return (rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilations[0] + 1

    def call(
        self,
        *,
        x: str,
        y: str,
        top: str,
        rows: str,
        present: tuple[str, str],
        scratch: str,
        residual: str = "",
        blocks: tuple[str, str] | None = None,
    ) -> str:
        """Write the function, and return a statement that calls it.

        Args:
            x: C expression of a pointer to where the picture's first row is, or would be.
            y: C expression of a pointer to the first of these rows of results.
            top: C expression of the number of that row.
            rows: C expression of the number of rows of results.
            present: C expressions of the first row of the picture that is there, and of the one behind the
                last; those beyond are taken for pads.
            scratch: Pointer to `scratch_bytes` of aligned memory.
            residual: C expression of a pointer to the residual of the row `top`; "" for none.
            blocks: C expressions of the first block of channels and the one behind the last; None for all.
        """
        writer, conv = self.writer, self.conv
        kind = "u8" if conv.rounding else "float"
        name = writer.define(
            f"const u8 *restrict x, {kind} *restrict y, const u8 *residual, long top, long rows, long low, "
            "long high, long begin_block, long end_block, u8 *restrict ring, const u8 *weights, const i32 *biases, const float *scales, "
            "const float *slopes, const u8 *table, const u8 *last",
            self._emit,
        )
        constants = self._tables()
        tables = (writer.read(one) if one else "0" for one in (conv.table, conv.last))
        bounds = (*present, *(blocks or ("0", str(self.blocks))))
        given = (x, y, residual or "0", top, rows, *bounds, scratch, *constants, *tables)
        return f"{name}({', '.join(given)});"

    def _tables(self) -> list[str]:
        """Keep weights, biases, scales and slopes in the order of blocks and sums; return pointers to them."""
        conv, writer = self.conv, self.writer
        channels = conv.channels[0]
        weight = writer.constant(conv.weight).reshape(channels, *conv.kernel)
        taps = self.braids.weights(conv, weight)
        kind = np.int8 if self.braids.taps == 4 else np.int16
        whole = weight.astype(np.int64).reshape(channels, -1).sum(1)
        zero = conv.zero - writer.byte_shift
        bias = (writer.constant(conv.bias) - zero * whole).astype(np.int32)
        numbers = [bias, writer.constant(conv.scale)]
        if conv.slope:
            numbers.append(writer.constant(conv.slope))
        made: list[list[Array]] = [[] for _ in (taps, *numbers)]
        for run in self.runs:
            for block in range(run.blocks):
                own = run.start + block * run.channels + np.array(run.order)
                beyond = own >= channels
                own = np.minimum(own, channels - 1)
                part = np.where(beyond[:, None], 0, taps[:, :, :, own]).astype(kind)
                # (period, braids, columns, channels of all parts, taps): a part is a vector
                made[0].append(part.view(np.uint8).ravel())
                for to, each in zip(made[1:], numbers, strict=True):
                    to.append(np.where(beyond, 0, each[own]).astype(each.dtype))
        pointers = [writer.table(np.concatenate(one)) for one in made]
        return pointers if conv.slope else [*pointers, "0"]

    def _emit(self) -> None:
        """Write the function's body."""
        writer, conv = self.writer, self.conv
        writer.line(f"const long seen = (rows - 1) * {conv.strides[0]} + {self.rows_of(1)};")
        writer.line(f"const long above = top * {conv.strides[0]} - {conv.pads[0]};")
        if conv.pads[0] or conv.pads[2]:
            writer.line(f"u8 *blank = ring + {self._ring_bytes};")
            writer.line(f"__builtin_memset(blank, {conv.zero}, {self._pitch + _LEAST_CHANNELS});")
        else:
            writer.line(f"const u8 *blank = x + low * {self._pitch};")
        done = sums = before = 0
        for run in self.runs:
            block = product(self._shape(run))
            first, last = (
                f"MAX(begin_block - {before}, 0)",
                f"MIN(end_block - {before}, {run.blocks})",
            )
            before += run.blocks
            with writer.block(f"for (long block0 = {first}; block0 < {last}; block0++)"):
                writer.line(f"const u8 *w = weights + {done} + block0 * {block};")
                writer.line(f"const i32 *bias = biases + {sums} + block0 * {run.channels};")
                writer.line(f"const float *scale = scales + {sums} + block0 * {run.channels};")
                if conv.slope:
                    writer.line(f"const float *slope = slopes + {sums} + block0 * {run.channels};")
                writer.line(f"const long channel = {run.start} + block0 * {run.channels};")
                if self._crossed(run):
                    self._emit_crossed(run)
                else:
                    self._emit_block(run)
            done += run.blocks * block
            sums += run.blocks * run.channels

    def _shape(self, run: Run) -> tuple[int, ...]:
        """Return rows of a period, braids, columns, parts and bytes of a block's weights."""
        braids = self.braids
        columns = self.conv.kernel[1]
        return (braids.period, len(braids.offsets), columns, run.parts, run.wide)

    def _emit_block(self, run: Run) -> None:
        """Write one block of channels: strips of columns, and all rows of each."""
        conv, writer, braids = self.conv, self.writer, self.braids
        across, wide = self._across(run), conv.output_size[1]
        columns = self._columns(across)
        size = columns * run.parts * run.wide
        with writer.loops((-(-wide // across),), name="strip"):
            last = wide - across
            writer.line(
                f"const long left = strip0 * {across} < {last} ? strip0 * {across} : {last};"
            )
            self._emit_edges(run, columns, size)
            writer.line("long made = 0;")
            with writer.block(f"for (long row = 0; row < rows; row += {braids.period})"):
                ahead = braids.period * conv.strides[0] // braids.step
                writer.line(f"const long first = row / {braids.period} * {ahead};")
                with writer.block(
                    f"for (; made < first + {braids.count} && made * {braids.step} < seen; made++)"
                ):
                    self._emit_braid(run, size)
                with writer.block(
                    f"for (long phase = 0; phase < {braids.period} && row + phase < rows; phase++)"
                ):
                    self._emit_row(run, size, across)

    def _emit_crossed(self, run: Run) -> None:
        """Write one block of channels, row by row; a tile's columns get their pads in a copy."""
        conv, writer = self.conv, self.writer
        high, wide, columns = conv.kernel[0], conv.output_size[1], self._columns(run.tile)
        rows = [f"r{tap}" for tap in range(high)]
        with writer.block("for (long row = 0; row < rows; row++)"):
            writer.line(f"const u8 *of[{high}];")
            with writer.loops((high,), name="tap"):
                writer.line(f"const long v = above + row * {conv.strides[0]} + tap0;")
                writer.line(
                    f"of[tap0] = (v >= low && v < high ? x + v * {self._pitch} : blank) + channel;"
                )
            with writer.loops((-(-wide // run.tile),), name="tile"):
                last = wide - run.tile
                writer.line(
                    f"const long at = tile0 * {run.tile} < {last} ? tile0 * {run.tile} : {last};"
                )
                writer.line(f"const long start = at * {conv.strides[1]} - {conv.pads[1]};")
                pointers = ", ".join(
                    f"*{name} = of[{tap}] + start * {conv.channels[0]}"
                    for tap, name in enumerate(rows)
                )
                writer.line(f"const u8 {pointers}; long step = {conv.channels[0]};")
                with writer.block(f"if (start < 0 || start + {columns} > {conv.size[1]})"):
                    writer.line(
                        f"framed_{run.wide}(ring, of, {high}, start, {columns}, {conv.size[1]}, "
                        f"{conv.channels[0]}, {conv.zero});"
                    )
                    copies = "".join(
                        f"{name} = ring + {tap * columns * run.wide}; "
                        for tap, name in enumerate(rows)
                    )
                    writer.line(f"{copies}step = {run.wide};")
                writer.line("const u8 *own = w;")
                self._emit_tile_at(run, f"row * {wide} + at")

    def _emit_crossed_sums(self, run: Run) -> None:
        """Write the sums of a tile, column by column, with braids in registers."""
        conv, writer, wide = self.conv, self.writer, run.wide
        parts = range(run.parts)
        for part in parts:
            writer.line(f"const vi_{wide} bias{part} = loaded_{wide}(bias + {part * wide // 4});")
            for pixel in range(run.tile):
                writer.line(f"vi_{wide} a{pixel}_{part} = bias{part};")
        kept = range(conv.kernel[1] * run.parts // 2)  # the others come from memory
        places = [at * wide for at in range(conv.kernel[1] * run.parts)]
        for one in kept:
            writer.line(f"const vi_{wide} w{one} = loaded_{wide}(own + {places[one]});")
        rows = [f"r{tap}" for tap in range(conv.kernel[0])]
        given = ", ".join((*rows, *rows[-1:] * (4 - len(rows))))
        more = " ".join(f"{name} += step;" for name in rows)
        for column in range(self._columns(run.tile)):
            with writer.block(""):
                names = ", ".join(f"x{part}" for part in parts)
                writer.line(f"vi_{wide} {names};")
                to = ", ".join(f"&x{part}" for part in parts)
                writer.line(f"crossed_{wide}({to}, {given}, {len(rows)});")
                for pixel in range(run.tile):
                    tap = column - pixel * conv.strides[1]
                    if not 0 <= tap < conv.kernel[1]:
                        continue
                    for part in parts:
                        one, name = tap * run.parts + part, f"a{pixel}_{part}"
                        if one in kept:
                            writer.line(f"{name} = dotted_{wide}({name}, x{part}, w{one});")
                        else:
                            writer.line(
                                f"{name} = dotted_at_{wide}({name}, x{part}, own + {places[one]});"
                            )
            writer.line(more)

    def _emit_edges(self, run: Run, columns: int, size: int) -> None:
        """Write which columns of the strip are the picture's; the braids' others are pads from the start on.

        A strip may lie within the pads, so that no column is.
        """
        conv, writer, step = self.conv, self.writer, run.parts * run.wide
        wide, pad = conv.size[1], conv.pads[1]
        writer.line(f"const long start = left * {conv.strides[1]} - {pad};")
        writer.line(f"const long begin = MIN(MAX(-start, 0), {columns});")
        writer.line(f"const long end = MAX(MIN({wide} - start, {columns}), begin);")
        writer.line(f"const long first_seen = MAX(MIN(start + begin, {wide - 1}), 0);")
        writer.line(f"const long from = first_seen * {conv.channels[0]} + channel;")
        if conv.pads[1] or conv.pads[3]:
            with writer.loops((self.braids.count,), name="slot"):
                writer.line(f"u8 *slot = ring + slot0 * {size};")
                for first, behind in (("0", "begin"), ("end", str(columns))):
                    writer.line(
                        f"filled_{run.wide}(slot + {first} * {step}, ({behind} - {first}) * {run.parts}, {conv.zero});"
                    )

    def _emit_braid(self, run: Run, size: int) -> None:
        """Write one braid; a row that isn't seen never counts, so another may stand for it."""
        writer, braids = self.writer, self.braids
        writer.line(f"const u8 *of[{braids.taps}];")
        with writer.loops((braids.taps,), name="tap"):
            writer.line(f"const long at = made * {braids.step} + tap0, v = above + at;")
            writer.line(
                f"of[tap0] = (at < seen && v >= low && v < high ? x + v * {self._pitch} : blank) + from;"
            )
        writer.line(
            f"braided_{run.wide}(ring + made % {braids.count} * {size} + begin * {run.parts * run.wide}, "
            f"of, end - begin, {self.conv.channels[0]}, {run.parts});"
        )

    def _emit_row(self, run: Run, size: int, across: int) -> None:
        """Write one row of results, tile by tile."""
        conv, writer, braids = self.conv, self.writer, self.braids
        places = "".join(f", {place}" for place in braids.places)[2:]
        if braids.period > 1:
            writer.line(f"static const i32 places[] = {{{places}}};")
            writer.line("const long base = first + places[phase];")
        else:
            writer.line(f"const long base = first + {places};")
        for number, offset in enumerate(braids.offsets):
            writer.line(
                f"const u8 *b{number} = ring + (base + {offset}) % {braids.count} * {size};"
            )
        phase = product(self._shape(run)[1:])
        writer.line(f"const u8 *own = w + phase * {phase};")
        with writer.loops((-(-across // run.tile),), name="tile"):
            last = across - run.tile
            writer.line(
                f"const long at = tile0 * {run.tile} < {last} ? tile0 * {run.tile} : {last};"
            )
            self._emit_tile_at(run, f"(row + phase) * {conv.output_size[1]} + left + at")

    def _emit_tile_at(self, run: Run, pixel: str) -> None:
        """Write a tile whose first pixel has a number, an expression of C."""
        conv, writer = self.conv, self.writer
        writer.line("HERE(own);")
        place = f"({pixel}) * {conv.channels[0]} + channel"
        writer.line(f"{'u8' if conv.rounding else 'float'} *to = y + {place};")
        if conv.residual:
            writer.line(f"const u8 *more = residual + {place};")
        self._emit_tile(run)

    def _emit_tile(self, run: Run) -> None:
        """Write some pixels of a row, one vector of channels after the other, and then what becomes of them."""
        conv, writer, lanes = self.conv, self.writer, run.wide // 4
        end = Epilogue(
            *(run.wide, conv.rounding, conv.sum, "to", "scale"),
            slope="slope" if conv.slope else "",
            residual="more" if conv.residual else "",
            table="table" if conv.table else "",
            last="last" if conv.last else "",
        )
        parts = [
            [
                ChannelSums(
                    f"a{pixel}_{part}",
                    pixel * conv.channels[0] + part * lanes,
                    part * lanes,
                    min(lanes, conv.channels[0] - part * lanes),
                )
                for part in range(run.parts)
            ]
            for pixel in range(run.tile)
        ]
        crossed = self._crossed(run)
        if crossed:
            self._emit_crossed_sums(run)
        else:
            for number in range(len(self.braids.offsets)):
                step = conv.strides[1] * run.parts * run.wide
                writer.line(f"const u8 *x{number} = b{number} + at * {step};")
        for part in range(run.parts):
            if not crossed:
                self._emit_sums(run, part)
            if conv.rounding:
                factors = [f"{name}{part}" for name in ("s", "l")[: 1 + bool(conv.slope)]]
                for name, found in zip(factors, end.factors(parts[0][part]), strict=True):
                    writer.line(f"const vf_{run.wide} {name} = {found};")
                for pixel in range(run.tile):
                    name = f"a{pixel}_{part}"
                    writer.line(f"{name} = {end.rounded(name, factors)};")
                    if part % 2:
                        pair = (f"a{pixel}_{part - 1}", name)
                        half = f"h{pixel}_{part // 2}"
                        writer.line(f"const vh_{run.wide} {half} = {end.halved(pair)};")
        flat = [part for pixel in parts for part in pixel]
        if not conv.rounding:
            end.emit(writer, flat, run.parts == 4)
            return
        if run.parts == 1:
            halves = []
            for first in range(0, run.tile, 2):
                two = [f"a{pixel}_0" for pixel in range(first, min(first + 2, run.tile))]
                halves.append(f"h{first}")
                writer.line(f"const vh_{run.wide} {halves[-1]} = {end.halved(two)};")
        else:
            halves = [
                f"h{pixel}_{half}" for pixel in range(run.tile) for half in range(run.parts // 2)
            ]
        end.emit_halves(writer, halves, flat, run.parts == 4)

    def _emit_sums(self, run: Run, part: int) -> None:
        """Write the sums of a tile for one vector of channels, `a0_1` for the first pixel and second vector."""
        writer, wide = self.writer, run.wide
        writer.line(f"const vi_{wide} bias{part} = loaded_{wide}(bias + {part * wide // 4});")
        for pixel in range(run.tile):
            writer.line(f"vi_{wide} a{pixel}_{part} = bias{part};")
        kept = run.tile + self.conv.kernel[1] + 2 <= self._registers
        for number in range(len(self.braids.offsets)):
            with writer.block(""):
                self._emit_braid_sums(run, number, part, kept)

    def _emit_braid_sums(self, run: Run, number: int, part: int, kept: bool) -> None:
        """Write the products of one braid for one vector of channels; weights may be kept in registers."""
        conv, writer, wide = self.conv, self.writer, run.wide
        places = [
            ((number * conv.kernel[1] + tap) * run.parts + part) * wide
            for tap in range(conv.kernel[1])
        ]
        if kept:
            for tap, place in enumerate(places):
                writer.line(f"const vi_{wide} w{tap} = loaded_{wide}(own + {place});")
        seen: dict[int, list[tuple[int, int]]] = {}
        for pixel, tap in itertools.product(range(run.tile), range(conv.kernel[1])):
            column = pixel * conv.strides[1] + tap * conv.dilations[1]
            seen.setdefault(column, []).append((pixel, tap))
        for column, taps in sorted(seen.items()):
            with writer.block(""):
                place = (column * run.parts + part) * wide
                writer.line(f"const vi_{wide} x = loaded_{wide}(x{number} + {place});")
                for pixel, tap in taps:
                    name = f"a{pixel}_{part}"
                    if kept:
                        writer.line(f"{name} = dotted_{wide}({name}, x, w{tap});")
                    else:
                        writer.line(f"{name} = dotted_at_{wide}({name}, x, own + {places[tap]});")


def emit(conv: Convolution, writer: Writer) -> None:
    """Write a whole convolution: rows are shared out where there are many, else blocks of channels."""
    made = Depthwise(writer, conv)
    x, y = writer.read(conv.input), writer.write(conv.output)
    residual = writer.read(conv.residual) if conv.residual else ""
    scratch = writer.scratch("uint8", made.scratch_bytes, apart=True)
    high, wide = conv.output_size
    copy = ""
    if conv.channels[0] < _LEAST_CHANNELS:
        size = product(conv.size) * conv.channels[0]
        copy = writer.scratch("uint8", size + _LEAST_CHANNELS, apart=True)
    by_rows = high >= _MANY_ROWS or made.blocks == 1
    with writer.share(*((high, made.braids.period) if by_rows else (made.blocks,))) as (
        first,
        last,
    ):
        if copy:
            writer.line(f"COPY({copy}, {x}, {size});")
        begin, end = (first, last) if by_rows else ("0", str(high))
        rows = made.rows_at_once
        with writer.block(f"for (long top = {begin}; top < {end}; top += {rows})"):
            place = f" + top * {wide * conv.channels[0]}"
            writer.line(f"const long rows = {end} - top < {rows} ? {end} - top : {rows};")
            writer.line(
                made.call(
                    x=copy or x,
                    y=y + place,
                    top="top",
                    rows="rows",
                    present=("0", str(conv.size[0])),
                    scratch=scratch,
                    residual=residual + place if residual else "",
                    blocks=None if by_rows else (first, last),
                )
            )
