"""C for depthwise convolutions whose input or result are numbers of 16 bits.

Rows are copied with their pads first, bytes as words. A sum takes two taps at once: their channels are
interleaved, so that a vector of low halves and one of high halves have four each of every eight channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.definition import Convolution
from hasten.engines.compiled.operators.int8.words import include
from hasten.engines.compiled.tensors import ALIGNMENT, MOST_BYTES, product
from hasten.engines.compiled.writer import byte_widths
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_MOST_UNROLLED = 50
"""Largest number of taps that are written one after the other without a loop."""
_CHUNK_NUMBERS = 48 << 10
"""Largest number of words of a chunk of rows with pads, unless one row of the result needs more."""
_FEW_ROWS = 4
"""Rows of the result below which threads share channels."""


@dataclass(frozen=True)
class _Layout:
    """Layout of the work for a processor.

    Attributes:
        conv: The convolution.
        wide: Bytes of a vector.
    """

    conv: Convolution
    wide: int

    @property
    def lanes(self) -> int:
        """Sums of a vector."""
        return self.wide // 4

    @property
    def channels(self) -> int:
        """Channels of a block: two vectors of sums."""
        return 2 * self.lanes

    @property
    def blocks(self) -> int:
        """Blocks, of which the last may have fewer channels."""
        return -(-self.conv.channels[0] // self.channels)

    @property
    def pitch(self) -> int:
        """Numbers of a row with its pads."""
        return self.conv.padded_size[1] * self.conv.channels[0]

    @property
    def direct(self) -> bool:
        """Whether the picture is read itself, for want of pads."""
        whole = self.conv.channels[0] % self.channels == 0
        return self.conv.given_type == "int16" and whole and not any(self.conv.pads)

    @property
    def unrolled(self) -> bool:
        """Whether all taps are written one after the other."""
        return product(self.conv.kernel) <= _MOST_UNROLLED

    @property
    def pairs(self) -> list[tuple[tuple[int, int], ...]]:
        """Taps that are multiplied together, as rows and columns: two, or one."""
        down, right = self.conv.kernel
        taps = list(itertools.product(range(down), range(right)))
        runs = (
            [taps] if self.unrolled else [taps[i : i + right] for i in range(0, len(taps), right)]
        )
        return [tuple(run[i : i + 2]) for run in runs for i in range(0, len(run), 2)]

    def rows(self, made: int) -> int:
        """Return the rows with pads that some rows of the result read."""
        return (
            (made - 1) * self.conv.strides[0]
            + (self.conv.kernel[0] - 1) * self.conv.dilations[0]
            + 1
        )

    @property
    def chunk(self) -> int:
        """Rows of the result that are made of one copy."""
        made = 1
        while (
            made < self.conv.output_size[0] and self.rows(made + 1) * self.pitch <= _CHUNK_NUMBERS
        ):
            made += 1
        return made

    def halved(self, numbers: Array) -> Array:
        """Return numbers of each channel, along the last axis, in the order of low and high halves, block by block."""
        more = self.blocks * self.channels - numbers.shape[-1]
        padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, more)])
        units = padded.reshape(*padded.shape[:-1], self.blocks, -1, 2, 4)
        return units.swapaxes(-3, -2).reshape(*padded.shape[:-1], self.blocks, self.channels)


def emit(conv: Convolution, writer: Writer) -> None:
    """Write the convolution of one row of a batch."""
    if 4 * product(conv.kernel) * conv.channels[0] > MOST_BYTES:
        raise IntegrityError(f"the plan asks for more than {MOST_BYTES / 1e6:,.0f} MB of tables")
    include(writer)
    layout = _Layout(conv, byte_widths(writer.isa)[0])
    name = _function(layout, writer)
    table = writer.table(_table(layout, writer))
    x, y = writer.read(conv.input), writer.write(conv.output)
    high, wide = conv.output_size
    item = np.dtype(conv.made_type).itemsize
    line, step = wide * conv.channels[1] * item, conv.strides[0]
    by_blocks = high < _FEW_ROWS
    if not layout.direct:
        size = layout.rows(layout.chunk) * layout.pitch + ALIGNMENT
        padded = writer.scratch("int16", size, apart=True)
    with writer.share(layout.blocks if by_blocks else high) as share:
        blocks = ", ".join(share) if by_blocks else f"0, {layout.blocks}"
        first, last = ("0", str(high)) if by_blocks else share
        if layout.direct:
            given = f"{x} + {first} * {step * layout.pitch}"
            writer.line(
                f"{name}({given}, (u8 *){y} + {first} * {line}, {last} - {first}, {blocks}, (const u8 *){table});"
            )
            return
        with writer.block(f"for (long row = {first}; row < {last}; row += {layout.chunk})"):
            writer.line(f"const long rows = MIN({layout.chunk}, {last} - row);")
            writer.line(_copied(layout, padded, x))
            writer.line(
                f"{name}({padded}, (u8 *){y} + row * {line}, rows, {blocks}, (const u8 *){table});"
            )


def _copied(layout: _Layout, padded: str, x: str) -> str:
    """Return the call that copies what `rows` rows of the result from `row` on read, with pads."""
    conv, c = layout.conv, layout.conv.channels[0]
    step = conv.strides[0]
    taps = (conv.kernel[0] - 1) * conv.dilations[0] + 1
    pad = "pad_words" if conv.given_type == "int16" else "pad_bytes"
    return (
        f"{pad}({padded}, {x}, row * {step}, (rows - 1) * {step} + {taps}, "
        f"{conv.size[0]}, {conv.size[1] * c}, {conv.pads[1] * c}, {conv.pads[3] * c}, {conv.pads[0]}, {conv.zero});"
    )


def _table(layout: _Layout, writer: Writer) -> Array:
    """Return bias, scale, slope and weights, block by block, as int32; the bias includes the zero."""
    conv = layout.conv
    weight = writer.constant(conv.weight).reshape(conv.channels[1], *conv.kernel)
    bias = writer.constant(conv.bias).astype(np.int64) - conv.zero * weight.sum((1, 2), np.int64)
    parts = [bias.astype(np.int32)]
    parts += [writer.constant(name).view(np.int32) for name in (conv.scale, conv.slope) if name]
    for pair in layout.pairs:
        two = np.zeros((conv.channels[1], 2), np.int16)
        for place, (down, right) in enumerate(pair):
            two[:, place] = weight[:, down, right]
        parts.append(two.view(np.int32)[:, 0])
    return layout.halved(np.stack(parts)).transpose(1, 0, 2).ravel()


def _function(layout: _Layout, writer: Writer) -> str:
    """Write the function of some rows and blocks; return its name."""
    conv = layout.conv
    rounding = conv.rounding if conv.words is None else conv.words
    ends = (0, 0, 0) if rounding is None else (rounding.zero, rounding.low, rounding.high)
    tail = conv.channels[0] - (layout.blocks - 1) * layout.channels
    names = [_line(layout, count, writer) for count in (layout.channels, tail)]
    head = 3 if conv.slope else 2
    size = (head + len(layout.pairs)) * 2 * layout.wide
    item = np.dtype(conv.made_type).itemsize
    line = conv.output_size[1] * conv.channels[1]
    arguments = f"q, o, w, {', '.join(map(str, ends))}"
    text = f"""static void @(const i16 *restrict x, u8 *restrict y, long rows, long first, long last, const u8 *restrict t) {{
for (long row = 0; row < rows; row++)
for (long k = first; k < last; k++) {{
const i16 *q = x + row * {conv.strides[0] * layout.pitch} + k * {layout.channels};
u8 *o = y + (row * {line} + k * {layout.channels}) * {item};
const u8 *w = t + k * {size};
if (k < {layout.blocks - 1}) {names[0]}({arguments}); else {names[1]}({arguments});
}}
}}"""
    return writer.static("depthwise16_", text)


def _line(layout: _Layout, count: int, writer: Writer) -> str:
    """Write the function of a row of the result for a block of which some channels exist; return its name."""
    conv = layout.conv
    most, wide = 4 if layout.wide == 64 else 3, conv.output_size[1]
    item = np.dtype(conv.made_type).itemsize
    right, on = conv.strides[1] * conv.channels[0], conv.channels[1] * item
    text = [
        "static __attribute__((noinline)) void @(const i16 *q, u8 *o, const u8 *b, i32 zero_, i32 low_, i32 high_) {",
        "const vi zero = splat(zero_); const vh low = (vh){} + (i16)low_, high = (vh){} + (i16)high_;",
        f"long p = 0; const u8 *const w = b + {(3 if conv.slope else 2) * 2 * layout.wide};",
    ]
    for pixels in dict.fromkeys((min(most, wide), 1)):
        text.append(
            f"for (; p + {pixels} <= {wide}; p += {pixels}, q += {pixels * right}, o += {pixels * on}) {{"
        )
        text += _tile(layout, pixels, count)
        text.append("}")
    return writer.static("line16_", "\n".join([*text, "}"]))


def _tile(layout: _Layout, pixels: int, count: int) -> list[str]:
    """Return C of some pixels' sums and results."""
    conv, wide = layout.conv, layout.wide
    halves = [(p, half) for p in range(pixels) for half in (0, 1)]
    lines = [f"vi a{p}_{half} = *(const vi *)(b + {half * wide});" for p, half in halves]
    down, across = conv.dilations[0] * layout.pitch, conv.dilations[1] * conv.channels[0]
    if layout.unrolled:
        for number, pair in enumerate(layout.pairs):
            places = [str(i * down + j * across) for i, j in pair]
            lines += _dots(layout, pixels, places, f"w + {number * 2 * wide}")
    else:
        each, odd = divmod(conv.kernel[1], 2)
        lines.append(
            f"const u8 *v = w; for (long i = 0; i < {conv.kernel[0]}; i++) {{ const i16 *const z = q + i * {down}; long j = 0;"
        )
        lines.append(f"for (; j < {2 * each}; j += 2, v += {2 * wide}) {{")
        lines += _dots(layout, pixels, [f"j * {across}", f"(j + 1) * {across}"], "v", "z")
        lines.append("}")
        if odd:
            lines += [*_dots(layout, pixels, [f"j * {across}"], "v", "z"), f"v += {2 * wide};"]
        lines.append("}")
    for p in range(pixels):
        lines += _results(layout, p, count)
    return lines


