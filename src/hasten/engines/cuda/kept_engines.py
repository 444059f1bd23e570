"""Engines that ONNX Runtime's TensorRT provider builds, kept for the next start.

The provider keeps them as files in a folder. It names a file by the names in a graph and not by the weights, so that
models that were trained from one network would share it. So each session has a folder of its own, which is filled from
the user's cache and removed at the session's end.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from hasten.engines.compile_cache import CompileCache


class KeptEngines:
    """What the provider built of one model on one GPU.

    Args:
        folder: Empty folder that only this user can read and write.
        compiled: Cache of the bundle; only what this user wrote is ever read from it.
        key: Key of the model, the GPU, its driver and ONNX Runtime's version.
    """

    def __init__(self, folder: Path, compiled: CompileCache, key: str) -> None:
        self.folder = folder
        self._compiled, self._key = compiled, key
        self._known: dict[str, tuple[int, int]] = {}

    def recall(self) -> bool:
        """Put what an earlier start kept into the folder, and return whether there was anything."""
        with self._compiled.entry(self._key) as found:
            if found is None:
                return False
            with zipfile.ZipFile(io.BytesIO(found.content)) as files:
                files.extractall(self.folder)
        self._known = self._files()
        return True

    def drop(self) -> None:
        """Drop what was kept, which the provider can't use: TensorRT takes only what its own version built."""
        self._compiled.drop(self._key)
        for name in self._files():
            (self.folder / name).unlink()
        self._known = {}

    def keep(self) -> None:
        """Keep the folder's files, if the provider wrote some that weren't kept yet."""
        files = self._files()
        if files == self._known:
            return
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name in files:
                archive.write(self.folder / name, name)
        self._compiled.put(self._key, content.getvalue())
        self._known = files

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return the folder's files with their sizes and the times when they were written."""
        facts = {path.name: path.stat() for path in sorted(self.folder.iterdir())}
        return {name: (one.st_size, one.st_mtime_ns) for name, one in facts.items()}
