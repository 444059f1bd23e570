"""Pack a bundle's folder: cut its files into tensors and other bytes, and code each in chunks."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hasten.bundle.engines import engine_of
from hasten.bundle.folder import lean_copy, not_replaced, read
from hasten.bundle.manifest import MANIFEST, SIGNATURE, Manifest, Part
from hasten.bundle.packing import layout
from hasten.bundle.packing.blocks import Coder, all_codecs
from hasten.bundle.packing.codecs.base import Codec
from hasten.bundle.packing.layout import Head, Item, Piece
from hasten.bundle.packing.names import SUFFIX, is_packed
from hasten.bundle.packing.unpacking import unpacked
from hasten.bundle.requests import REQUESTS, stretches_of
from hasten.core.presence import path_text
from hasten.core.records import with_name
from hasten.core.tensors import Array
from hasten.core.words import counted
from hasten.engines.weights import Stretch
from hasten.errors import CandidateError, InputError, IntegrityError

_SMALL_BYTES = 8192
"""Size below which tensors of one type are packed together: each alone would take more room to state."""
_CHUNK_ELEMENTS = 1 << 18
CODING_HELPS = "Packing shortens the download and the cold start. The answers are the same bits and take as long as before."
_UNSIGNED = "{path} isn't signed, because leaving out files made another bundle of it: sign it with hasten sign {path}"
_MOST_WHOLE_BYTES = 64 << 20
"""Largest tensor that is tried as a single chunk."""


@dataclass(frozen=True)
class PackedTensor:
    """Size of a tensor, of small ones that were packed together, or of bytes that are no tensor.

    Attributes:
        name: Name of the tensor, or of what the bytes are.
        size_bytes: Number of bytes that it unpacks to.
        packed_bytes: Number of bytes that it takes; 0 where an earlier one is the same.
    """

    name: str
    size_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class PackedAs:
    """Sizes of what was packed, in bytes.

    Attributes:
        path: The packed file.
        folder_bytes: Size of all files of the bundle.
        packed_bytes: Size of the packed file.
        tensors: Sizes of the parts that the file holds, in their order there.
        lost_signature: Whether the bundle was signed, and isn't any more since something is left out.
    """

    path: Path
    folder_bytes: int
    packed_bytes: int
    tensors: tuple[PackedTensor, ...]
    lost_signature: bool = False

    def in_words(self) -> tuple[str, ...]:
        """Return the sizes as lines for people, and what they are good for."""
        share = 1 - self.packed_bytes / max(1, self.folder_bytes)
        return (
            f"{self.path}: {_said(self.packed_bytes)}, {_percent(share)}% less "
            f"than the {_said(self.folder_bytes)} of its unpacked files",
            *([_UNSIGNED.format(path=self.path)] if self.lost_signature else []),
            CODING_HELPS,
        )


@dataclass(frozen=True)
class Cut:
    """Bytes of a bundle that are packed as one item.

    Attributes:
        item: The item, without chunks.
        data: Bytes that are coded: uint8 of shape (n,).
        others: Other ways to state the same bytes; what is coded smallest is kept.
    """

    item: Item
    data: Array
    others: tuple[Cut, ...] = ()

    @property
    def key(self) -> tuple[bytes, int]:
        """Key that two items share which have the same chunks."""
        return hashlib.sha256(self.data.data).digest(), self.item.width


def _said(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def _percent(share: float) -> str:
    """Return a share for people: never 100 where something is left."""
    return f"{math.floor(1000 * share) / 10:.1f}" if share > 0.99 else f"{100 * share:.0f}"


def pack(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    keep_exact: bool = True,
    keep_evidence: bool = True,
    since: str | os.PathLike[str] | None = None,
    codecs: Sequence[str] | None = None,
) -> PackedAs:
    """Pack a bundle into one file, from which every file comes back bit for bit.

    Args:
        bundle: The bundle's folder, which is checked first; or a packed one.
        out: File to write, which is there whole or not at all; by default the bundle's name with
            .hastenz, beside it, NEW-since-OLD.hastenz with `since`, and NAME-lean.hastenz where something
            is left out. An older packed bundle there is replaced.
        keep_exact: Whether to keep the exact model, which `certify` and a server's fallback need.
        keep_evidence: Whether to keep the records of the run and its report, which `report` and `certify`
            need. They name every sealed sample by its hash, which no codec makes smaller.
        since: Older bundle, a folder or a packed one: only the difference to it is packed then, and
            unpacked with `base`.
        codecs: Names of the codecs to choose from for each chunk; by default all that are installed.

    Returns:
        The sizes of the file and of what is in it, in bytes.

    Raises:
        InputError: there is no bundle, or `out` can't be written.
        IntegrityError: the bundle is damaged.
    """
    goal = (
        _beside(bundle, since, lean=not (keep_exact and keep_evidence))
        if out is None
        else Path(out)
    )
    check_goal(goal)
    if is_packed(bundle) and goal.exists() and goal.samefile(bundle):
        raise InputError(f"{bundle} is already packed: give another out= to pack it again")
    if since is not None and keep_exact and keep_evidence:
        from hasten.bundle.packing.difference import pack_since

        return pack_since(bundle, since, goal, codecs=codecs)
    folder = unpacked(bundle)
    manifest = read(folder)
    exact = keep_exact or manifest.exact in (None, manifest.winner)
    if not (exact and keep_evidence):
        with tempfile.TemporaryDirectory(prefix="hasten-pack-") as work:
            place = Path(work, folder.name)
            lean = lean_copy(folder, manifest, place, keep_exact=exact, keep_evidence=keep_evidence)
            made = pack(lean, goal, since=since, codecs=codecs)
            return replace(made, lost_signature=(folder / SIGNATURE).is_file())
    if since is not None:
        return pack(folder, goal, since=since, codecs=codecs)
    names = order_of(manifest, signed=(folder / SIGNATURE).is_file())
    sizes = tuple((name, (folder / name).stat().st_size) for name in names)
    head = Head(sizes, (), ())
    return write_packed(goal, head, cuts_of(folder, manifest, names), chosen(codecs))


def _beside(
    bundle: str | os.PathLike[str], since: str | os.PathLike[str] | None, *, lean: bool
) -> Path:
    """Return the file that a bundle is packed to where the caller names none."""
    folder = with_name(Path(path_text(bundle)))
    stem = folder.name.removesuffix(SUFFIX).removesuffix(".hasten") + ("-lean" if lean else "")
    if since is not None:
        stem += f"-since-{Path(since).resolve().stem}"
    return folder.with_name(stem + SUFFIX)


def check_goal(goal: Path) -> None:
    """Check that a packed file overwrites nothing but an older one.

    Raises:
        InputError: something else is there.
    """
    if os.path.lexists(goal) and not is_packed(goal):
        raise InputError(f"{goal} exists and isn't a packed bundle: give another out= or remove it")


def chosen(names: Sequence[str] | None) -> tuple[Codec, ...]:
    """Return codecs by their names; all that are installed if there are none.

    Raises:
        InputError: there is no codec of a name, or what it needs isn't installed.
    """
    every = all_codecs()
    if names is None:
        return every
    if isinstance(names, str):
        raise InputError(f"codecs= takes a list of names: got {names!r}")
    known = {Codec.registry.name_of(type(codec)): codec for codec in every}
    for name in names:
        if name not in known:
            raise InputError(
                f"there is no codec {name!r} here; the codecs are {', '.join(map(str, known))}"
            )
    return tuple(known[name] for name in dict.fromkeys(("raw", *names)))


def order_of(manifest: Manifest, *, signed: bool = False) -> list[str]:
    """Return a bundle's files in the order in which opening it needs them.

    What the winner needs comes first, so that it answers before the rest of a download is there.

    Args:
        manifest: The bundle's manifest.
        signed: Whether there is a signature over it.
    """
    own = [MANIFEST, SIGNATURE] if signed else [MANIFEST]
    parts = [*own, *files_of(manifest.winner), REQUESTS]
    last = [] if manifest.exact is None else files_of(manifest.exact)
    known = [name for name in parts if name in own or name in manifest.files]
    rest = [name for name in manifest.files if name not in {*known, *last}]
    return list(dict.fromkeys((*known, *rest, *last)))


def files_of(item: Part) -> list[str]:
    """Return the paths of a part's files in the bundle; the one that its engine opens is first."""
    return [file.as_posix() for file in (item.artifact.path, *item.artifact.files)]


