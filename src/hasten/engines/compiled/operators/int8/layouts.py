"""Layouts of a dense convolution of bytes for a processor: blocks, chunks, groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8 import winograd
from hasten.engines.compiled.operators.int8.definition import Convolution
from hasten.engines.compiled.operators.int8.quads import Quads
from hasten.engines.compiled.operators.int8.tiles import Steps
from hasten.engines.compiled.tensors import ALIGNMENT, product
from hasten.engines.compiled.writer import byte_widths, multiplies, spelled_dots

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_CHUNK_PIXELS = 196
"""Pixels for which weights are widened, or come from a farther cache, once."""
_FEW_PIXELS = 100
"""Pixels below which each thread computes some channels of all pixels."""
_FEW_ROWS = 16
"""Rows below which one more for one thread than for another counts, if blocks of channels are as many."""
_MOST_ROWS = 24
"""Rows of a batch that are computed at once where a layer is pointwise."""
_CHUNK_BYTES = 96 << 10
"""Largest number of bytes of a chunk that is read again for each block of channels."""
_WIDE_WEIGHTS = 24 << 10
"""Largest number of weights of a layer that are kept in 16 bits; others are widened while they run."""

_CHUNK_TILES = 28
"""Tiles of Winograd's algorithm in a chunk, at most, unless a row has more."""
_REGISTER_ROWS = 16
"""Rows of a register of AMX; of the weights', each has four numbers of 16 channels."""
_LEAST_ROWS = 4
"""Pixels below which AMX isn't used."""
_LEAST_DEEP = 24
"""Bytes of a pixel below which AMX, which takes up to 64 at once, is no faster than vectors."""
_ROWS_AROUND = 2
"""Rows for which AMX takes as long as for all that is around a register's pixels."""


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
    """Layout of a convolution's work for a processor.

    Attributes:
        conv: The convolution.
        wide: Bytes of a vector.
        quads: Whether bytes are multiplied as they are, by VNNI, `arm` or `short`; else two numbers of 16 bits at
            once, as where the input has such.
        permutes: Whether a byte's entry of a table of 256 is found in registers, by VBMI.
        amx: Whether the processor multiplies matrices of bytes, by AMX.
        pixels: Largest number of pixels of the input that come at once, of all rows of a batch.
        arm: Form in which an ARM processor multiplies bytes: "dots", by dot products; "matrices", by i8mm; "" for neither.
        points: Whether 4 x 4 results are calculated together from sums at 36 points; see `winograd`.
        short: Quads of each block, for sums of 16 bits of products of bytes; None without, see `short_sums`.
    """

    conv: Convolution
    wide: int
    quads: bool
    permutes: bool
    amx: bool
    pixels: int
    arm: Literal["", "dots", "matrices"] = ""
    points: bool = False
    short: tuple[Quads, ...] | None = None

    @classmethod
    def of(cls, conv: Convolution, writer: Writer) -> Layout:
        """Return the layout for the processor that a plan is written for."""
        isa = writer.isa
        wide = byte_widths(isa)[0]
        of_bytes = conv.given_type == "uint8"
        arm = multiplies(isa) if of_bytes else ""
        amx = of_bytes and wide == 64 and "amx_int8" in isa
        points = not amx and winograd.suits(conv, wide, writer)
        quads = of_bytes and spelled_dots(isa) != 0 and not points
        permutes = wide == 64 and "avx512vbmi" in isa
        pixels = product(conv.size) * (_MOST_ROWS if writer.plan.by_row else 1)
        return cls(conv, wide, quads, permutes, amx, pixels, arm, points)

    @property
    def direct(self) -> bool:
        """Whether tiles read the picture itself, not numbers that it was widened to."""
        return self.quads or self.given_bytes == self.item

    @property
    def given_bytes(self) -> int:
        """Bytes of a number of the input."""
        return np.dtype(self.conv.given_type).itemsize

    @property
    def made_bytes(self) -> int:
        """Bytes of a number of the result."""
        return np.dtype(self.conv.made_type).itemsize

    @property
    def lanes(self) -> int:
        """Output channels of a vector."""
        return self.wide // 4

    @property
    def unit(self) -> int:
        """Pixels that most tiles divide: of 7 with many registers, of 3, 4 or 6 with few."""
        return self.rows or (14 if self.wide == 64 else 12)

    @property
    def together(self) -> int:
        """Rows of results, or pixels of a pointwise layer, that stay with one thread."""
        return winograd.SIDE if self.points else self.unit if self.pointwise else 1

    @cached_property
    def rows(self) -> int:
        """Pixels that a register of AMX has a row for; 0 where the layer doesn't use it.

        Pixels of one register lie at even distances: anywhere in a pointwise layer, else in one row of the
        result.
        """
        high, wide = self.conv.output_size
        if not self.amx or self.deep < _LEAST_DEEP:
            return 0
        if (high * wide if self.pointwise else wide) < _LEAST_ROWS:
            return 0
        if not self.pointwise:
            return -(-wide // -(-wide // _REGISTER_ROWS))
        return min(
            range(_REGISTER_ROWS, _REGISTER_ROWS // 2 - 1, -1),
            key=lambda rows: -(-self.pixels // rows) * (rows + _ROWS_AROUND),
        )

    @cached_property
    def deep(self) -> int:
        """Bytes of a pixel that AMX multiplies at once; each run has a whole number of such."""
        return _evenly(-(-self._runs[2] // self.each))[1] * 4

    @property
    def each(self) -> int:
        """Numbers of the input that a dot product, or a row of i8mm's matrices, takes."""
        return 8 if self.arm == "matrices" else 4 if self.quads else 2

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
    def _runs(self) -> tuple[int, int, int, int, int]:
        """Runs that a pixel's sums read: rows, runs of each, numbers of each, bytes to the next row and run."""
        conv = self.conv
        if self.points:
            return winograd.POINTS, 1, conv.channels[0], 0, 0
        pitch = conv.padded_size[1] * conv.channels[0]
        down = conv.dilations[0] * pitch * self.item
        if self.groups > 1 or conv.dilations[1] > 1:
            right = conv.dilations[1] * conv.channels[0] * self.item
            return *conv.kernel, self.ins, down, right
        across = conv.kernel[1] * conv.channels[0]
        if (across == pitch and conv.dilations[0] == 1) or conv.kernel[0] == 1:
            return 1, 1, across * conv.kernel[0], 0, 0
        return conv.kernel[0], 1, across, down, 0

    @cached_property
    def steps(self) -> Steps:
        """Runs of bytes that a pixel's sums read."""
        down, across, count, below, right = self._runs
        dots = -(-count // self.each)
        if self.rows:
            dots = product(_evenly(dots))
        return Steps(down, across, dots * self.each * self.item, below, right)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of a group: all alike but the last two."""
        vectors = -(-self.outs // self.lanes)
        fours, rest = divmod(vectors, 4)
        if rest in (1, 2) and fours and not self._many:
            fours, rest = fours - 1, rest + 4
        last = {0: (), 5: (3, 2), 6: (3, 3)}.get(rest, (rest,))
        sizes = [*(4,) * fours, *last]
        ends = np.minimum(np.cumsum(sizes) * self.lanes, self.outs)
        counts = np.diff(ends, prepend=0).tolist()
        return tuple(Block(size, count) for size, count in zip(sizes, counts, strict=True))

    @property
    def _many(self) -> bool:
        """Whether products are VNNI's in 32 registers of 64 bytes, where smaller blocks take no longer."""
        return self.quads and self.wide == 64 and not self.rows

    def half(self, block: Block) -> bool:
        """Whether half a vector holds the last channels of a block, and only that half is summed."""
        return self._many and 0 < block.channels % self.lanes <= self.lanes // 2

    @property
    def units(self) -> int:
        """Blocks of all groups."""
        return self.groups * len(self.blocks)

    @property
    def pointwise(self) -> bool:
        """Whether pixels are read one after the other, so that rows don't matter."""
        return self.conv.pointwise

    @cached_property
    def chunk_rows(self) -> int:
        """Output rows of a chunk; of a pointwise layer, pixels."""
        high, wide = self.conv.output_size
        if self.pointwise:
            unit, most = self.unit, self._chunk_bytes // (self.conv.channels[0] * self.item)
            return min(self.pixels, max(unit, min(most, _CHUNK_PIXELS) // unit * unit))
        if self.points:
            across = winograd.tiles(wide)
            return winograd.SIDE * min(winograd.tiles(high), max(1, _CHUNK_TILES // across))
        rows = 1
        while (
            rows < high
            and rows * wide < _CHUNK_PIXELS
            and self.row_numbers(rows + 1) * self.item <= self._chunk_bytes
        ):
            rows += 1
        return rows

    @property
    def _chunk_bytes(self) -> int:
        """Largest number of bytes of a chunk: more with AMX, which waits for weights from the farthest cache."""
        return 4 * _CHUNK_BYTES if self.rows else _CHUNK_BYTES

    @property
    def lines(self) -> int:
        """Output rows; of a pointwise layer, pixels."""
        return product(self.conv.output_size) if self.pointwise else self.conv.output_size[0]

    @property
    def line(self) -> tuple[int, int]:
        """Numbers of the input and of the output from one of `lines` to the next."""
        conv = self.conv
        if self.pointwise:
            return conv.channels
        down = conv.strides[0] * conv.padded_size[1] * conv.channels[0]
        return down, conv.output_size[1] * conv.channels[1]

    @property
    def by_channels(self) -> bool:
        """Whether threads share blocks of channels, not rows: where pixels are few, or rows that don't halve."""
        high = self.conv.output_size[0]
        if product(self.conv.output_size) < _FEW_PIXELS:
            return self.units > 3
        return not self.pointwise and high % 2 == 1 and high < _FEW_ROWS <= 2 * self.units

    @property
    def ragged(self) -> bool:
        """Whether a run's last product takes bytes behind it."""
        return self.steps.run != self._runs[2] * self.item

    def row_numbers(self, rows: int) -> int:
        """Numbers of the padded input that some output rows read."""
        conv = self.conv
        if self.pointwise:
            return rows * conv.channels[0]
        if self.points:  # of whole tiles, the last of which may reach beyond the last row
            side = winograd.SIDE
            high, wide = (winograd.tiles(one) * side + 2 for one in (rows, conv.output_size[1]))
            beyond = max(0, wide - conv.padded_size[1])
            return (high * conv.padded_size[1] + beyond) * conv.channels[0]
        high = (rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilations[0] + 1
        return high * conv.padded_size[1] * conv.channels[0]

    @property
    def chunk_pixels(self) -> int:
        """Pixels of a chunk."""
        return self.chunk_rows * (1 if self.pointwise else self.conv.output_size[1])

    @property
    def tiles(self) -> int:
        """Tiles of a chunk, where results are calculated at points."""
        return self.chunk_rows // winograd.SIDE * winograd.tiles(self.conv.output_size[1])

    @cached_property
    def weights(self) -> int:
        """Weights as they are packed, with zeros."""
        vectors = sum(block.vectors for block in self.blocks)
        return self.groups * vectors * self.steps.dots * self.wide // self.item

    @cached_property
    def mode(self) -> str:
        """Form in which weights are kept: "words", "bytes", or "widened" for a chunk, block by block."""
        if self.quads:
            return "bytes"
        if self.points or self.weights <= _WIDE_WEIGHTS:
            return "words"
        return "widened" if product(self.conv.output_size) > 6 else "bytes"

    @property
    def places(self) -> Array:
        """Byte of each pixel of a chunk relative to the chunk's first one, as int32."""
        conv = self.conv
        if self.points:  # tiles of a point follow each other
            return np.zeros(0, np.int32)
        right = conv.strides[1] * conv.channels[0] * self.item
        if self.pointwise:
            return np.arange(self.chunk_pixels, dtype=np.int32) * right
        down = conv.strides[0] * conv.padded_size[1] * conv.channels[0] * self.item
        rows, columns = np.arange(self.chunk_rows), np.arange(conv.output_size[1])
        return (rows[:, None] * down + columns * right).astype(np.int32).ravel()

    @property
    def scratch(self) -> tuple[int, int]:
        """Bytes of memory for the widened chunk, and for a block's widened weights or AMX's sums."""
        chunk = 0 if self.direct else self.row_numbers(self.chunk_rows) * 2
        vectors = max(block.vectors for block in self.blocks)
        if self.points:
            given = (self.tiles, self.conv.channels[0], vectors, self.wide)
            chunk, sums = winograd.scratch(*given)
            return whole(chunk + ALIGNMENT), sums
        if self.rows:
            return whole(chunk + ALIGNMENT), 4 * _REGISTER_ROWS * vectors * self.wide
        block = vectors * self.steps.dots * self.wide
        return whole(chunk + ALIGNMENT), block if self.mode == "widened" else 0


def _evenly(dots: int) -> tuple[int, int]:
    """Return products of a row of AMX's registers, and of how many bytes: evenly if one more allows that."""
    least = -(-dots // _REGISTER_ROWS)
    count = next((one for one in (least, least + 1) if dots % one == 0), least)
    return count, -(-dots // count)


def whole(size: int) -> int:
    """Return a size in bytes, rounded up to whole lines of the cache."""
    return -(-size // ALIGNMENT) * ALIGNMENT
