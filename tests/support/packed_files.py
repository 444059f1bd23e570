"""Packed files by hand, and what somebody who damages one makes of it."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle.packing import layout
from hasten.bundle.packing.blocks import all_codecs
from hasten.bundle.packing.codecs import zstandard
from hasten.bundle.packing.codecs.base import Codec
from hasten.bundle.packing.codecs.zstandard import compressed, decompressed
from hasten.bundle.packing.layout import Head, Item, Piece
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import MemorySource, Source
from hasten.bundle.packing.writer import Cut, write_packed
from hasten.core.rooms import ArrayRoom
from hasten.core.tensors import Array

CHUNK_BYTES = 2048
"""Size of a chunk here: small, so that a small file has several."""
START = 48
"""Size of a packed file's prefix in bytes."""


def tensors() -> dict[str, Array]:
    """Return tensors for which each codec is the best, by name."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(1500)
    few = rng.choice(rng.standard_normal(9), 1000).astype(np.float32)
    rows = np.random.default_rng(8).normal(
        0, np.where(np.arange(32) % 2, 9, 0.3)[:, None], (32, 64)
    )
    pruned = np.where(rng.random(1500) < 0.97, 0, normal).astype(np.float32)
    return {
        "noise": rng.integers(0, 256, 2500, np.uint8),
        "weights": np.round(rng.standard_normal(3000) * 20).clip(-127, 127).astype(np.int8),
        "flat": rng.integers(0, 16, 2200, np.uint8),
        "mostly": np.where(rng.random(5000) < 0.95, 0, 1).astype(np.uint8),
        "floats": normal[:700].astype(np.float32),
        "halves": normal[:900].astype(np.float16),
        "few": few,
        "pruned": pruned,
        "again": few.copy(),
        "text": np.frombuffer(b"a stranger reads it. " * 250, np.uint8),
        "rows": rows.round().astype(np.int8),
    }


def cuts(named: dict[str, Array]) -> Iterator[Cut]:
    """Cut a file that holds some tensors one after another, and a second one that a pair is in."""
    place = 0
    for name, array in named.items():
        data, width = array.view(np.uint8).ravel(), array.itemsize
        piece = Piece(0, place, len(data))
        place += len(data)
        chunk = CHUNK_BYTES
        yield Cut(Item(name, str(array.dtype), array.shape, width, (piece,), chunk), data)
    parts = (Piece(0, place, 10), Piece(1, 0, 20))
    data = np.arange(30, dtype=np.uint8)
    yield Cut(Item("apart", "uint8", (30,), 1, parts, CHUNK_BYTES), data)


def open_files() -> int:
    """Return how many files this process has open, but for the folders of bundles that it keeps locked."""
    leads = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    return sum("/unpacked/" not in lead for lead in leads)


def unpacked_files() -> dict[str, bytes]:
    """Return what the files unpack to."""
    first = b"".join(array.tobytes() for array in tensors().values()) + bytes(range(10))
    return {"model.bin": first, "notes/rest.bin": bytes(range(10, 30)), "empty.txt": b""}


def write(path: Path, codecs: Sequence[Codec] | None = None) -> Path:
    """Write a packed file of `tensors`; by default with all codecs."""
    sizes = tuple((name, len(data)) for name, data in unpacked_files().items())
    write_packed(path, Head(sizes, (), ()), cuts(tensors()), codecs or all_codecs())
    return path


@dataclass
class Parts:
    """A packed file apart.

    Attributes:
        record: The JSON of its head.
        chunks: Its coded chunks, item by item.
    """

    record: dict[str, Any]
    chunks: list[list[bytes]]

    @classmethod
    def of(cls, data: bytes) -> Parts:
        (length,) = struct.unpack_from("<I", data, 12)
        record = json.loads(decompressed(data[START : START + length], 1 << 24))
        chunks: list[list[bytes]] = []
        place = START + length
        for sizes in record["items"]["coded"]:
            chunks.append([])
            for size in sizes:
                chunks[-1].append(data[place : place + size])
                place += size
        return cls(record, chunks)

    def number(self, name: str) -> int:
        """Return the number of a tensor."""
        return int(self.record["items"]["name"].index(name))

    def signed(self, frame: Callable[[bytes], bytes] = compressed) -> bytes:
        """Return the file with lengths and sums that fit its chunks.

        Args:
            frame: Function that returns the head as a frame of zstd.
        """
        items = self.record["items"]
        items["coded"] = [[len(chunk) for chunk in chunks] for chunks in self.chunks]
        items["sums"] = [[zlib.crc32(chunk) for chunk in chunks] for chunks in self.chunks]
        return self.joined(frame)

    def joined(self, frame: Callable[[bytes], bytes] = compressed) -> bytes:
        """Return the file with a head that has the right hash, whatever it states."""
        text = json.dumps(self.record).encode()
        return with_frame(frame(text), b"".join(map(b"".join, self.chunks)))


def quickly(text: bytes) -> bytes:
    """Return bytes as one frame of zstd, without much effort."""
    found: bytes = _quick.compress(text, mode=_quick.FLUSH_FRAME)
    return found


_quick = zstandard.zstd.ZstdCompressor(1)  # type: ignore[attr-defined]


def with_head(text: bytes, chunks: bytes = b"", version: int = layout.VERSION) -> bytes:
    """Return a packed file with any text as its head."""
    return with_frame(compressed(text), chunks, version)


def with_frame(frame: bytes, chunks: bytes = b"", version: int = layout.VERSION) -> bytes:
    """Return a packed file with any bytes as its head."""
    sha256 = hashlib.sha256(frame).digest()
    start = struct.pack("<8sHHI32s", b"\x89HASTENZ", version, 0, len(frame), sha256)
    return start + frame + chunks + hashlib.sha256(start + frame + chunks).digest()


def of_head(head: Head) -> bytes:
    """Return a packed file without chunks, whatever its head states."""
    start = layout.to_bytes(head)
    return start + hashlib.sha256(start).digest()


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a packed file whose head states something else."""
    parts = Parts.of(data)
    change(parts.record)
    return parts.joined()


def read_all(source: bytes | Source) -> dict[str, bytes]:
    """Unpack every file of a packed file, and check its hash."""
    with MemorySource(source) if isinstance(source, bytes) else source as opened:
        file = Packed.open(opened)
        found = {name: np.empty(size, np.uint8) for name, size in file.head.files}
        file.unpack({name: ArrayRoom(array) for name, array in found.items()})
        file.check_end()
    return {name: data.tobytes() for name, data in found.items()}
