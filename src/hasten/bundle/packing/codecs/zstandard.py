"""Zstandard, which also finds bytes that repeat."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs.base import Codec, Inner, Outer
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVEL, _QUICK_LEVEL = 19, 9
_NOTICED = 0.995
_NEAR = 1.05
"""Factor by which the fastest level may be above others: the slow one finds more, but not that much more
where there is little to find."""
_LEAST_WINDOW_LOG, _WINDOW_LOG = 10, 27
"""Largest windows that are accepted for few bytes and for many, as exponents of 2: a decoder takes that
much memory. No window need be larger than what it slides over."""


def compressed(data: bytes) -> bytes:
    """Return bytes as one zstd frame."""
    return zstd.compress(data, _LEVEL)


def decompressed(frame: bytes | memoryview, most_bytes: int) -> bytes:
    """Return what one zstd frame holds.

    Args:
        frame: Frame, all of it and nothing else.
        most_bytes: Largest number of bytes that it may hold; no more memory is taken for them.

    Raises:
        IntegrityError: it is no frame, or holds more.
    """
    window_log = min(_WINDOW_LOG, max(_LEAST_WINDOW_LOG, (most_bytes - 1).bit_length()))
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: window_log}
    opened = zstd.ZstdDecompressor(options=options)
    try:
        found = opened.decompress(frame, max_length=most_bytes)
        if not opened.eof:
            found += opened.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise IntegrityError(f"it isn't a zstd frame: {error}") from error
    if not opened.eof or opened.unused_data or len(found) > most_bytes:
        raise IntegrityError(f"it isn't a zstd frame of at most {most_bytes:,} bytes")
    return found


@dataclass(frozen=True)
class Zstandard(Codec):
    """One frame of Zstandard, at the level for what is coded once and decoded often.

    Source: RFC 8878, "Zstandard Compression and the 'application/zstd' Media Type".
    """

    slow: ClassVar[bool] = True
    cost: ClassVar[float] = 1.25

    def promising(self, data: Array, width: int, least: int) -> bool:
        """Whether its fastest level finds anything at all, and comes near to what others made."""
        quick = len(zstd.compress(data.tobytes(), 1))
        return quick < len(data) and quick < _NEAR * least

    def repeats(self, data: Array) -> bool:
        """Whether a quick look finds bytes that repeat: then all of them together may be smaller."""
        plain = len(zstd.compress(data.tobytes(), 1))
        return len(zstd.compress(data.tobytes(), _QUICK_LEVEL)) < _NOTICED * plain

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        return compressed(data.tobytes())

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        found = decompressed(coded, len(out))
        if len(found) != len(out):
            raise IntegrityError(f"it holds {len(found):,} bytes, but {len(out):,} are needed")
        out[:] = np.frombuffer(found, np.uint8)
