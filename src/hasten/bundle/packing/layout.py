"""Layout of a packed bundle: a head that states every tensor and every chunk, then the chunks.

8 bytes   magic, 0x89 "HASTENZ"
2 bytes   version of the format, little-endian
2 bytes   zero
4 bytes   length of the head in bytes, little-endian
32 bytes  SHA-256 of the head
head      JSON in UTF-8, as one zstd frame
chunks    one after another, in the order of the head's items
32 bytes  SHA-256 of all that comes before
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias, get_type_hints

import msgspec

from hasten.bundle.manifest import MANIFEST, MANIFEST_BYTES
from hasten.bundle.packing.codecs.zstandard import compressed, decompressed
from hasten.bundle.packing.names import MAGIC
from hasten.core.records import to_record
from hasten.errors import IntegrityError

VERSION = 1
PREFIX = struct.Struct("<8sHHI32s")
END_BYTES = hashlib.sha256().digest_size
_MOST_HEAD_BYTES, _MOST_JSON_BYTES = 16 << 20, 32 << 20
_MOST_CHUNKS, _MOST_AXES, _MOST_WIDTH = 1 << 20, 32, 16
_MOST_FILES, _MOST_FILE_BYTES = 1 << 16, 1 << 48
_MOST_PATH_BYTES, _MOST_NAME_BYTES = 1024, 255
_ADDABLE = frozenset({1, 2, 4, 8})
"""Sizes of elements in bytes that there are integers of."""
_ALWAYS_BYTES, _MOST_RATIO = 64 << 20, 1 << 12
"""A file may unpack to so many bytes whatever its own size, and to so many times its own size."""
_MOST_OF_BASE = 4
"""A difference may unpack to so many times the size of its base, besides."""
Relation: TypeAlias = Literal["", "same", "xor", "minus", "zigzag"]


@dataclass(frozen=True)
class Piece:
    """Some bytes of an unpacked file.

    Attributes:
        file: Number of the file: its place among the head's files, or among those of the base.
        offset: Place of the first byte.
        length: Number of bytes.
    """

    file: int
    offset: int
    length: int


@dataclass(frozen=True)
class Item:
    """A tensor, or other bytes, in chunks that are coded one by one.

    Attributes:
        name: Name of the tensor, or of what the bytes are.
        dtype: Type of an element by its name in numpy or ml_dtypes; "uint8" for bytes.
        shape: Size of each axis.
        width: Size of an element in bytes.
        pieces: Where the bytes go, in their order.
        chunk: Number of bytes in each chunk, but for the last, which holds the rest.
        coded: Length of each coded chunk in bytes.
        sums: CRC-32 of each coded chunk.
        relation: Rule by which the older bytes make the new ones of what the chunks hold. "" without older bytes;
            "same" if they are the new ones, and there are no chunks; "xor"; "minus", if they were
            subtracted from the new ones, element by element and modulo 2 to the power of the element's
            bits; "zigzag", if that difference d, read as a signed number, was stated as 2 d where it is
            not negative, and as -2 d - 1 where it is.
        since: Where the older bytes are in the base, in their order.
        like: Number of an earlier item that holds the same bytes: its chunks are this one's, too. -1 for
            an item with chunks of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: int
    pieces: tuple[Piece, ...]
    chunk: int
    coded: tuple[int, ...] = ()
    sums: tuple[int, ...] = ()
    relation: Relation = ""
    since: tuple[Piece, ...] = ()
    like: int = -1

    @property
    def size_bytes(self) -> int:
        """Number of bytes that it unpacks to."""
        return sum(piece.length for piece in self.pieces)

    @property
    def coded_bytes(self) -> int:
        """Number of bytes that it takes in the packed file."""
        return sum(self.coded)


@dataclass(frozen=True)
class Base:
    """Older bundle that a packed one is the difference to.

    Attributes:
        manifest: SHA-256 of its manifest file, in hex.
        files: Path and size in bytes of each of its files that is needed.
        created: Time of its creation as its manifest states it, to tell people which bundle it is.
        label: Label of its winner, for the same.
        makes: SHA-256 of the newer bundle's manifest file, in hex; "" in files that don't state it.
    """

    manifest: str
    files: tuple[tuple[str, int], ...]
    created: str = ""
    label: str = ""
    makes: str = ""


@dataclass(frozen=True)
class Head:
    """Head of a packed bundle.

    Attributes:
        files: Path and size in bytes of each file that the bundle unpacks to.
        codecs: Names of the codecs, in the order of the numbers that chunks name them by.
        items: Tensors and other bytes that the chunks make up, in the order of their chunks.
        base: Older bundle that this is the difference to; None if it stands alone.
    """

    files: tuple[tuple[str, int], ...]
    codecs: tuple[str, ...]
    items: tuple[Item, ...]
    base: Base | None = None

    @property
    def size_bytes(self) -> int:
        """Number of bytes that the whole bundle unpacks to."""
        return sum(size for _, size in self.files)

    def told(self, item: Item) -> str:
        """Return an item's name for people, with its file where the name alone doesn't tell it."""
        file, name = self.files[item.pieces[0].file][0], f"{item.name[:100]!r}"
        told = any(path in item.name for path, _ in self.files)
        return name if told else f"the tensor {name} in {file[:100]}"


