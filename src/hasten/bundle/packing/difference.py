"""Pack what a bundle has that an older one has not: the difference is what a fleet downloads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hasten.bundle.manifest import MANIFEST, SIGNATURE, Manifest, one_line
from hasten.bundle.packing.codecs.zstandard import compressed
from hasten.bundle.packing.layout import Base, Head, Item, Piece, Relation
from hasten.bundle.packing.matching import matches
from hasten.bundle.packing.writer import (
    Cut,
    PackedAs,
    check_goal,
    chosen,
    cuts_of,
    files_of,
    order_of,
    whole_rows,
    write_packed,
)
from hasten.bundle.stored import stored_at
from hasten.core.records import file_digest
from hasten.core.tensors import Array

_TRIED = 2
"""Number of ways to state a tensor that are coded in full: those with the least entropy."""
_TOGETHER_BYTES = 16 << 20
"""Size up to which stretches that stay as they are share an item; it is joined in memory once."""
_CHUNK = 1 << 18
_MOST_ALIGNED = 1000
"""Largest number of small tensors that are compared with each other to find those that both bundles have."""
_STRETCH_BYTES = 20
"""About what stating a stretch takes in the head."""
Kind: TypeAlias = tuple[str, str, tuple[int, ...]]
RELATIONS: dict[int, tuple[Relation, ...]] = {
    1: ("xor", "minus"),
    **dict.fromkeys((2, 4, 8), ("xor", "zigzag")),
}
"""Ways to state a tensor by the older one, by the size of an element; of others nothing is gained."""


def pack_since(
    new: str | os.PathLike[str],
    old: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    codecs: Sequence[str] | None = None,
) -> PackedAs:
    """Pack the difference of a bundle to an older one into one file.

    Both bundles are in memory while it is made.

    Args:
        new: Bundle that the difference makes, a folder or a packed one.
        old: Older bundle, a folder or a packed one; the one who unpacks the difference must have it.
        out: File to write; it is there whole, or not at all. An older packed bundle there is replaced.
        codecs: Names of the codecs to choose from for each chunk; by default all that are installed.

    Raises:
        InputError: one of them is no bundle, or `out` can't be written.
        IntegrityError: one of them is damaged.
    """
    goal = Path(out)
    check_goal(goal)
    with contextlib.closing(stored_at(new)) as newer, contextlib.closing(stored_at(old)) as older:
        # Another signature may be over the same older bundle, so nothing is made of the signature.
        before = _Bundle(older.folder_with(list(older.manifest.files)), older.manifest)
        folder = newer.whole()
        after = _Bundle(folder, newer.manifest, signed=(folder / SIGNATURE).is_file())
        head = Head(after.sizes, (), (), before.base(after))
        return write_packed(goal, head, _cuts(after, before), chosen(codecs))


def difference(new: Array, old: Array, relation: Relation, width: int) -> Array:
    """Return what `hasten.bundle.packing.reader.apply` makes the new bytes of, and the older ones.

    Args:
        new: New bytes: uint8 of shape (n,).
        old: Older bytes: uint8 of shape (n,).
        relation: "xor", "minus" or "zigzag"; see `Item.relation`.
        width: Size of an element in bytes.
    """
    if relation == "xor":
        return np.bitwise_xor(new, old)
    words, before = (np.ascontiguousarray(data).view(f"<u{width}") for data in (new, old))
    apart = words - before
    if relation == "zigzag":
        signs = (apart.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
        apart = (apart << 1) ^ signs
    found: Array = apart.view(np.uint8)
    return found


@dataclass(frozen=True)
class _Bundle:
    """A bundle whose files are in a folder.

    Attributes:
        folder: The folder.
        manifest: Manifest of the bundle.
        signed: Whether the signature in the folder counts as one of its files.
    """

    folder: Path
    manifest: Manifest
    signed: bool = False

    @property
    def names(self) -> list[str]:
        """Paths of all files, in their order in a packed file."""
        return order_of(self.manifest, signed=self.signed)

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Path and size of each file, in that order."""
        return tuple((name, (self.folder / name).stat().st_size) for name in self.names)

    def base(self, newer: _Bundle) -> Base:
        """Return what a head states of this bundle as the older one, and of the newer one."""
        return Base(
            manifest=file_digest(self.folder / MANIFEST),
            files=self.sizes,
            created=one_line(self.manifest.created),
            label=one_line(self.manifest.winner.label)[:100],
            makes=file_digest(newer.folder / MANIFEST),
        )

    def cuts(self) -> Iterator[Cut]:
        """Yield tensors, groups of small ones, and the bytes between."""
        yield from cuts_of(self.folder, self.manifest, self.names)

    def kind(self, cut: Cut) -> Kind:
        """Return which model a tensor belongs to ("" for neither), its type and its shape."""
        name = self.names[cut.item.pieces[0].file]
        parts = (("winner", self.manifest.winner), ("exact", self.manifest.exact))
        roles = (role for role, part in parts if part is not None and name in files_of(part))
        return next(roles, ""), cut.item.dtype, cut.item.shape


