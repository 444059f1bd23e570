"""Dense convolutions of bytes with AVX2 alone: products of bytes whose sums provably fit in 16 bits.

`vpmaddubsw` multiplies 32 bytes by 32 weights and adds two products each; its sums are cut to 16 bits. Where the
weights above 0 that such a sum has come to at most 128, and those below 0 too, nothing is cut whatever the bytes
are, since 255 * 128 < 32768. Four neighbouring bytes of the picture, a quad, meet two such sums of each channel.
The sums of up to three quads, a group, are added in 16 bits where that provably fits for all channels of a block, and
go to those of 32 bits by one `vpmaddwd` together. Which quads are a group is looked for, block by block, so a block's
table has the places of its quads. Of weights that are too large for a quad alone, two quads have half each.
"""

from __future__ import annotations

from hasten.engines.compiled.operators.int8.layouts import Layout
from hasten.engines.compiled.operators.int8.quads import HEAD, SIZES, Quads
from hasten.engines.compiled.operators.int8.tiles import Tile

PIXELS = {1: 8, 2: 5, 3: 3, 4: 2}
"""Largest number of pixels of a tile for each number of vectors: a group of quads needs registers besides the sums."""
_MOST_COST = 1.1
"""Multiplications for each one of 16 bits up to which the form is faster: it needs fewer additions."""
_MOST_WEIGHTS = 8 << 20
"""Largest number of weights of a layer: groups are found in about a second for as many."""


def possible(layout: Layout) -> bool:
    """Whether the processor has AVX2 without dot products, and the layout multiplies numbers of 16 bits for bytes."""
    of_words = not (layout.direct or layout.points)
    return layout.wide == 32 and of_words and layout.weights <= _MOST_WEIGHTS


def faster(quads: tuple[Quads, ...], layout: Layout) -> bool:
    """Whether blocks' quads take fewer multiplications than products of 16 bits do, about.

    Args:
        quads: Quads of each block of the convolution.
        layout: Layout without them.
    """
    vectors = layout.groups * sum(block.vectors for block in layout.blocks)
    needed = sum(one.multiplications * one.weights.shape[1] for one in quads)
    return bool(needed <= _MOST_COST * layout.steps.dots * vectors)


class ShortTile(Tile):
    """Tile whose `w` points to what `Quads.packed` returns."""

    def _sums(self) -> list[str]:
        wide = self.vectors * self.wide
        lines = [
            "const i32 *q = (const i32 *)w, *const groups = q;",
            "const vh each = (vh){} + 1;",
            f"w += q[{len(SIZES)}], q += {HEAD};",
        ]
        for number, size in enumerate(SIZES):
            lines += [
                f"for (long k = 0; k < groups[{number}]; k++, q += {size}, w += {size * wide}) {{",
                *(f"const u8 *const q{i} = x + q[{i}];" for i in range(size)),
                *self._group(size),
                "}",
            ]
        return lines

    def _group(self, size: int) -> list[str]:
        """Return C of the products of a group of quads."""
        lines = []
        for p in range(self.pixels):
            lines.append("{")
            lines += [f"const vi z{i} = splat(*(const i32_u *)(q{i} + x{p}));" for i in range(size)]
            given = ", ".join(f"z{i}" for i in range(size))
            for v in range(self.vectors):
                at = f"w + {v * self.wide}, {self.vectors * self.wide}"
                lines.append(f"a{p}_{v} = short_dot{size}(a{p}_{v}, {given}, {at}, each);")
            lines.append("}")
        return lines
