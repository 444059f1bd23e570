"""Archives of some kilobytes that would unpack to far more."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from hasten.core import archives

CLAIMED_BYTES = 3 << 20


def with_little_unasked(patched: pytest.MonkeyPatch) -> None:
    """Let a megabyte be all that any archive may unpack to, so that bombs can be small."""
    patched.setattr(archives, "_UNASKED_BYTES", 1 << 20)


def padded(path: Path, name: str) -> str:
    """Add an entry of zeros to an archive, compressed; why it isn't unpacked."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(CLAIMED_BYTES))
        claimed = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    return f"it has {size:,} bytes and would unpack to {claimed:,}, more than 20 times as many"