def to_bytes(head: Head) -> bytes:
    """Return the start of a packed file: the prefix and the head."""
    record = to_record(head)
    record["items"] = _columns(record["items"])
    packed = compressed(json.dumps(record, separators=(",", ":")).encode())
    sha256 = hashlib.sha256(packed).digest()
    return PREFIX.pack(MAGIC, VERSION, 0, len(packed), sha256) + packed


def spare_of(base: Base | None) -> int:
    """Return how many bytes a file may unpack to because of its base, whatever its own size."""
    return 0 if base is None else _MOST_OF_BASE * sum(size for _, size in base.files)


def least_bytes(unpacked_bytes: int, spare_bytes: int) -> int:
    """Return how large a file must be that unpacks to so many bytes, `spare_bytes` of them because of its base."""
    own = unpacked_bytes - spare_bytes
    return -(-own // _MOST_RATIO) if own > _ALWAYS_BYTES else 0


def head_length(prefix: bytes) -> tuple[int, bytes]:
    """Return the length and the SHA-256 of the head that follows a prefix.

    Raises:
        IntegrityError: it is no prefix of a packed bundle, or of one by a newer version.
    """
    if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
        raise IntegrityError("it isn't a packed bundle: its first bytes aren't those of one")
    _, version, zero, length, sha256 = PREFIX.unpack(prefix[: PREFIX.size])
    if version > VERSION:
        raise IntegrityError(
            f"it was packed by a newer version of hasten (format {version}, this one reads {VERSION}); "
            "upgrade hasten"
        )
    if version < 1 or zero or not 0 < length <= _MOST_HEAD_BYTES:
        raise IntegrityError("its beginning is damaged; get the file again")
    return length, sha256


def read_head(packed: bytes, sha256: bytes, file_bytes: int | None) -> Head:
    """Read a head and check that all that it states is possible.

    Args:
        packed: Bytes of the head.
        sha256: SHA-256 that the prefix states.
        file_bytes: Size of the whole file; None if it isn't known.

    Raises:
        IntegrityError: the head is damaged, or states what can't be; the message says what.
    """
    if hashlib.sha256(packed).digest() != sha256:
        raise IntegrityError(
            "its head is damaged: it doesn't have the stated hash; get the file again"
        )
    text = decompressed(packed, _MOST_JSON_BYTES)
    head = _head(text)
    _check_files(head.files)
    if head.base is not None:
        _check_files(head.base.files)
    for number, item in enumerate(head.items):
        _check_item(item, head)
        _check_like(item, head.items, number)
    _check_covered(head)
    stated = PREFIX.size + len(packed) + sum(item.coded_bytes for item in head.items) + END_BYTES
    if file_bytes is not None and file_bytes != stated:
        where = _end_of(head, PREFIX.size + len(packed), file_bytes)
        raise IntegrityError(
            f"it has {file_bytes:,} bytes, but {stated:,} were written: {where}; get the file again"
        )
    if stated < least_bytes(head.size_bytes, spare_of(head.base)):
        raise IntegrityError(f"its {stated:,} bytes claim to unpack to {head.size_bytes:,}")
    return head


def _end_of(head: Head, place: int, file_bytes: int) -> str:
    """Say where a file ends that is too short or too long; its chunks begin at a place."""
    for item in head.items:
        place += item.coded_bytes
        if place > file_bytes:
            return f"it is cut off within {head.told(item)}"
    return "its end is cut off" if file_bytes < place + END_BYTES else "more data follows its end"


def _columns(items: list[dict[str, object]]) -> dict[str, list[object]]:
    """Turn records of one kind into one list for each field, which packs smaller."""
    return {field.name: [item[field.name] for item in items] for field in fields(Item)}


def _head(text: bytes) -> Head:
    """Read the JSON of a head straight into its types, so that no other values take memory."""
    try:
        stated = _decoder().decode(text)
        columns = [getattr(stated.items, field.name) for field in fields(Item)]
        items = tuple(Item(*row) for row in zip(*columns, strict=True))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"its head is damaged: {error!s:.200}") from error
    return Head(stated.files, stated.codecs, items, stated.base)


@functools.cache
def _decoder() -> msgspec.json.Decoder[Any]:
    """Return the decoder of a head whose items are columns."""
    kinds: dict[str, Any] = get_type_hints(Item)
    columns: list[tuple[str, Any]] = [
        (name, tuple.__class_getitem__((kind, ...))) for name, kind in kinds.items()
    ]
    kinds = get_type_hints(Head)
    kinds["items"] = msgspec.defstruct("Columns", columns)
    return msgspec.json.Decoder(msgspec.defstruct("Stated", list(kinds.items())))


