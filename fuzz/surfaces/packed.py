"""Packed bundles: whole files, and coded chunks alone in memory with pages around it that may not be touched.

In a file bytes are changed; or the head states something else, under its right hash; or chunks hold something else,
under sums that fit. A chunk alone is decoded in C, and one of four in Python too, which must agree. What is
changed and not noticed, though no sum was written anew, is a finding.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, changed_record
from fuzz.outcomes import refused
from fuzz.surface import Surface
from tests.support.packed_files import Parts, quickly, with_frame

from hasten.bundle.packing.blocks import Codecs, all_codecs
from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.layout import Base, Head, Item, Piece
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import MemorySource
from hasten.bundle.packing.writer import Cut, write_packed
from hasten.core.rooms import ArrayRoom
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

_MOST_FILE_BYTES = 32 << 20
"""Size of unpacked files from which nobody here makes room for them, as on a machine without memory."""
_CHUNK_BYTES = 256
_WORDS = ("raw", "zstd", "huffman", "rans", "grid", "same", "xor", "minus", "float32", "m.bin")
_OLD = np.random.default_rng(9).integers(0, 256, 1 << 12, np.uint8)
"""Bytes of the base, for differences."""


class PackedFiles(Surface):
    """Whole files."""

    name = "packed"
    covers = "hasten.bundle.packing"

    def seeds(self) -> list[bytes]:
        found = list(corpus(self.folder))
        self._sound = [hashlib.sha256(each).digest() for each in found]
        return found

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if (kind := rng.random()) < 0.15:
            return b"B" + changed_bytes(seed, rng)
        parts = Parts.of(seed)
        return b"S" + (changed_head(parts, rng) if kind < 0.6 else changed_chunks(parts, rng))

    def check(self, data: bytes) -> str:
        made = data[1:] if data[:1] in (b"B", b"S") else data
        try:
            found = read(made)
        except InputError as error:
            kind = refused(error)
            return f"{kind} as damaged" if isinstance(error, IntegrityError) else kind
        sound = hashlib.sha256(made).digest() in self._sound
        assert sound or data[:1] != b"B", "changed bytes weren't noticed"
        return "unpacked" if found is not None else "too large"


class Chunks(Surface):
    """Chunks alone: an input is a line of JSON (codecs, bytes of a value, size of what it decodes to), and a chunk."""

    name = "chunks"
    covers = "hasten.bundle.packing"

    def seeds(self) -> list[bytes]:
        native.coders.use(native.for_coding())  # nothing else is compiled
        self._fences = Fence(), Fence()
        found = []
        for data in corpus(self.folder):
            parts = Parts.of(data)
            items = parts.record["items"]
            for at, chunks in enumerate(parts.chunks):
                for chunk in chunks:
                    head = [parts.record["codecs"], items["width"][at], items["chunk"][at]]
                    found.append(json.dumps(head).encode() + b"\n" + chunk)
        return found

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        head, _, chunk = seed.partition(b"\n")
        codecs, width, size = json.loads(head)
        size = rng.choice((size, size, width, 8 * rng.randrange(1, 400)))
        stated = json.dumps([codecs, width, size]).encode()
        return stated + b"\n" + _changed_chunk(chunk, rng)[:8000]

    def check(self, data: bytes) -> str:
        head, _, chunk = data.partition(b"\n")
        try:
            codecs, width, size = json.loads(head)
        except ValueError:
            return "no chunk"
        in_c = native.coders.made
        ways = (in_c, None) if sum(chunk) % 4 == 0 else (in_c,)
        try:
            return decoded_alone(chunk, Codecs(tuple(codecs)), size, width, self._fences, ways)
        finally:
            native.coders.use(in_c)


def changed_head(parts: Parts, rng: random.Random) -> bytes:
    """Change values anywhere in the JSON of a head, and write its hash anew."""
    text = json.dumps(changed_record(parts.record, rng, _WORDS)).encode()
    if rng.random() < 0.1:
        text = changed_bytes(text, rng)
    return with_frame(quickly(text), b"".join(map(b"".join, parts.chunks)))


def corpus(folder: Path) -> Iterator[bytes]:
    """Yield small packed files: one for each kind of tensor, and one that is a difference."""
    rng = np.random.default_rng(4)
    normal = rng.standard_normal(150)
    tensors = {
        "noise": rng.integers(0, 256, 300, np.uint8),
        "weights": np.round(rng.standard_normal(500) * 9).astype(np.int8),
        "flat": rng.integers(0, 8, 400, np.uint8),
        "mostly": (rng.random(900) > 0.95).astype(np.uint8),
        "floats": normal.astype(np.float32),
        "halves": normal.astype(np.float16),
        "few": rng.choice(normal[:5], 200).astype(np.float32),
        "pruned": np.where(rng.random(400) < 0.97, 0, 1.5).astype(np.float32),
        "text": np.frombuffer(b"a stranger reads it. " * 30, np.uint8),
    }
    for name, array in tensors.items():
        yield written(folder / name, [_cut(name, array, 0), _cut("again", array, array.nbytes)])
    rows = rng.normal(0, np.where(np.arange(32) % 2, 9, 0.3)[:, None], (32, 64)).round()
    yield written(folder / "rows", [_cut("rows", rows.astype(np.int8).ravel(), 0, chunk=2048)])
    sides = 3.0 ** rng.integers(-1, 3, 64)[:, None] * 3.0 ** rng.integers(-1, 2, 96)
    both = rng.normal(0, sides).round().clip(-127, 127).astype(np.int8).ravel()
    yield written(folder / "both", [_cut("both", both, 0, chunk=len(both))])
    old = _OLD[:400].view(np.float32)
    base = Base("0" * 64, (("old.bin", len(_OLD)),))
    cuts = [
        _cut("near", _OLD[:400] ^ 1, 0, "xor"),
        _cut("added", (old.view(np.uint32) + 3).view(np.float32), 400, "minus"),
        _cut("same", old, 800, "same"),
    ]
    yield written(folder / "since", cuts, base)


def _cut(
    name: str, array: Array, place: int, relation: Any = "", *, chunk: int = _CHUNK_BYTES
) -> Cut:
    data, since = array.view(np.uint8), (Piece(0, 0, array.nbytes),) if relation else ()
    if relation == "xor":
        data = data ^ _OLD[: len(data)]
    elif relation == "minus":
        data = (array.view(np.uint32) - _OLD[: len(data)].view(np.uint32)).view(np.uint8)
    pieces = (Piece(0, place, len(data)),)
    item = Item(
        name, str(array.dtype), array.shape, array.itemsize, pieces, chunk, (), (), relation, since
    )
    return Cut(item, data)


def written(path: Path, cuts: list[Cut], base: Base | None = None) -> bytes:
    """Return a packed file of one unpacked file."""
    size = sum(cut.item.size_bytes for cut in cuts)
    write_packed(path, Head((("m.bin", size),), (), (), base), iter(cuts), all_codecs())
    return path.read_bytes()


def changed_chunks(parts: Parts, rng: random.Random) -> bytes:
    """Change what chunks hold, and write their lengths and sums anew, and the head's hash."""
    record = {**parts.record, "items": {**parts.record["items"]}}
    new = Parts(record, [list(chunks) for chunks in parts.chunks])
    chunks = rng.choice([chunks for chunks in new.chunks if chunks])
    at = rng.randrange(len(chunks))
    chunks[at] = _changed_chunk(chunks[at], rng) or b"\0"
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    return new.signed(quickly)


