"""Vectors of sums become bytes: rounded, through a table, with a residual added, through another table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import Rounding, Sum8

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.definition import Convolution
    from hasten.engines.compiled.writer import Writer

_SUMS = 4
"""Vectors of sums that become one vector of bytes."""
_BYTES = 8
"""Bytes that are moved as one number."""


@dataclass(frozen=True)
class ChannelSums:
    """Sums of neighbouring channels of one pixel.

    Attributes:
        sum: C expression of a vector of int32, `vi_32` where vectors have 32 bytes.
        at: Place of the first sum's result, in elements from the pointers to the output and the residual.
        channel: Channel of the first sum, from the pointer to the scales.
        valid: Number of the sums that count; the others are dropped.
    """

    sum: str
    at: int
    channel: int
    valid: int


@dataclass(frozen=True)
class Epilogue:
    """Writer of results: C statements that make them from vectors of int32 sums.

    The pointers are C expressions, in which the place of a pixel may be added.

    Attributes:
        wide: Bytes of a vector.
        rounding: Rule by which sums become bytes; None for float32.
        sum: Rule by which the residual is added; None if there is none.
        output: Pointer to the results: `u8 *`, or `float *`.
        scale: Pointer to the scales, of which there must be a whole vector from each part's channel on.
        slope: Pointer to the slopes, likewise, that results below 0 are multiplied by; "" for none.
        residual: Pointer to the bytes that are added; "" for none.
        table: Pointer to 256 bytes that replace each byte; "" for none.
        last: Pointer to 256 bytes that replace each byte at the end; "" for none.
    """

    wide: int
    rounding: Rounding | None
    sum: Sum8 | None
    output: str
    scale: str
    slope: str = ""
    residual: str = ""
    table: str = ""
    last: str = ""

    @classmethod
    def of(cls, writer: Writer, conv: Convolution, wide: int) -> Epilogue:
        """Return a convolution's, with pointers to the whole tensors, for vectors of some bytes."""
        names = {
            field: writer.read(name)
            for field in ("residual", "table", "last")
            if (name := getattr(conv, field))
        }
        for field in ("scale", "slope"):
            if name := getattr(conv, field):
                names[field] = writer.table(padded(writer.constant(name), wide // 4))
        return cls(wide, conv.rounding, conv.sum, writer.write(conv.output), **names)

    @property
    def lanes(self) -> int:
        """Sums in a vector."""
        return self.wide // 4

    def emit(self, writer: Writer, parts: Sequence[ChannelSums], laned: bool = False) -> None:
        """Write the results of vectors of sums.

        Args:
            writer: Where to.
            parts: The vectors; four at a time become one of bytes, so neighbours should follow each other.
            laned: Whether the sums of each four parts, which must be neighbours, lie as in `laned_channels`.
        """
        with writer.block(""):
            if self.rounding is None:
                self._emit_floats(writer, parts, laned)
                return
            for start in range(0, len(parts), _SUMS):
                with writer.block(""):
                    four = parts[start : start + _SUMS]
                    names = []
                    for first in range(0, len(four), 2):
                        pair = [
                            self.rounded(part.sum, self.factors(part))
                            for part in four[first : first + 2]
                        ]
                        names.append(f"h{first // 2}")
                        writer.line(f"const vh_{self.wide} {names[-1]} = {self.halved(pair)};")
                    self._emit_bytes(writer, names, four, laned)

    def emit_halves(
        self,
        writer: Writer,
        halves: Sequence[str],
        parts: Sequence[ChannelSums],
        laned: bool = False,
    ) -> None:
        """Write the results of sums that were rounded and halved, two parts in each variable.

        Args:
            writer: Where to.
            halves: Variables made by `halved` of `rounded` parts.
            parts: Where they belong; see `emit`.
            laned: See `emit`.
        """
        for start in range(0, len(halves), 2):
            with writer.block(""):
                four = parts[2 * start : 2 * start + _SUMS]
                self._emit_bytes(writer, halves[start : start + 2], four, laned)

    def scaled(self, part: ChannelSums) -> str:
        """Return C for the scales of a part."""
        return f"*(const vf_u_{self.wide} *)({self.scale} + {part.channel})"

    def factors(self, part: ChannelSums) -> list[str]:
        """Return C for the scales of a part, and for its slopes if there are any."""
        slope = f"*(const vf_u_{self.wide} *)({self.slope} + {part.channel})"
        return [self.scaled(part), slope] if self.slope else [self.scaled(part)]

    def rounded(self, sums: str, factors: Sequence[str]) -> str:
        """Return C for the nearest integers of scaled sums, a vector of int32."""
        name = "sloped" if self.slope else "rounded"
        return f"{name}_{self.wide}({', '.join((sums, *factors))})"

    def halved(self, pair: Sequence[str]) -> str:
        """Return C for one vector of 16 bits of one or two of int32."""
        return f"halved_{self.wide}({pair[0]}, {pair[-1]})"

    def _emit_bytes(
        self, writer: Writer, halves: Sequence[str], parts: Sequence[ChannelSums], laned: bool
    ) -> None:
        """Write up to four parts' bytes."""
        rounding, w = self.rounding, self.wide
        assert rounding is not None
        pack = "laned" if laned else "packed"
        writer.line(f"vb_{w} q = {pack}_{w}({halves[0]}, {halves[-1]}, {rounding.zero});")
        writer.line(f"q = clamped_{w}(q, {rounding.low}, {rounding.high});")
        if self.table:
            writer.line(f"q = looked_up_{w}(q, {self.table});")
        if self.sum is not None:
            writer.line(self.summed("q", self._residual(parts)))
        if self.last:
            writer.line(f"q = looked_up_{w}(q, {self.last});")
        self._emit_store(writer, parts)

    def summed(self, first: str, second: str) -> str:
        """Return C that adds the second vector of bytes to the first, a variable."""
        assert self.sum is not None
        (a, b), total, w = self.sum.factors, self.sum, self.wide
        made = f"summed_{w}({first}, {second}, {a}, {b}, {total.offset}, {total.shift})"
        return f"{first} = clamped_{w}({made}, {total.low}, {total.high});"

    def _whole(self, parts: Sequence[ChannelSums]) -> bool:
        """Whether parts follow each other without a gap."""
        return all(part.valid == self.lanes for part in parts) and all(
            after.at == before.at + self.lanes for before, after in itertools.pairwise(parts)
        )

    def _residual(self, parts: Sequence[ChannelSums]) -> str:
        """Return C for the residual's bytes of up to four parts."""
        w, unit = self.wide, min(_BYTES, self.lanes)
        if len(parts) == _SUMS and self._whole(parts):
            return f"*(const vb_u_{w} *)({self.residual} + {parts[0].at})"
        words = []
        for part in parts:
            for start in range(0, self.lanes, unit):
                count = min(unit, max(0, part.valid - start))
                place = f"{self.residual} + {part.at + start}"
                words.append(f"first_bytes({place}, {count})" if count else "0")
        kind = "vl" if unit == _BYTES else "vi"
        return f"(vb_{w})(({kind}_{w}){{{', '.join(words)}}})"

    def _emit_store(self, writer: Writer, parts: Sequence[ChannelSums]) -> None:
        """Write the bytes `q` of up to four parts to their places, and nowhere else."""
        w = self.wide
        if len(parts) == _SUMS and self._whole(parts):
            writer.line(f"*(vb_u_{w} *)({self.output} + {parts[0].at}) = q;")
            return
        for start in range(0, len(parts), 2):
            pair = parts[start : start + 2]
            if len(pair) == 2 and self._whole(pair):
                place = f"{self.output} + {pair[0].at}"
                writer.line(f"put_half_{w}({place}, q, {start // 2});")
                continue
            for number, part in enumerate(pair, start):
                emit_pieces(
                    writer, "q", w, number * self.lanes, part.valid, f"{self.output} + {part.at}"
                )

    def _emit_floats(self, writer: Writer, parts: Sequence[ChannelSums], laned: bool) -> None:
        w = self.wide
        for start in range(0, len(parts), _SUMS):
            four = parts[start : start + _SUMS]
            for number, part in enumerate(four):
                with writer.block(""):
                    writer.line(
                        f"const vf_{w} f = __builtin_convertvector({part.sum}, vf_{w}) * {self.scaled(part)};"
                    )
                    if laned:
                        own = laned_channels(w)[number * self.lanes : (number + 1) * self.lanes]
                        for lane, channel in enumerate(own):
                            writer.line(f"({self.output})[{four[0].at + channel}] = f[{lane}];")
                    elif part.valid == self.lanes:
                        writer.line(f"*(vf_u_{w} *)({self.output} + {part.at}) = f;")
                    else:
                        for lane in range(part.valid):
                            writer.line(f"({self.output})[{part.at + lane}] = f[{lane}];")


def emit_pieces(writer: Writer, name: str, wide: int, start: int, count: int, place: str) -> None:
    """Write some bytes of a vector to memory, and no others.

    Args:
        writer: Where to.
        name: Variable of the vector.
        wide: Bytes of the vector.
        start: First byte.
        count: Number of bytes.
        place: C expression of a `u8 *`.
    """
    at, end = start, start + count
    while at < end:
        size = next(size for size in (8, 4, 2, 1) if at % size == 0 and at + size <= end)
        kind = {8: "vl", 4: "vi", 2: "vh", 1: "vb"}[size]
        to = f"({place} + {at - start})"
        writer.line(
            f"{{ const {_SCALARS[size]} part = (({kind}_{wide}){name})[{at // size}]; COPY({to}, &part, {size}); }}"
        )
        at += size


_SCALARS = {8: "i64", 4: "i32", 2: "i16", 1: "u8"}


def laned_channels(wide: int) -> list[int]:
    """Return the channel in each lane of four vectors of sums that become bytes without a permutation.

    Within each 16 bytes of the result, 4 come from each vector.
    """
    lanes = wide // 4
    return [
        lane // 4 * 16 + vector * 4 + lane % 4 for vector in range(_SUMS) for lane in range(lanes)
    ]


def padded(array: Array, more: int) -> Array:
    """Return a flat array with as many zeros behind it."""
    return np.concatenate([array, np.zeros(more, array.dtype)])
