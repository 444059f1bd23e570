"""C of one tile of a convolution of bytes: some pixels times some vectors of channels, in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.definition import Convolution

_MOST_UNROLLED = 36
"""Largest number of dot products that are written one after the other without a loop."""
_UNROLLED = 4
"""Dot products that are written one after the other in a loop."""


@dataclass(frozen=True)
class Steps:
    """Runs of bytes that the sums of a pixel read.

    Attributes:
        down: Number of rows.
        across: Runs of each row.
        run: Bytes of a run, a multiple of 4; weights for those beyond its end are zero.
        below: Bytes from a row to the next one.
        right: Bytes from a run to the next one.
    """

    down: int
    across: int
    run: int
    below: int
    right: int

    @property
    def dots(self) -> int:
        """Dot products of a sum."""
        return self.down * self.across * self.run // 4

    @property
    def places(self) -> list[int]:
        """Byte of each dot product from a pixel's first one on."""
        return [
            i * self.below + j * self.right + k
            for i in range(self.down)
            for j in range(self.across)
            for k in range(0, self.run, 4)
        ]


@dataclass(frozen=True)
class End:
    """Treatment of sums within a tile.

    Attributes:
        made: Element type of the results: float32, uint8 or int16.
        zero: Whether a zero is added.
        slope: Whether what is below 0 is multiplied by a slope.
        bounds: Whether bytes are cut further than to 0 and 255.
        table: Whether bytes go through a table.
    """

    made: str
    zero: bool
    slope: bool
    bounds: bool
    table: bool

    @classmethod
    def of(cls, conv: Convolution, permutes: bool) -> End:
        """Return that of a convolution.

        Args:
            conv: The convolution.
            permutes: Whether the processor looks bytes up in registers, so that a table costs a tile little.
        """
        if conv.words is not None:
            return cls("int16", True, bool(conv.slope), True, False)
        if conv.rounding is None:
            return cls("float32", False, False, False, False)
        bounds = (conv.rounding.low, conv.rounding.high) != (0, 255)
        table = permutes and bool(conv.table)
        return cls("uint8", conv.rounding.zero != 0, bool(conv.slope), bounds, table)


def packed_together(vectors: int, half: bool) -> int:
    """Return how many of a tile's vectors, the first ones, become bytes together; the others do one by one.

    Args:
        vectors: Vectors of channels.
        half: Whether the last one has channels in its first half only.
    """
    return (vectors - half) // 2 * 2