def _changed_chunk(chunk: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return changed_bytes(chunk, rng)
    found = bytearray(chunk)
    for _ in range(rng.choice((1, 1, 2, 3))):  # near its beginning, where its tables are
        found[min(rng.randrange(len(found)), rng.randrange(len(found)))] = rng.randrange(256)
    return bytes(found)


def read(data: bytes) -> bytes | None:
    """Read a packed file; None where nobody would make room for it.

    Raises:
        InputError: it is refused.
    """
    file = Packed.open(MemorySource(data))
    if file.head.size_bytes > _MOST_FILE_BYTES:
        return None
    files = {name: np.zeros(size, np.uint8) for name, size in file.head.files}
    rooms = {name: ArrayRoom(array) for name, array in files.items()}
    file.unpack(rooms, lambda piece: _OLD[piece.offset :][: piece.length])
    file.check_end()
    return b"".join(array.tobytes() for array in files.values())


class Fence:
    """Memory that ends where a page begins that may not be touched.

    Attributes:
        bytes: The memory, uint8.
    """

    def __init__(self, pages: int = 4) -> None:
        size = pages * mmap.PAGESIZE
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        whole = np.frombuffer(self._map, np.uint8)
        end = whole.ctypes.data + size
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "no page can be protected")
        self.bytes = whole[:size]

    def last(self, count: int) -> Array:
        """Return its last bytes."""
        return self.bytes[len(self.bytes) - count :]


def decoded_alone(
    chunk: bytes,
    codecs: Codecs,
    size: int,
    width: int,
    fences: Sequence[Fence],
    ways: Sequence[Any],
) -> str:
    """Decode a chunk in C, and maybe in Python; return what came of it.

    Raises:
        AssertionError: they differ, or wrote elsewhere.
    """
    source, goal = fences
    source.last(len(chunk))[:] = np.frombuffer(chunk, np.uint8)
    found: list[bytes | None] = []
    for made in ways:
        native.coders.use(made)
        goal.bytes[:] = 7
        try:
            codecs.decode(source.last(len(chunk)).data, goal.last(size), width)
            found.append(goal.last(size).tobytes())
        except InputError:
            found.append(None)
        assert (goal.bytes[:-size] == 7).all(), "bytes before the chunk were written"
    assert found[0] == found[-1], "C and Python differ"
    return "refused" if found[0] is None else "unpacked"
