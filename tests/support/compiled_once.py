"""Each text of C is compiled once for the whole suite: the same compiler makes the same object of it again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hasten.core.c_compiler import Built, Compiler


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keep what is compiled inside in a folder, which several processes may share."""
    compiled = Compiler._compiled
    folder.mkdir(exist_ok=True)

    def kept(self: Compiler, source: str, limit_s: float) -> Built:
        if not os.access(tempfile.gettempdir(), os.W_OK):  # as a test may have it
            return compiled(self, source, limit_s)
        words = "\0".join((*self.command, self.version, *self.flags, source))
        file = folder / hashlib.sha256(words.encode()).hexdigest()
        with contextlib.suppress(FileNotFoundError):
            return Built(*pickle.loads(file.read_bytes()))
        built = compiled(self, source, limit_s)
        part = file.with_suffix(f".{os.urandom(4).hex()}")
        part.write_bytes(pickle.dumps((built.content, built.seconds)))
        part.replace(file)
        return built

    with patch.object(Compiler, "_compiled", kept):
        yield
