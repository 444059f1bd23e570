"""Cache of what engines make of an artifact when they open it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hasten.core.cache_folder import CacheFolder, Entry, Room


class CompileCache:
    """Cache of what engines make of the models of one bundle.

    Args:
        folder: Folder that keeps it.
        digests: SHA-256 of files by path, as far as they are known; others are read.

    Attributes:
        found: Number of entries that were read from the folder.
        kept: Number of entries that were written to it.
        compiling_s: Seconds that a compiler took for what wasn't found.
    """

    def __init__(self, folder: CacheFolder, digests: Mapping[Path, str] | None = None) -> None:
        self.folder, self.digests = folder, digests or {}
        self.found = self.kept = 0
        self.compiling_s = 0.0

    @contextlib.contextmanager
    def entry(self, key: str, into: Room | None = None) -> Iterator[Entry | None]:
        """Hold what was kept under a key; None if there is nothing.

        Args:
            key: Key under which it was kept.
            into: Function that makes memory for the content; see `CacheFolder.entry`.
        """
        with self.folder.entry(key, into) as found:
            self.found += found is not None
            yield found

    def put(self, key: str, content: bytes | memoryview, bulk: Path | None = None) -> None:
        """Keep what an engine made, with a file that it reads in place, if the folder takes it."""
        self.kept += self.folder.put(key, content, bulk)

    def passed_over(self) -> None:
        """Note that an entry which was found has nothing to use."""
        self.found -= 1

    def drop(self, key: str) -> None:
        """Drop what an engine couldn't use after all."""
        self.found -= 1
        self.folder.drop(key)