def cuts_of(
    folder: Path, manifest: Manifest, names: Sequence[str], without: Set[str] = frozenset()
) -> Iterator[Cut]:
    """Cut a bundle's files into tensors, groups of small ones, and the bytes between.

    Args:
        folder: The bundle's folder.
        manifest: Its manifest.
        names: Its files, in their order in the packed file.
        without: Files to leave out.
    """
    numbers = {name: number for number, name in enumerate(names)}
    done = set(without)
    groups = [[MANIFEST, SIGNATURE], files_of(manifest.winner)]
    exact = [] if manifest.exact is None else files_of(manifest.exact)
    groups += [[name for name in names if name not in {MANIFEST, *groups[1], *exact}], exact]
    parts: list[Part | None] = [None, manifest.winner, None, manifest.exact]
    for part, group in zip(parts, groups, strict=True):
        fresh = [name for name in dict.fromkeys(group) if name in numbers and name not in done]
        done.update(fresh)
        found = _tensors(folder, manifest, part) if part is not None and fresh else []
        if REQUESTS in fresh:
            found = list(stretches_of(folder, manifest))
        yield from _cut(folder, fresh, numbers, found)


def _tensors(folder: Path, manifest: Manifest, part: Part) -> list[Stretch]:
    """Return where a part's tensors lie; none where its engine isn't here to tell."""
    try:
        artifact = replace(
            part.artifact,
            path=folder / part.artifact.path,
            files=tuple(folder / file for file in part.artifact.files),
        )
        return list(engine_of(part, manifest.target.threads).stretches(artifact))
    except (InputError, CandidateError):
        return []


