"""C of convolutions whose channels are summed at the points of Winograd's algorithm; see `winograd`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.engines.compiled.operators.int8.layouts import Block, Layout
from hasten.engines.compiled.operators.int8.tiles import End, Steps, Tile
from hasten.engines.compiled.operators.int8.winograd import APART, POINTS, SIDE, sizes, tiles

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer


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


def _sizes(layout: Layout) -> tuple[int, int]:
    return sizes(layout.tiles, layout.conv.channels[0], layout.wide)


def chunk(layout: Layout, first: str) -> list[str]:
    """Return C that makes `z` the picture at the points, of `some` rows of results."""
    conv = layout.conv
    pitch = conv.padded_size[1] * conv.channels[0]
    across = tiles(conv.output_size[1])
    return [
        f"to_points((i16 *)s, x + {first}, (some + {SIDE - 1}) / {SIDE}, {across}, {conv.channels[0]}, "
        f"{pitch}, {_sizes(layout)[0] // 2});",
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
    given, sums = _sizes(layout)
    plane, step = sums * block.vectors + APART, conv.channels[1] * layout.made_bytes
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
