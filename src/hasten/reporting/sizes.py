"""Records of how small the forms of one model get once they are packed, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.certificate.drop import Drop

if TYPE_CHECKING:
    from hasten.reporting.result import Result

STEADY = "a smaller file shortens the download and the cold start, but no request after that"
"""Note on what a packed size is about, to be said wherever one is shown."""
HEAD = ("", "form", "packed", "of the weights", "not 0", "values", "accuracy in the search")


@dataclass(frozen=True)
class SizeRow:
    """One form of a model, and the size that it is packed to.

    Attributes:
        label: Label of the form, for people.
        packed_bytes: Size of the form once it is packed.
        left: Share of the elements of its tensors that aren't 0.
        values: Largest number of distinct values in one of its large tensors.
        said: Outcome of the form in the search, in words.
        drop: Drop of the scores on the search split; None where it wasn't judged.
        frontier: Whether no other form is both as small and as accurate.
        rung: Place on the ladder that was certified, 0 for the safest; None where it isn't on it.
    """

    label: str
    packed_bytes: int
    left: float
    values: int
    said: str
    drop: Drop | None = None
    frontier: bool = False
    rung: int | None = None


@dataclass(frozen=True)
class Sizes:
    """The forms of a model that were compared by their packed size.

    Attributes:
        weights_bytes: Size of the original's tensors as they are.
        lossless_bytes: Size of the original once it is packed without loss.
        rows: Smaller forms, largest first.
        winner: Label of what ships.
    """

    weights_bytes: int
    lossless_bytes: int
    rows: tuple[SizeRow, ...]
    winner: str

    @property
    def shipped(self) -> SizeRow | None:
        """Return the row of what ships; None where that is the original, packed without loss."""
        return next((row for row in self.rows if row.label == self.winner), None)

    @property
    def times_smaller(self) -> float:
        """Return how many times smaller what ships is than the original's tensors."""
        shipped = self.shipped
        packed = self.lossless_bytes if shipped is None else shipped.packed_bytes
        return self.weights_bytes / max(1, packed)

    def possible(self) -> bool:
        """Whether the numbers can be drawn: those of a record from disk may be anything."""
        sizes = (self.weights_bytes, self.lossless_bytes, *(r.packed_bytes for r in self.rows))
        return all(size > 0 for size in sizes) and all(
            0 <= row.left <= 1
            and row.values >= 0
            and (row.drop is None or -1 <= row.drop.low <= row.drop.estimate <= row.drop.high <= 1)
            for row in self.rows
        )


def size_in_words(count: float) -> str:
    """Write a number of bytes with three significant digits, in bytes, kB or MB."""
    unit, each = next((u, e) for u, e in (("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if count >= e)
    return f"{float(f'{count / each:.3g}'):g} {unit}"


def columns(sizes: Sizes) -> list[tuple[str, ...]]:
    """Return the head and the rows of the table of forms: the original first, the smallest last."""
    role = "ships" if sizes.shipped is None else ""
    original = (role, "as it is, without loss", *_cells(sizes, sizes.lossless_bytes))
    rows = [(*original, "-", "-", "exact")]
    for row in sizes.rows:
        role = "ships" if row.label == sizes.winner else "frontier" if row.frontier else ""
        cells = _cells(sizes, row.packed_bytes)
        rows.append((role, row.label, *cells, f"{100 * row.left:.3g}%", str(row.values), row.said))
    return [HEAD, *rows]


def _cells(sizes: Sizes, packed_bytes: int) -> tuple[str, str]:
    return size_in_words(packed_bytes), f"{sizes.weights_bytes / packed_bytes:.3g}x smaller"


def headline(result: Result) -> str:
    """Write the result in a few words."""
    assert result.sizes is not None
    sure = {"certified": "certified", "exact": "without loss", "uncertified": "not certified"}
    return f"{result.sizes.times_smaller:.3g}x smaller, {sure[result.status]}"


def summary(result: Result) -> list[str]:
    """Return the result in lines: how small, how sure, and what a small file is good for."""
    sizes = result.sizes
    assert sizes is not None
    certified = f"{result.status}: {result.why}"
    if sizes.shipped is None:
        certified = f"not certified: {result.why}"
    return [
        f"{headline(result)}: {size_in_words(sizes.weights_bytes / sizes.times_smaller)} of "
        f"{size_in_words(sizes.weights_bytes)}; {STEADY}",
        certified,
        f"for: {result.population}",
        *(f"note: {note}" for note in result.notes),
    ]