def _cut(
    folder: Path, names: Sequence[str], numbers: dict[str, int], tensors: Sequence[Stretch]
) -> Iterator[Cut]:
    """Cut some files: large tensors, small ones by their type, then what lies between."""
    if not names:
        return
    data = {name: np.fromfile(folder / name, np.uint8) for name in names}
    ends = dict.fromkeys(names, 0)
    rest: list[Piece] = []
    small: dict[str, list[tuple[Stretch, Piece]]] = {}
    place = {folder / name: name for name in names}
    for one in sorted(tensors, key=lambda one: (str(one.file), one.offset)):
        name = place.get(one.file)
        if name is None or one.offset < ends[name] or one.offset + one.length > len(data[name]):
            continue  # it overlaps another: two names for the same numbers
        if not layout.fits(one.shape, one.width, one.length):
            continue  # an engine of somebody else may say anything
        if one.offset > ends[name]:
            rest.append(Piece(numbers[name], ends[name], one.offset - ends[name]))
        ends[name] = one.offset + one.length
        piece = Piece(numbers[name], one.offset, one.length)
        if one.length < _SMALL_BYTES:
            small.setdefault(one.dtype, []).append((one, piece))
            continue
        yield _item(one.name, one.dtype, one.shape, one.width, [piece], names, numbers, data)
    for dtype, group in small.items():
        width, pieces = group[0][0].width, [piece for _, piece in group]
        size = sum(piece.length for piece in pieces) // width
        title = f"{counted(len(group), 'small tensor')} of {names[0]}"
        yield _item(title, dtype, (size,), width, pieces, names, numbers, data)
    for name in names:
        if ends[name] < len(data[name]):
            rest.append(Piece(numbers[name], ends[name], len(data[name]) - ends[name]))
    if rest:
        rest.sort(key=lambda piece: (piece.file, piece.offset))
        by_number = {numbers[name]: name for name in names}
        title = ", ".join(dict.fromkeys(by_number[piece.file] for piece in rest))
        size = sum(piece.length for piece in rest)
        title = f"what is no tensor in {title}"[:100]
        yield _item(title, "uint8", (size,), 1, rest, names, numbers, data)


def _item(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    width: int,
    pieces: Sequence[Piece],
    names: Sequence[str],
    numbers: dict[str, int],
    data: dict[str, Array],
) -> Cut:
    by_number = {numbers[each]: data[each] for each in names}
    parts = [by_number[p.file][p.offset : p.offset + p.length] for p in pieces]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    item = Item(name, dtype, shape, width, tuple(pieces), _CHUNK_ELEMENTS * min(width, 8))
    if width == 1 and len(shape) > 1:
        item = replace(item, chunk=whole_rows(item))
    return Cut(item, joined)


