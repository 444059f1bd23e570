"""Sums of a tile for ARM processors that multiply bytes: by dot products, or by matrices (i8mm).

A dot product takes four neighbouring bytes of a pixel, out of a register that holds 16, and as many weights of
each of four channels. So a pixel's bytes needn't be put into all lanes first. Both are bytes with signs: 128 is
taken from the pixel's, and the bias makes up for that.

A product of matrices takes eight bytes of each of two pixels, without signs, and as many weights of each of two
channels. Its four sums lie pixel by pixel, so a vector of channels is made of two such at the end.
"""

from __future__ import annotations

from hasten.engines.compiled.operators.int8.tiles import Tile

_LOADS = (16, 8, 4)
"""Bytes of a pixel that are loaded at once."""


class Dots(Tile):
    """A tile by dot products, with an element of a register for a pixel's four bytes."""

    def _dots(self, places: list[int]) -> list[str]:
        lines = []
        for first, size in _loads(places):
            lines.append("{")
            lines += [
                f"const vi z{p} = BYTES_OF_{size}(q + x{p} + {places[first]});"
                for p in range(self.pixels)
            ]
            products = [
                [f"DOT_OF(a{p}_{v}, z{p}, {{w}}, {number});" for p in range(self.pixels)]
                for number in range(size // 4)
                for v in range(self.vectors)
            ]
            lines += [*_by_weights(first * self.vectors * self.wide, products), "}"]
        return lines


class Matrices(Tile):
    """A tile by i8mm: `s0_1` has sums of the first two pixels, and of the second two channels."""

    @property
    def _pairs_of_pixels(self) -> range:
        return range(-(-self.pixels // 2))

    def _begun(self) -> list[str]:
        return [
            f"vi s{pair}_{2 * v + half} = TWICE_{half}(*(const vi *)(b + {v * self.wide}));"
            for v in range(self.vectors)
            for half in (0, 1)
            for pair in self._pairs_of_pixels
        ]

    def _dots(self, places: list[int]) -> list[str]:
        lines = []
        for first, size in _loads(places):
            lines.append("{")
            for pair in self._pairs_of_pixels:
                one, other = (min(2 * pair + p, self.pixels - 1) for p in (0, 1))
                place = places[first]
                lines.append(
                    f"vi z{pair}[{size // 8}]; ROWS_OF_{size}(z{pair}, q + x{one} + {place}, q + x{other} + {place});"
                )
            products = [
                [
                    f"MATRICES(s{pair}_{half}, z{pair}[{number}], {{w}});"
                    for pair in self._pairs_of_pixels
                ]
                for number in range(size // 8)
                for half in range(2 * self.vectors)
            ]
            lines += [*_by_weights(first * self.vectors * self.wide, products), "}"]
        return lines

    def _ended(self) -> list[str]:
        return [
            f"const vi a{p}_{v} = ROW_{p % 2}(s{p // 2}_{2 * v}, s{p // 2}_{2 * v + 1});"
            for p in range(self.pixels)
            for v in range(self.vectors)
        ]


def _by_weights(at: int, products: list[list[str]]) -> list[str]:
    """Return products with one vector of weights after the other, each loaded before the last one's products."""
    lines = ["vi w0, w1;", f"LOADED(w0, w + {at});"]
    for number, some in enumerate(products):
        if number + 1 < len(products):
            lines.append(f"LOADED(w{(number + 1) % 2}, w + {at + 16 * (number + 1)});")
        lines += [one.format(w=f"w{number % 2}") for one in some]
    return lines


def _loads(places: list[int]) -> list[tuple[int, int]]:
    """Return loads that give the four bytes at each of some places: the first one's number, and how many bytes."""
    found, first = [], 0
    while first < len(places):
        start = places[first]
        size = next(
            size
            for size in _LOADS
            if places[first : first + size // 4] == list(range(start, start + size, 4))
        )
        found.append((first, size))
        first += size // 4
    return found
