"""3x3 convolutions of bytes by Winograd's algorithm: 4 x 4 results of each channel need 36 products in place of 144.

The picture's 6 x 6 bytes, and the weights, become numbers of 16 bits at 36 points: values of polynomials at 0, 1, -1,
2, -2 and infinity, in both directions. At each point, channels are summed as in a pointwise layer. A linear map of
the 36 sums gives multiples of the 16 results. All factors are whole, and everything is exact modulo 2^32: sums may
wrap in between. A result times 576 is known modulo 2^32, so a result that provably has 26 bits is known exactly.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, F(4x4, 3x3); the factors that make it
whole are this file's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.tiles import End, Steps, Tile
from hasten.engines.compiled.plan import product
from hasten.engines.compiled.writer import spelled_dots

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.convolutions import Conv8
    from hasten.engines.compiled.operators.int8.layouts import Block, Layout
    from hasten.engines.compiled.writer import Writer

SIDE = 4
"""Rows and columns of results of a tile."""
POINTS = 36
_LEAST_FULL, _LEAST_FULL_OF_WORDS = 0.85, 0.75
"""Share of tiles' results that must be the picture's, with dot products of bytes and without: these take half the time
that products at points take, or as long."""
_LEAST_TILES = 16
"""Tiles below which loading weights at points takes too long."""
_MOST_ACROSS = 64
"""Largest number of tiles in a row, whose sums at all points a core's second cache about holds."""
_MOST_WEIGHTS = 4 << 20
"""Largest number of weights at points, of 2 bytes each, which stay in the last cache."""
_LEAST_OUTS = 32
"""Output channels below which what is around the products takes too long."""
_MOST_SUM = (1 << 25) - 1
"""Largest magnitude of a sum of products that is known by its lower 32 - 6 bits."""
_APART = 64
"""Bytes between points, so that they don't compete for the same lines of a cache."""
_POINTS = np.array([[6, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 6]], np.int16)
"""Weights' polynomial at each point; those at 0 and infinity six times, since others' results come times six."""