def _cuts(after: _Bundle, before: _Bundle) -> Iterator[Cut]:
    """Yield the items of a difference: files that stay, tensors that change, and all else."""
    whole = list(_whole_files(after, before))
    yield from whole
    done = {after.names[piece.file] for cut in whole for piece in cut.item.pieces}
    older, kept = _Older(before), _Kept()
    cuts = list(cuts_of(after.folder, after.manifest, after.names, without=done))
    for cut, counterpart in zip(cuts, older.counterparts(after, cuts), strict=True):
        for one, before_it in older.aligned(after, cut, counterpart):
            yield from _changed(one, before_it, older, kept)
        yield from kept.full()
    yield from kept.rest()


def _whole_files(after: _Bundle, before: _Bundle) -> Iterator[Cut]:
    """Yield an item for each file that the older bundle has as it is, under whatever name."""
    places = {known: name for name, known in before.manifest.files.items()}
    numbers = {name: number for number, name in enumerate(before.names)}
    for number, name in enumerate(after.names):
        known = after.manifest.files.get(name)
        if known in places and known[1]:
            since = Piece(numbers[places[known]], 0, known[1])
            yield _same(name, (Piece(number, 0, known[1]),), (since,))


def _changed(cut: Cut, before: Cut | None, older: _Older, kept: _Kept) -> Iterator[Cut]:
    """Yield the items of a tensor or of other bytes, without what is added to `kept`."""
    if (equal := older.equal(cut)) is not None:
        kept.add(cut.item.pieces, equal.item.pieces)
    elif _is_bytes(cut):
        found = list(matches(cut.data, older.pool))
        places = [0, *(place for one in found for place in (one.new, one.new + one.length))]
        fresh = [
            (a, b - a) for a, b in zip(places[::2], [*places[1::2], len(cut.data)], strict=True)
        ]
        rest = _of(cut, [(at, length) for at, length in fresh if length])
        if rest is not None and not _worth(cut, rest, len(found)):
            yield cut
            return
        for one in found:
            new = part_of(cut.item.pieces, one.new, one.length)
            kept.add(new, part_of(older.pieces, one.old, one.length))
        if rest is not None:
            yield rest
    else:
        yield cut if before is None else _stated(cut, before)


def _worth(cut: Cut, rest: Cut, count: int) -> bool:
    """Whether bytes take less without what the older ones have of them, in so many stretches."""
    taken, left = (len(compressed(each.data.tobytes())) for each in (cut, rest))
    return left + _STRETCH_BYTES * count < taken


def _stated(cut: Cut, before: Cut) -> Cut:
    """Return a tensor with the ways to state it that may be the smallest."""
    width, ways = cut.item.width, [cut]
    chunk = whole_rows(cut.item)
    for relation in RELATIONS.get(width, ()):
        data = difference(cut.data, before.data, relation, width)
        item = replace(cut.item, relation=relation, since=before.item.pieces, chunk=chunk)
        ways.append(Cut(item, data))
    ways.sort(key=lambda way: entropy(way.data, width))
    first, *others = ways[:_TRIED]
    return replace(first, others=tuple(others))


def entropy(data: Array, width: int) -> float:
    """Return the entropy in bits of the bytes of some elements, each place in an element by itself.

    Args:
        data: Bytes of the elements: uint8 of shape (n,).
        width: Size of an element in bytes, which divides n.
    """
    planes = data.reshape(-1, width)
    total = 0.0
    for place in range(width):
        counts = np.bincount(planes[:, place], minlength=256)
        counts = counts[counts > 0]
        total -= float((counts * np.log2(counts / len(planes))).sum())
    return total


