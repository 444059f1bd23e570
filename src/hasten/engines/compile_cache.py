"""Cache of what engines make of an artifact when they open it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasten.core.cache_folder import CacheFolder, Entry, Room, key_of
from hasten.core.pieces import hash_of_file
from hasten.core.records import digest
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.engines.checked import CheckedArtifact

_FORMAT = 1
"""Number to raise when an engine keeps something else than before."""


@dataclass
class CompileCache:
    """Cache of what engines make of the models of one bundle.

    Attributes:
        folder: Folder that keeps it.
        digests: SHA-256 of files by path, as far as they are known; others are read.
        found: Number of entries that were read from the folder.
        kept: Number of entries that were written to it.
        compiling_s: Seconds that a compiler took for what wasn't found.
    """

    folder: CacheFolder
    digests: Mapping[Path, str] = field(default_factory=dict)
    found: int = 0
    kept: int = 0
    compiling_s: float = 0.0

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

    def key(self, engine: Engine, artifact: Artifact, target: Target, what: str) -> str:
        """Return the key of something that an engine makes of an artifact on this machine.

        It states all that the thing may depend on: every file's content, the shapes, the engine with its
        settings and version, the processor, its instruction sets and the number of threads.

        Args:
            what: Word that tells an engine's things from each other.
        """
        files = (artifact.path, *artifact.files)
        known = dict(self.digests)
        if isinstance(artifact, CheckedArtifact):
            known |= artifact.digests  # whatever is in the files by now, nothing else is opened
        facts = digest(
            {
                "format": _FORMAT,
                "what": what,
                "engine": engine,
                "version": type(engine).version(),
                "files": [[file.name, known.get(file) or _digest(file)] for file in files],
                "specs": [artifact.inputs, artifact.outputs, artifact.request],
                "target": {**dataclasses.asdict(target), "memory_bytes": None},
            }
        )
        return key_of(facts)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"by pieces {hash_of_file(opened.fileno()).hex()}"