def suits(conv: Conv8, wide: int, writer: Writer) -> bool:
    """Whether a convolution can be calculated so, and is faster.

    Args:
        conv: The convolution.
        wide: Bytes of a vector.
        writer: Writer, which knows the weights.
    """
    if (conv.kernel, conv.strides, conv.dilations, conv.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return False
    ins, outs = conv.channels
    if conv.given_type != "uint8" or ins % (wide // 2) or outs < _LEAST_OUTS or wide < 32:
        return False
    whole = product([tiles(one) for one in conv.output_size])
    least = _LEAST_FULL if spelled_dots(writer.isa) else _LEAST_FULL_OF_WORDS
    if whole < _LEAST_TILES or product(conv.output_size) < least * whole * SIDE * SIDE:
        return False
    if POINTS * ins * outs > _MOST_WEIGHTS or tiles(conv.output_size[1]) > _MOST_ACROSS:
        return False
    weight = writer.constant(conv.weight).reshape(outs, -1)
    above = np.maximum(weight, 0).sum(1, np.int64)
    below = above - weight.sum(1, np.int64)
    return bool(255 * max(above.max(), below.max()) <= _MOST_SUM)


def tiles(size: int) -> int:
    """Return how many tiles cover a height or a width."""
    return -(-size // SIDE)


def weights(given: Array) -> Array:
    """Return weights of shape (outs, 3, 3, ins) at the points: int16 of shape (outs, 36, ins).

    A number there is at most 7 * 7 times a byte, so 16 bits hold it.
    """
    made: Array = np.einsum("pi,qj,oijc->opqc", _POINTS, _POINTS, given.astype(np.int16))
    return made.reshape(len(given), POINTS, -1)


class _Sums(Tile):
    """Tile of sums at one point, which go to memory as they are."""

    @property
    def text(self) -> str:
        """C of the tile."""
        parts = [(p, v) for p in range(self.pixels) for v in range(self.vectors)]
        lines = [f"const long x{p} = {p * self.steps.run};" for p in range(self.pixels)]
        lines += [f"vi a{p}_{v} = {{}};" for p, v in parts]
        stores = [
            f"*(vi *)(y + {(p * self.vectors + v) * self.wide}) = a{p}_{v};" for p, v in parts
        ]
        return "\n".join([*lines, *self._sums(), *stores])


def count(layout: Layout) -> int:
    """Return how many tiles a chunk has."""
    return layout.chunk_rows // SIDE * tiles(layout.conv.output_size[1])


def sizes(layout: Layout) -> tuple[int, int]:
    """Return the bytes from one point of a chunk's picture to the next, and from one of a vector's sums."""
    return count(layout) * layout.conv.channels[0] * 2 + _APART, count(layout) * layout.wide


def scratch(layout: Layout) -> tuple[int, int]:
    """Return the bytes of a chunk's picture at the points, and of a block's sums with those of one tile."""
    plane, sums = sizes(layout)
    vectors = max(block.vectors for block in layout.blocks)
    return POINTS * plane, POINTS * (sums * vectors + _APART) + SIDE * SIDE * vectors * layout.wide


def chunk(layout: Layout, first: str) -> list[str]:
    """Return C that makes `z` the picture at the points, of `some` rows of results."""
    conv = layout.conv
    pitch = conv.padded_size[1] * conv.channels[0]
    across = tiles(conv.output_size[1])
    return [
        f"to_points((i16 *)s, x + {first}, (some + {SIDE - 1}) / {SIDE}, {across}, {conv.channels[0]}, "
        f"{pitch}, {sizes(layout)[0] // 2});",
        "const u8 *z = s;",
    ]


def line(layout: Layout, block: Block, end: End, pixels: int, writer: Writer) -> str:
    """Write the function of a block of channels for some rows of results; return its name.

    Its arguments are the picture at the points, the block's weights, its biases and scales, the parameters of
    the end, the table of bytes, the results, how many rows there are, and memory for sums.

    Args:
        layout: Layout of the convolution.
        block: The block.
        end: Treatment of sums.
        pixels: Largest number of tiles whose sums are in registers together.
        writer: Where to.
    """
    conv, wide = layout.conv, block.vectors * layout.wide
    across, columns = tiles(conv.output_size[1]), conv.output_size[1]
    given, sums = sizes(layout)
    plane, step = sums * block.vectors + _APART, conv.channels[1] * layout.made_bytes
    last = columns % SIDE or SIDE
    ends = {some: _ended(layout, block, end, some, writer) for some in sorted({SIDE, last})}
    body = [
        "static __attribute__((noinline)) void @(const u8 *x, const u8 *w, const u8 *b, const struct end *e, "
        "const u8 *f, u8 *y, long rows, u8 *s) {",
        f"const long count = (rows + {SIDE - 1}) / {SIDE} * {across};",
        f"u8 *const own = s + {POINTS * plane};",
        f"for (long point = 0; point < {POINTS}; point++, x += {given}, w += {conv.channels[0] // 2 * wide})",
        f"{_summed(layout, block, pixels, writer)}(x, w, s + point * {plane}, count);",
        "for (long one = 0; one < count; one++) {",
        f"const long row = one / {across} * {SIDE}, column = one % {across} * {SIDE};",
        *(
            f"from_points(own + {v * layout.wide}, s + one * {wide} + {v * layout.wide}, {plane}, {wide}, "
            f"*(const vi *)(b + {v * layout.wide}));"
            for v in range(block.vectors)
        ),
        f"for (long i = 0; i < {SIDE} && row + i < rows; i++) {{",
        f"u8 *const to = y + ((row + i) * {columns} + column) * {step}, *const from = own + i * {SIDE * wide};",
        f"if (column + {SIDE} <= {columns}) {ends[SIDE]}(from, b, e, f, to);",
        f"else {ends[last]}(from, b, e, f, to);",
        "} } }",
    ]
    return writer.static("line", "\n".join(body))


def _ended(layout: Layout, block: Block, end: End, pixels: int, writer: Writer) -> str:
    """Write the function that makes results of some neighbouring pixels' sums; return its name."""
    one = Tile(
        *(pixels, block.vectors, block.channels, layout.wide, layout.conv.channels[1]),
        *(layout.steps, False, end, True),
    )
    head = "static __attribute__((noinline)) void @(const u8 *s, const u8 *b, const struct end *e, const u8 *f, u8 *y)"
    return writer.static("finish", f"{head} {{\n{one.kept}\n}}")


def _summed(layout: Layout, block: Block, most: int, writer: Writer) -> str:
    """Write the function of some tiles' sums at one point; return its name."""
    ins, step = layout.conv.channels[0] * 2, block.vectors * layout.wide

    def tile(pixels: int) -> str:
        one = _Sums(
            *(pixels, block.vectors, block.channels, layout.wide, 0, Steps(1, 1, ins, 0, 0)),
            *(False, End.of(layout.conv, False), pixels == most, "dot16"),
        )
        text = f"static void @(const u8 *x, const u8 *w, u8 *y) {{\n{one.text}\n}}"
        return f"{writer.static('sums', text)}(x, w, y);"

    return writer.static(
        "points",
        "static __attribute__((noinline)) void @(const u8 *x, const u8 *w, u8 *y, long m) {\n"
        "const long whole = m;\n"
        f"for (; m >= {most}; m -= {most}, x += {most * ins}, y += {most * step}) {tile(most)}\n"
        f"if (m && whole >= {most}) {{\n"
        f"x -= ({most} - m) * {ins}; y -= ({most} - m) * {step}; {tile(most)}\n"
        f"}} else for (; m; m--, x += {ins}, y += {step}) {tile(1)}\n}}",
    )