def whole_rows(item: Item) -> int:
    """Return the number of bytes in a chunk that holds whole rows of the first axis, as far as one has room.

    Rows are unlike each other, and training changes some of them more than others, which a codec finds where
    rows are whole. Chunks have nearly the same number of rows.

    Args:
        item: The tensor; its `chunk` is the most bytes that a chunk may have.
    """
    rows = item.shape[0] if item.shape else 1
    row = item.size_bytes // rows
    most = item.chunk // row
    return -(-rows // -(-rows // most)) * row if 0 < most < rows else item.chunk


def write_packed(out: Path, head: Head, cuts: Iterator[Cut], codecs: Sequence[Codec]) -> PackedAs:
    """Code items and write a packed file, whole or not at all.

    Args:
        out: File to write.
        head: Head without items and codecs.
        cuts: Items without chunks, with their bytes, in their order in the file.
        codecs: Codecs to choose from for each chunk.

    Raises:
        InputError: the file can't be written; nothing is left of it.
    """
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    chunks = out.with_name(f"{beside.name}.chunks")
    try:
        with chunks.open("w+b") as kept, ThreadPoolExecutor(_threads()) as pool:
            coding = _Coding(Coder(codecs), pool, layout.spare_of(head.base))
            items = tuple(coding.put(cut, kept) for cut in cuts)
            kept.seek(0)
            head = replace(head, codecs=coding.coder.names, items=items)
            with beside.open("wb") as file:
                start = layout.to_bytes(head)
                size = _put(file, start, kept)
            _check_readable(start, size, out)
        beside.replace(out)
    except OSError as error:
        raise InputError(f"can't write {out}: {not_replaced(error)}") from error
    finally:
        for leftover in (chunks, beside):
            leftover.unlink(missing_ok=True)
    tensors = tuple(PackedTensor(item.name, item.size_bytes, item.coded_bytes) for item in items)
    return PackedAs(out, head.size_bytes, size, tensors)


def _check_readable(start: bytes, size_bytes: int, out: Path) -> None:
    """Check that a reader takes what was written: it refuses what no bundle should need.

    Raises:
        InputError: it doesn't.
    """
    try:
        length, sha256 = layout.head_length(start)
        layout.read_head(start[-length:], sha256, size_bytes)
    except IntegrityError as error:
        raise InputError(
            f"can't pack into {out}: no reader would take it, because {error}"
        ) from error


class _Coding:
    """Coder of items, one after another, which keeps the file from claiming more than a reader believes.

    Args:
        coder: Coder of chunks.
        pool: Threads that code.
        spare_bytes: Number of bytes that the file may unpack to, however small it is.

    Attributes:
        coder: Coder of chunks.
    """

    def __init__(self, coder: Coder, pool: ThreadPoolExecutor, spare_bytes: int) -> None:
        self.coder, self._pool, self._spare_bytes = coder, pool, spare_bytes
        self._items: list[Item] = []
        self._seen: dict[tuple[bytes, int], int] = {}
        self._size_bytes = self._coded_bytes = 0

    def put(self, cut: Cut, kept: BinaryIO) -> Item:
        """Code an item, write its chunks, and return it."""
        self._size_bytes += sum(piece.length for piece in cut.item.pieces)
        least = layout.least_bytes(self._size_bytes, self._spare_bytes) - self._coded_bytes
        first = self._seen.setdefault(cut.key, len(self._items))
        alike = first < len(self._items) and not cut.item.relation
        if alike and least <= 0 and not self._items[first].relation:
            item = replace(cut.item, like=first, chunk=self._items[first].chunk)
        else:
            ways = [self._coded(way, least) for way in (cut, *cut.others)]
            item, blocks = min(ways, key=lambda way: way[0].coded_bytes)
            kept.writelines(blocks)
        self._items.append(item)
        self._coded_bytes += item.coded_bytes
        return item

    def _coded(self, cut: Cut, least_bytes: int) -> tuple[Item, list[bytes]]:
        """Code an item's chunks, or all of it as one where that is smaller.

        Args:
            cut: The item.
            least_bytes: Fewest bytes that it has to take, for which chunks stay as they are.
        """
        item, data = cut.item, cut.data
        if item.relation == "same":
            return item, []
        chunks = [data[begin : begin + item.chunk] for begin in range(0, len(data), item.chunk)]
        blocks = list(self._pool.map(lambda chunk: self.coder.code(chunk, item.width), chunks))
        if len(chunks) > 1 and len(data) <= _MOST_WHOLE_BYTES:
            whole = self.coder.repeats(data)
            if whole is not None and least_bytes < len(whole) < sum(map(len, blocks)):
                size = -(-len(data) // item.width) * item.width
                item, blocks = replace(item, chunk=size), [whole]
        for number, chunk in enumerate(chunks):
            if sum(map(len, blocks)) >= least_bytes:
                break
            blocks[number] = self.coder.plain(chunk)
        sums = tuple(zlib.crc32(block) for block in blocks)
        return replace(item, coded=tuple(map(len, blocks)), sums=sums), blocks


def _put(file: BinaryIO, start: bytes, kept: BinaryIO) -> int:
    """Write a whole packed file; return its size."""
    whole = hashlib.sha256(start)
    file.write(start)
    while part := kept.read(1 << 20):
        whole.update(part)
        file.write(part)
    file.write(whole.digest())
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))
