"""Hold ZIP archives from others against what they claim to unpack to, before anything is unpacked."""

from __future__ import annotations

import zipfile
from typing import IO

_UNASKED_BYTES = 64 << 20
"""Bytes to which any archive may unpack."""
_MOST_TIMES = 20
"""Largest number of bytes to which each byte of a larger archive may unpack."""
_END = b"PK\x05\x06"
_END_BYTES = 22


def excess(file: IO[bytes]) -> str:
    """Say why an archive should not be unpacked; "" if it may be.

    Libraries take as much memory for an entry as the list of entries claims. That list has to be the last
    part of the file, so that all readers find the same one.

    Args:
        file: Archive, opened to be read.

    Raises:
        zipfile.BadZipFile: it is no archive.
        OSError: it can't be read.
    """
    size_bytes = file.seek(0, 2)
    file.seek(max(0, size_bytes - _END_BYTES))
    end = file.read()
    with zipfile.ZipFile(file) as archive:
        claimed_bytes = sum(entry.file_size for entry in archive.infolist())
    if not end.startswith(_END) or len(end) != _END_BYTES:
        return "it doesn't end with the list of its entries"
    if claimed_bytes > max(_UNASKED_BYTES, _MOST_TIMES * size_bytes):
        return (
            f"it has {size_bytes:,} bytes and would unpack to {claimed_bytes:,}, more than {_MOST_TIMES} times "
            "as many"
        )
    return ""