@dataclass(frozen=True)
class Tile:
    """A tile, whose C has pointers `x`, `at`, `w`, `b`, `e`, `f`, `y`: `f` is to the table of bytes.

    Attributes:
        pixels: Number of pixels.
        vectors: Vectors of channels.
        channels: Channels that are written.
        wide: Bytes of a vector.
        outs: Channels from one pixel of the output to the next.
        steps: Places in the picture and the weights that the sums read.
        narrow: Whether weights are bytes that are widened when they are read.
        end: Rounding, and bytes or floats, by which sums become results.
        unrolled: Whether the code may be long.
        dot: C function of a dot product, which has another one with `_from` for weights in memory.
        half: Whether the last vector has channels in its first half only, and the other half isn't summed.
    """

    pixels: int
    vectors: int
    channels: int
    wide: int
    outs: int
    steps: Steps
    narrow: bool
    end: End
    unrolled: bool
    dot: str = "dot"
    half: bool = False

    @property
    def text(self) -> str:
        """C of the tile."""
        lines = [f"const long x{p} = at[{p}];" for p in range(self.pixels)]
        return "\n".join([*lines, *self._begun(), *self._sums(), *self._ended(), *self._results()])

    @property
    def kept(self) -> str:
        """C of the same with sums that lie at `s`, pixel by pixel."""
        lines = [
            f"const vi a{p}_{v} = *(const vi *)(s + {(p * self.vectors + v) * self.wide});"
            for p in range(self.pixels)
            for v in range(self.vectors)
        ]
        return "\n".join(lines + self._results())

    def _begun(self) -> list[str]:
        """Return C of sums that are the bias yet."""
        return [
            f"vi a{p}_{v} = *(const vi *)(b + {v * self.wide});"
            for v in range(self.vectors)
            for p in range(self.pixels)
        ]

    def _ended(self) -> list[str]:
        """Return C that makes vectors of sums, one for a pixel and a vector of channels, of what was summed."""
        return []

    def _results(self) -> list[str]:
        """Return C that makes results of the sums."""
        if self.end.made != "uint8":
            return self._floats() if self.end.made == "float32" else self._numbers()
        lines = []
        if self.end.zero:
            lines.append("const vh zero = (vh){} + (i16)e->zero;")
        if self.end.bounds:
            lines.append("const vb low = (vb){} + (u8)e->low, high = (vb){} + (u8)e->high;")
        if self.end.table:
            lines.append("const vb f0 = *(const vb *)f, f2 = *(const vb *)(f + 128);")
        packed = packed_together(self.vectors, self.half)
        if packed:
            lines += self._wholes() if packed == 4 else self._pairs()
        for vector in range(packed, self.vectors):
            lines += self._fours(vector)
        return lines

    def _sums(self) -> list[str]:
        steps = self.steps
        if self.unrolled and steps.dots <= _MOST_UNROLLED:
            return ["{ const u8 *q = x;", *self._dots(steps.places), "}"]
        dots = steps.run // 4
        at_once = min(_UNROLLED, dots) if self.unrolled else 1
        step = at_once * self.vectors * self._vector
        lines = [
            f"for (long k = 0; k < {dots // at_once}; k++, q += {4 * at_once}, w += {step}) {{",
            *self._dots([4 * one for one in range(at_once)]),
            "}",
        ]
        if rest := dots % at_once:
            lines += self._dots([4 * one for one in range(rest)])
            lines.append(f"w += {rest * self.vectors * self._vector};")
        lines.insert(0, f"const u8 *q = x + i * {steps.below} + j * {steps.right};")
        for name, count in (("j", steps.across), ("i", steps.down)):
            head = f"for (long {name} = 0; {name} < {count}; {name}++) {{"
            lines = [head if count > 1 else f"{{ const long {name} = 0;", *lines, "}"]
        return lines

    @property
    def _vector(self) -> int:
        """Bytes of a vector of weights as they are kept."""
        return self.wide // (2 if self.narrow else 1)

    def _dots(self, places: list[int]) -> list[str]:
        """Return the dot products of four bytes at each of these places behind `q`."""
        load = "WEIGHTS_OF_BYTES" if self.narrow else "WEIGHTS"
        lines = []
        for number, place in enumerate(places):
            lines.append("{")
            held = self.vectors if self.narrow else min(self.vectors, 2)
            at = [(number * self.vectors + v) * self._vector for v in range(self.vectors)]
            lines += [f"const vi w{v} = {load}(w + {at[v]});" for v in range(held)]
            for p in range(self.pixels):
                lines.append(f"const vi z{p} = splat(*(const i32_u *)(q + x{p} + {place}));")
                lines += [f"a{p}_{v} = {self._dot(v)}(a{p}_{v}, z{p}, w{v});" for v in range(held)]
                lines += [
                    f"a{p}_{v} = {self._dot(v)}_from(a{p}_{v}, z{p}, (const vi *)(w + {at[v]}));"
                    for v in range(held, self.vectors)
                ]
            lines.append("}")
        return lines

    def _dot(self, vector: int) -> str:
        """Return the C function of a dot product for a vector."""
        return f"{self.dot}_half" if self.half and vector == self.vectors - 1 else self.dot

    def _scaled(self, pixel: int, vector: int) -> str:
        name = f"a{min(pixel, self.pixels - 1)}_{vector}"
        scale, slope = ((part * self.vectors + vector) * self.wide for part in (1, 2))
        if self.end.slope:
            return f"scaled_sloped({name}, b + {scale}, b + {slope})"
        return f"scaled({name}, b + {scale})"

    def _words(self, sums: list[tuple[int, int]]) -> str:
        """Return C of four sums, by pixel and vector, as two vectors of 16 bits with the zero."""
        a, b, c, d = (self._scaled(pixel, vector) for pixel, vector in sums)
        packed = (f"pack_words({a}, {b})", f"pack_words({c}, {d})")
        return ", ".join(f"add_words({one}, zero)" if self.end.zero else one for one in packed)

    def _floats(self) -> list[str]:
        lines = []
        lanes = self.wide // 4
        for p in range(self.pixels):
            for v in range(self.vectors):
                count = min(lanes, self.channels - v * lanes)
                place = (self.vectors + v) * self.wide
                lines.append(
                    f"{{ const vf f = __builtin_convertvector(a{p}_{v}, vf) * *(const vf *)(b + {place}); "
                    f"COPY(y + {4 * (p * self.outs + v * lanes)}, &f, {4 * count}); }}"
                )
        return lines

    def _numbers(self) -> list[str]:
        """Return C that makes numbers of 16 bits of the sums."""
        names = ("zero", "low", "high")
        lines = [f"const vi {name} = splat(e->{name});" for name in names]
        lanes = self.wide // 4
        for p in range(self.pixels):
            for v in range(self.vectors):
                count = min(lanes, self.channels - v * lanes)
                lines.append(
                    f"{{ const vs q = as_words({self._scaled(p, v)}, zero, low, high); "
                    f"COPY(y + {2 * (p * self.outs + v * lanes)}, &q, {2 * count}); }}"
                )
        return lines

    def _store(self, value: str, pixels: range, first: int, size: int) -> list[str]:
        count = min(size, self.channels - first)
        lines = [f"{{ vb r = {value};"]
        if self.end.bounds:
            lines.append("r = least(most(r, low), high);")
        if self.end.table:
            lines.append("r = found_in(r, f0, f2, f);")
        for number, p in enumerate(pixels):
            if p < self.pixels:
                lines.append(
                    f"COPY(y + {p * self.outs + first}, (u8 *)&r + {number * size}, {count});"
                )
        return [*lines, "}"]

    def _wholes(self) -> list[str]:
        lines = []
        for p in range(self.pixels):
            value = f"bytes_of_one({self._words([(p, v) for v in range(4)])})"
            lines += self._store(value, range(p, p + 1), 0, self.wide)
        return lines

    def _pairs(self) -> list[str]:
        lines = []
        for p in range(0, self.pixels, 2):
            value = f"bytes_of_two({self._words([(q, v) for q in (p, p + 1) for v in (0, 1)])})"
            lines += self._store(value, range(p, p + 2), 0, self.wide // 2)
        return lines

    def _fours(self, vector: int) -> list[str]:
        lines = []
        for p in range(0, self.pixels, 4):
            value = f"bytes_of_four({self._words([(q, vector) for q in range(p, p + 4)])})"
            lines += self._store(value, range(p, p + 4), vector * self.wide // 4, self.wide // 4)
        return lines