class _Older:
    """Tensors and other bytes of the older bundle, to be found by what the newer one has.

    Args:
        bundle: The older bundle.

    Attributes:
        pool: All its bytes that are no tensors, one after another: uint8 of shape (n,).
        pieces: Where they are.
    """

    def __init__(self, bundle: _Bundle) -> None:
        self._equal: dict[bytes, Cut] = {}
        self._tensors: dict[Kind, list[Cut]] = {}
        pool: list[Cut] = []
        for cut in bundle.cuts():
            self._equal[cut.key[0]] = cut
            if _is_bytes(cut):
                pool.append(cut)
            else:
                self._tensors.setdefault(bundle.kind(cut), []).append(cut)
        self.pool = np.concatenate([np.empty(0, np.uint8), *(cut.data for cut in pool)])
        self.pieces = tuple(piece for cut in pool for piece in cut.item.pieces)

    def equal(self, cut: Cut) -> Cut | None:
        """Return what holds the same bytes; None where nothing does."""
        return self._equal.get(cut.key[0])

    def counterparts(self, bundle: _Bundle, cuts: Sequence[Cut]) -> list[Cut | None]:
        """Return the older tensor for each of a newer bundle; None for bytes, and where there is none.

        Where both have as many of a kind, they are paired in their order: runtimes renumber constants
        each time, so that a name may be another's. Else they are paired by name.
        """
        kinds: dict[Kind, list[Cut]] = {}
        for cut in cuts:
            kinds.setdefault(bundle.kind(cut), []).append(cut)
        pairs: dict[int, Cut] = {}
        for kind, alike in kinds.items():
            before = self._tensors.get(kind, [])
            if len(alike) == len(before):
                pairs.update(zip(map(id, alike), before, strict=True))
            else:
                named = {cut.item.name: cut for cut in before}
                pairs.update(
                    (id(cut), named[cut.item.name]) for cut in alike if cut.item.name in named
                )
        return [pairs.get(id(cut)) for cut in cuts]

    def aligned(
        self, bundle: _Bundle, cut: Cut, before: Cut | None
    ) -> list[tuple[Cut, Cut | None]]:
        """Return what a newer bundle has, cut further where only some of it has older tensors to go with.

        Small tensors share an item. If one bundle has more of them than the other, those that both have, by
        their sizes and their order, go together. If a tensor has more rows than the older one of its name, or
        fewer, the first ones go together.
        """
        if before is not None or _is_bytes(cut):
            return [(cut, before)]
        role, dtype, shape = bundle.kind(cut)
        alike = [
            one
            for (owner, of, _), ones in self._tensors.items()
            for one in ones
            if (owner, of) == (role, dtype)
        ]
        groups = [one for one in alike if len(one.item.pieces) > 1]
        if len(cut.item.pieces) < 2:
            same = (cut.item.name, shape[1:])
            named = (one for one in alike if (one.item.name, one.item.shape[1:]) == same)
            return _by_rows(cut, next(named, None))
        if len(groups) != 1:
            return [(cut, None)]
        both = _both(*([piece.length for piece in one.item.pieces] for one in (cut, groups[0])))
        others = sorted({*range(len(cut.item.pieces))} - {new for new, _ in both})
        there = _pieces_of(groups[0], [older for _, older in both])
        found = [(_pieces_of(cut, [new for new, _ in both]), there)]
        found.append((_pieces_of(cut, others), None))
        return [(one, older) for one, older in found if one is not None]


def _by_rows(cut: Cut, before: Cut | None) -> list[tuple[Cut, Cut | None]]:
    """Return a tensor and the older one of its name as far as both have rows, and the rows that only it has."""
    if before is None or not cut.item.shape or not before.item.shape:
        return [(cut, None)]
    count, both = cut.item.shape[0], min(cut.item.shape[0], before.item.shape[0])
    found: list[tuple[Cut, Cut | None]] = [(_rows(cut, 0, both), _rows(before, 0, both))]
    return found if both == count else [*found, (_rows(cut, both, count), None)]


