"""Contract of a codec, which makes the bytes of a tensor fewer and gives them back bit for bit."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, TypeAlias

from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

Inner: TypeAlias = Callable[[Array, int], bytes]
"""Function that codes the parts of a composed codec: (bytes, bytes per element) -> block."""
Outer: TypeAlias = Callable[[memoryview, Array, int], None]
"""Function that decodes a block that an `Inner` made: (block, array of bytes, bytes per element)."""

_LENGTH = struct.Struct("<I")


class Codec(Value, ABC):
    """A way to code one chunk of a tensor: a frozen dataclass without settings.

    A chunk is coded by itself, so chunks can be decoded in any order and beside each other. A codec may be
    composed of others: it splits a chunk into parts, and codes each of them by what is smallest there.

    Attributes:
        nested: Whether it codes its parts by other codecs. Codecs may be nested
            `hasten.bundle.packing.blocks.DEEPEST` deep.
        outermost: Whether it is tried on chunks alone, and not on the parts of other codecs.
        widths: Sizes of an element in bytes that it is tried on; empty for any.
        slow: Whether coding takes so long that it is tried after the others, if it is `promising` then.
        cost: Time in nanoseconds that decoding a byte takes, as `benchmarks/packing_codecs.py` measures it on
            one core, without what decoding its parts takes; of blocks that are nearly as small, the
            fastest is taken.
        extra: Extra of hasten that installs what it needs; empty for one that needs nothing more.
    """

    registry: ClassVar[Registry] = Registry(
        "codec",
        "hasten.codecs",
        {
            "raw": "hasten.bundle.packing.codecs.raw:Raw",
            "zstd": "hasten.bundle.packing.codecs.zstandard:Zstandard",
            "huffman": "hasten.bundle.packing.codecs.huffman:Huffman",
            "rans": "hasten.bundle.packing.codecs.rans:Rans",
            "planes": "hasten.bundle.packing.codecs.planes:Planes",
            "codebook": "hasten.bundle.packing.codecs.codebook:Codebook",
            "sparse": "hasten.bundle.packing.codecs.sparse:Sparse",
            "grid": "hasten.bundle.packing.codecs.grid:Grid",
        },
    )
    nested: ClassVar[bool] = False
    outermost: ClassVar[bool] = False
    widths: ClassVar[frozenset[int]] = frozenset()
    slow: ClassVar[bool] = False
    cost: ClassVar[float] = 0.0
    extra: ClassVar[str] = ""

    @classmethod
    def usable(cls) -> bool:
        """Whether what it needs is installed here."""
        return True

    def promising(self, data: Array, width: int, least: int) -> bool:
        """Whether it may make fewer bytes of a chunk than others did, told in less time than `encode` takes.

        Args:
            data: Bytes of the chunk, as for `encode`.
            width: Size of an element in bytes.
            least: Fewest bytes that another codec made of it.
        """
        return True

    @abstractmethod
    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        """Code a chunk.

        Args:
            data: Bytes of the chunk: uint8 of shape (n,), n at least 1, contiguous. They are n / width
                elements, little-endian.
            width: Size of an element in bytes, which divides n.
            inner: Function that codes a part; only a `nested` codec may call it.

        Returns:
            Coded bytes; None where the codec isn't made for such a chunk.
        """

    @abstractmethod
    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        """Decode a chunk that `encode` coded, or bytes that claim to be one.

        Whatever `coded` holds, nothing is read or written outside it and `out`, and no more memory is
        taken than some times the size of `out`.

        Args:
            coded: Coded bytes, all of them.
            out: Where the chunk goes: uint8 of shape (n,), contiguous, writable.
            width: Size of an element in bytes, which divides n.
            inner: Function that decodes a part.

        Raises:
            IntegrityError: the bytes don't decode to exactly n bytes; the message says how.
        """


def behind_lengths(blocks: Iterable[bytes]) -> bytes:
    """Join blocks, each behind its length in bytes as a little-endian uint32."""
    return b"".join(_LENGTH.pack(len(block)) + block for block in blocks)


def first_block(coded: memoryview) -> tuple[memoryview, memoryview]:
    """Return the first of some blocks that `behind_lengths` joined, and the bytes that follow it.

    Raises:
        IntegrityError: the bytes end before the block does.
    """
    if len(coded) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(coded)
        rest = coded[_LENGTH.size :]
        if length <= len(rest):
            return rest[:length], rest[length:]
    raise IntegrityError(f"it ends within a part: {len(coded):,} bytes are left")