def _dots(
    layout: _Layout, pixels: int, places: list[str], weights: str, rows: str = "q"
) -> list[str]:
    """Return C that adds the products of one or two taps at places behind a pixel's first one."""
    right = layout.conv.strides[1] * layout.conv.channels[0]
    lines = [
        f"{{ const vi w0 = *(const vi *)({weights}), w1 = *(const vi *)({weights} + {layout.wide});"
    ]
    for p in range(pixels):
        taps = [
            f"*(const vh_u *)({rows} + {p * right} + {place})" for place in (places[0], places[-1])
        ]
        lines.append(
            f"{{ const vh x0 = {taps[0]}, x1 = {taps[1]}; a{p}_0 = dot16(a{p}_0, (vi)low_words(x0, x1), w0); "
            f"a{p}_1 = dot16(a{p}_1, (vi)high_words(x0, x1), w1); }}"
        )
    return [*lines, "}"]


def _results(layout: _Layout, pixel: int, count: int) -> list[str]:
    """Return C that makes a pixel's results of its sums."""
    conv, wide = layout.conv, layout.wide
    item = np.dtype(conv.made_type).itemsize
    place = f"o + {pixel * conv.channels[1] * item}"
    sums = [f"a{pixel}_{half}" for half in (0, 1)]
    if conv.made_type == "float32":
        lines = ["{"]
        for half, name in enumerate(sums):
            scale = f"*(const vf *)(b + {(2 + half) * wide})"
            lines.append(f"const vf f{half} = __builtin_convertvector({name}, vf) * {scale};")
        for start in range(0, count, 4):
            unit, half = start // 8, start // 4 % 2
            some = min(4, count - start)
            lines.append(
                f"COPY({place} + {4 * start}, (const float *)&f{half} + {4 * unit}, {4 * some});"
            )
        return [*lines, "}"]
    scaled = [
        f"scaled_sloped({name}, b + {(2 + half) * wide}, b + {(4 + half) * wide})"
        if conv.slope
        else f"scaled({name}, b + {(2 + half) * wide})"
        for half, name in enumerate(sums)
    ]
    words = f"const vh r = as_words_of_two({', '.join(scaled)}, zero, low, high);"
    put = f"COPY({place}, &r, {2 * count});" if item == 2 else f"put_bytes({place}, r, {count});"
    return [f"{{ {words} {put} }}"]