def _check_files(files: Sequence[tuple[str, int]]) -> None:
    if len(files) > _MOST_FILES:
        raise IntegrityError(
            f"it states {len(files):,} files, but at most {_MOST_FILES:,} are possible"
        )
    seen: set[str] = set()
    for name, size_bytes in files:
        # Longer ones can't be written, and all of their folders take the square of their length.
        if len(name.encode()) > _MOST_PATH_BYTES:
            raise IntegrityError(f"the name of its file {name!r:.100} is too long")
        pure = PurePosixPath(name)
        if any(len(part.encode()) > _MOST_NAME_BYTES for part in pure.parts):
            raise IntegrityError(f"the name of its file {name!r:.100} is too long")
        strange = pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name
        if strange or name in (".", "") or not name.isprintable() or "\\" in name:
            raise IntegrityError(f"its file {name!r:.100} leads out of the bundle")
        if name in seen or seen & {str(parent) for parent in pure.parents}:
            raise IntegrityError(f"its file {name!r:.100} appears twice")
        if name == MANIFEST and size_bytes > MANIFEST_BYTES:
            raise IntegrityError(f"its {name} is larger than {MANIFEST_BYTES >> 10} KiB")
        if not 0 <= size_bytes <= _MOST_FILE_BYTES:
            raise IntegrityError(f"its file {name!r:.100} has {size_bytes} bytes")
        seen.add(name)
    folders = {str(parent) for name in seen for parent in PurePosixPath(name).parents}
    if clash := seen & folders:
        raise IntegrityError(f"its file {min(clash)!r:.100} is also a folder")


def _check_item(item: Item, head: Head) -> None:
    """Check an item's own numbers, and that its pieces lie within the files."""
    size = 0
    for piece in item.pieces:
        _check_piece(piece, head.files, item.name)
        size += piece.length
    sizes = f"{size:,} bytes, {item.shape!s:.60} elements of {item.width!s:.30} bytes"
    chunks = -(-size // item.chunk) if item.chunk > 0 else -1
    if item.relation == "same" or item.like != -1:
        chunks = 0
    possible = (
        fits(item.shape, item.width, size)
        and item.chunk > 0
        and item.chunk % item.width == 0
        and len(item.coded) == len(item.sums) == chunks <= _MOST_CHUNKS
        and all(0 < coded <= _most_coded(min(item.chunk, size)) for coded in item.coded)
        and all(0 <= crc < 1 << 32 for crc in item.sums)
    )
    if not possible:
        raise IntegrityError(f"the sizes of {item.name!r:.100} contradict each other: {sizes}")
    if item.relation in ("minus", "zigzag") and item.width not in _ADDABLE:
        raise IntegrityError(f"elements of {item.width} bytes of {item.name!r:.100} can't be added")
    if bool(item.relation) != bool(item.since) or (item.relation and head.base is None):
        raise IntegrityError(
            f"{item.name!r:.100} is a difference, but it names nothing to add it to"
        )
    if head.base is not None and item.relation:
        for piece in item.since:
            _check_piece(piece, head.base.files, item.name)
        if sum(piece.length for piece in item.since) != size:
            raise IntegrityError(f"{item.name!r:.100} and its older bytes differ in size")


def fits(shape: Sequence[int], width: int, size_bytes: int) -> bool:
    """Whether a tensor of a shape, with elements of so many bytes, can be stated and has that size."""
    stated = len(shape) <= _MOST_AXES and all(0 < axis <= size_bytes for axis in shape)
    return stated and 0 < width <= _MOST_WIDTH and math.prod(shape) * width == size_bytes


def _most_coded(size_bytes: int) -> int:
    """Return how long a coded chunk of so many bytes may be: a little longer than its bytes are."""
    return 2 * size_bytes + 4096


def _check_like(item: Item, items: Sequence[Item], number: int) -> None:
    """Check that the item whose chunks an item shares has some that fit."""
    if item.like == -1:
        return
    other = items[item.like] if 0 <= item.like < number else item
    if item.relation or other.like != -1 or other.relation or not other.coded:
        raise IntegrityError(f"{item.name!r:.100} refers to a tensor that doesn't come before it")
    if (other.size_bytes, other.width) != (item.size_bytes, item.width):
        raise IntegrityError(f"{item.name!r:.100} and the tensor that it refers to differ in size")


def _check_piece(piece: Piece, files: Sequence[tuple[str, int]], name: str) -> None:
    if not (
        0 <= piece.file < len(files)
        and piece.offset >= 0
        and piece.length > 0
        and piece.offset + piece.length <= files[piece.file][1]
    ):
        raise IntegrityError(f"{name!r:.100} lies outside the bundle's files")


def _check_covered(head: Head) -> None:
    """Check that every byte of every file is in one piece, and in no other."""
    pieces = sorted(
        (piece.file, piece.offset, piece.length) for item in head.items for piece in item.pieces
    )
    ends = [0] * len(head.files)
    for file, offset, length in pieces:
        if offset != ends[file]:
            raise IntegrityError(
                f"bytes of {head.files[file][0]!r:.100} are missing, or appear twice"
            )
        ends[file] = offset + length
    for (name, size_bytes), end in zip(head.files, ends, strict=True):
        if size_bytes != end:
            raise IntegrityError(f"bytes of {name!r:.100} are missing")
