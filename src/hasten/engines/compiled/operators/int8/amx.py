"""C of a block of channels of a dense convolution of bytes for processors that multiply matrices (AMX).

A register has up to 16 rows of 64 bytes: sums of 16 pixels times 16 channels, up to 64 bytes of each of 16
pixels, or as many weights for 16 channels. Two registers of pixels and two of weights make four of sums, a
unit. AMX only multiplies, so sums go through memory, and vectors make bytes of them as a tile does of its own.
That stands between the products of the pixels that come next; what it gains there was within the noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.engines.compiled.operators.int8.layouts import Block, Layout
from hasten.engines.compiled.operators.int8.tiles import End, Tile

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_AT_ONCE = 4
"""Pixels whose sums become bytes together."""


def line(layout: Layout, block: Block, writer: Writer) -> str:
    """Write the function of a block for a chunk's pixels; return its name.

    Its arguments are those of the function without AMX, the registers' settings, and memory for the sums of
    twice two registers of pixels times the block's channels.
    """
    conv, rows, pair = layout.conv, layout.rows, 32 * block.vectors * layout.wide
    step = conv.channels[1] * layout.made_bytes
    some, all_of_them = _finish(layout, block, writer)
    units = [(first, min(2, block.vectors - first)) for first in range(0, block.vectors, 2)]
    quads = [
        f"{some}(old + {half * pair // 2 + first * pair // 32}, b, e, f, y{half} + {first * step});"
        for half in range(2)
        for first in (*range(0, rows - _AT_ONCE, _AT_ONCE), rows - _AT_ONCE)
    ]
    body = [
        "static __attribute__((noinline)) void @(const u8 *x, const i32 *at, const u8 *w, const u8 *b, "
        "const struct end *e, const u8 *f, u8 *y, long m, struct matrices *g, u8 *s) {",
        *_places(layout),
        f"u8 *old = s, *now = s + {pair}, *y0 = 0, *y1 = 0;",
        "for (long i = 0; i < count; i += 2) {",
        "const long p0 = PLACE(i), p1 = i + 1 < count ? PLACE(i + 1) : p0;",
        "const u8 *const x0 = x + at[p0], *const x1 = x + at[p1];",
    ]
    for number, (first, vectors) in enumerate(units):
        before = _stores(block, *units[number - 1], "now" if number else "old")
        body += before if number else ["if (i) {", *before, "}"]
        share = len(quads) // len(units)
        body += _sums(layout, first, vectors, quads[number * share : (number + 1) * share])
    body += [
        "u8 *const swap = old; old = now, now = swap;",
        f"y0 = y + p0 * {step}, y1 = y + p1 * {step};",
        "}",
        *_stores(block, *units[-1], "old"),
        f"{all_of_them}(old, b, e, f, y0, rows);",
        f"if (y1 != y0) {all_of_them}(old + {pair // 2}, b, e, f, y1, rows);",
        f"if (rows != {rows}) matrices_for(g, {rows}, {layout.deep});" if layout.pointwise else "",
        "#undef PLACE",
        "}",
    ]
    return writer.static("line", "\n".join(body))


def _places(layout: Layout) -> list[str]:
    """Return C of the number of registers of pixels, and of each one's first pixel."""
    rows = layout.rows
    if layout.pointwise:  # the last one begins where it ends with the last pixel
        return [
            f"long rows = {rows};",
            f"if (m < rows) rows = m, matrices_for(g, m, {layout.deep});",
            "const long count = (m + rows - 1) / rows;",
            "#define PLACE(i) MIN((i) * rows, m - rows)",
        ]
    wide = layout.conv.output_size[1]
    across = -(-wide // rows)
    return [
        f"const long rows = {rows}, count = m / {wide} * {across};",
        f"#define PLACE(i) ((i) / {across} * {wide} + MIN((i) % {across} * {rows}, {wide - rows}))",
    ]


def _sums(layout: Layout, first: int, vectors: int, others: list[str]) -> list[str]:
    """Return C of a unit's sums: of two registers of pixels, from a vector of channels on.

    Args:
        layout: Layout of the convolution.
        first: First vector of channels.
        vectors: Vectors of channels, one or two.
        others: Statements for the pixels before, which go between the products.
    """
    steps, deep, wide = layout.steps, layout.deep, vectors * layout.wide
    right = layout.conv.strides[1] * layout.conv.channels[0]
    lines = [
        f"MATRIX_LOAD(g, {2 * half + v}, b + {(first + v) * layout.wide}, 0);"
        for half in range(2)
        for v in range(vectors)
    ]
    dots = []
    for half in range(2):
        dots.append(f"MATRIX_LOAD(g, {4 + half}, x{half} + o, {right});")
        for v in range(vectors):
            load = f"MATRIX_LOAD(g, {6 + v}, v + {v * layout.wide}, {wide});" if half == 0 else ""
            dots.append(f"{load} MATRIX_DOT(g, {2 * half + v}, {4 + half}, {6 + v});")
    each = -(-len(others) // (2 * vectors))
    between = [others[at : at + each] for at in range(0, len(others), each)]
    head = []
    for line_ in dots:
        head.append(line_)
        if "DOT" in line_ and between:
            head += ["if (i) {", *between.pop(0), "}"]
    advance = f"v += {deep // 4 * wide};"
    return [
        "{",
        *lines,
        f"const u8 *v = w + {first * layout.wide * steps.dots};",
        "{ const long o = 0;",
        *head,
        f"{advance} }}",
        f"for (long d = 0; d < {steps.down}; d++) for (long j = 0; j < {steps.across}; j++)",
        f"for (long k = d + j ? 0 : {deep}; k < {steps.run}; k += {deep}) {{",
        f"const long o = d * {steps.below} + j * {steps.right} + k;",
        *dots,
        f"{advance} }}",
        "}",
    ]


def _stores(block: Block, first: int, vectors: int, to: str) -> list[str]:
    """Return C that stores a unit's sums."""
    return [
        f"MATRIX_STORE(g, {2 * half + v}, {to} + {(half * 16 * block.vectors + first + v) * 64}, "
        f"{block.vectors * 64});"
        for half in range(2)
        for v in range(vectors)
    ]


def _finish(layout: Layout, block: Block, writer: Writer) -> tuple[str, str]:
    """Write the functions that make results of four pixels' sums, and of any number's; return their names."""
    conv = layout.conv
    end = End.of(conv, layout.permutes)
    step = conv.channels[1] * layout.made_bytes
    head = "static __attribute__((noinline)) void @(const u8 *s, const u8 *b, const struct end *e, const u8 *f, u8 *y"
    texts = {
        pixels: Tile(
            pixels,
            block.vectors,
            block.channels,
            layout.wide,
            conv.channels[1],
            layout.steps,
            False,
            end,
            True,
        ).kept
        for pixels in (_AT_ONCE, 1)
    }
    some = writer.static("some", f"{head}) {{\n{texts[_AT_ONCE]}\n}}")
    loops = [
        f"for (; rows >= {pixels}; rows -= {pixels}, s += {pixels * block.vectors * layout.wide}, "
        f"y += {pixels * step}) {{\n{text}\n}}"
        for pixels, text in texts.items()
    ]
    return some, writer.static("finish", "\n".join([f"{head}, long rows) {{", *loops, "}"]))