def _rows(cut: Cut, begin: int, end: int) -> Cut:
    """Return some rows of a tensor, which are its elements along the first axis, as an item of their own."""
    row = cut.item.size_bytes // cut.item.shape[0]
    pieces = part_of(cut.item.pieces, begin * row, (end - begin) * row)
    item = replace(cut.item, shape=(end - begin, *cut.item.shape[1:]), pieces=pieces)
    return Cut(item, cut.data[begin * row : end * row])


def _both(new: Sequence[int], old: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places in two lists of sizes that go together, in order: first those at both ends."""
    least = min(len(new), len(old))
    first = next((n for n in range(least) if new[n] != old[n]), least)
    last = next((n for n in range(least - first) if new[-1 - n] != old[-1 - n]), least - first)
    middle = [one[first : len(one) - last] for one in (new, old)]
    blocks = []
    if max(map(len, middle)) <= _MOST_ALIGNED:
        blocks = SequenceMatcher(None, middle[0], middle[1], autojunk=False).get_matching_blocks()
    return [
        *((n, n) for n in range(first)),
        *((first + a + n, first + b + n) for a, b, size in blocks for n in range(size)),
        *((len(new) - n, len(old) - n) for n in range(last, 0, -1)),
    ]


def _pieces_of(cut: Cut, numbers: Sequence[int]) -> Cut | None:
    """Return some pieces of an item as an item of their own; None if there are none."""
    if not numbers:
        return None
    pieces = tuple(cut.item.pieces[number] for number in numbers)
    ends = np.cumsum([piece.length for piece in cut.item.pieces])
    parts = [cut.data[ends[n] - cut.item.pieces[n].length : ends[n]] for n in numbers]
    data = np.concatenate(parts)
    shape = (len(data) // cut.item.width,)
    return Cut(replace(cut.item, shape=shape, pieces=pieces), data)


class _Kept:
    """Stretches that the newer bundle has as the older one has them, gathered into few items."""

    def __init__(self) -> None:
        self._new: list[Piece] = []
        self._old: list[Piece] = []

    def add(self, new: Sequence[Piece], old: Sequence[Piece]) -> None:
        """Add some stretches of the newer bundle, and where the older one has their bytes."""
        for pieces, more in ((self._new, new), (self._old, old)):
            for piece in more:
                last = pieces[-1] if pieces else Piece(-1, 0, 0)
                if (last.file, last.offset + last.length) == (piece.file, piece.offset):
                    pieces[-1] = replace(last, length=last.length + piece.length)
                else:
                    pieces.append(piece)

    def full(self) -> Iterator[Cut]:
        """Yield an item where there are enough stretches for one."""
        if sum(piece.length for piece in self._new) >= _TOGETHER_BYTES:
            yield from self.rest()

    def rest(self) -> Iterator[Cut]:
        """Yield an item of all stretches, if there are any."""
        if self._new:
            yield _same("what stays as it is", tuple(self._new), tuple(self._old))
        self._new, self._old = [], []


def part_of(pieces: Sequence[Piece], begin: int, length: int) -> tuple[Piece, ...]:
    """Return where some of the bytes are that lie in several pieces one after another."""
    found = []
    for piece in pieces:
        first, last = max(begin, 0), min(begin + length, piece.length)
        if first < last:
            found.append(Piece(piece.file, piece.offset + first, last - first))
        begin -= piece.length
    return tuple(found)


def _same(name: str, pieces: tuple[Piece, ...], since: tuple[Piece, ...]) -> Cut:
    size = sum(piece.length for piece in pieces)
    item = Item(name[:100], "uint8", (size,), 1, pieces, _CHUNK, relation="same", since=since)
    return Cut(item, np.empty(0, np.uint8))


def _of(cut: Cut, parts: Sequence[tuple[int, int]]) -> Cut | None:
    """Return some parts of other bytes as one item, by place and length; None if there are none."""
    if not parts:
        return None
    data = np.concatenate([cut.data[at : at + length] for at, length in parts])
    pieces = tuple(piece for part in parts for piece in part_of(cut.item.pieces, *part))
    return Cut(replace(cut.item, shape=(len(data),), pieces=pieces), data)


def _is_bytes(cut: Cut) -> bool:
    """Whether something is bytes rather than a tensor; a tensor of bytes on one axis counts as such."""
    return cut.item.dtype == "uint8" and len(cut.item.shape) == 1
