"""Engines that ONNX Runtime's TensorRT provider builds, kept for the next start.

The provider keeps them as files in a folder. It names a file by the names in a graph and not by the weights, so that
models that were trained from one network would share it. So each session has a folder of its own, which is filled from
the user's cache and removed at the session's end.
"""

from __future__ import annotations

import ctypes
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from hasten.engines.compile_cache import CompileCache

_NO_ZEROS = "answers-no-zeros"
"""Empty file beside the engines of a model that can't answer zeros, so that they can't be tried by them."""


class KeptEngines:
    """Engines that the provider built of one model on one GPU.

    Args:
        folder: Empty folder that only this user can read and write.
        compiled: Cache of the bundle; only what this user wrote is ever read from it.
        key: Key of the model, the GPU, its driver, and the versions of ONNX Runtime and TensorRT.
    """

    def __init__(self, folder: Path, compiled: CompileCache, key: str) -> None:
        self.folder = folder
        self._compiled, self._key = compiled, key
        self._known: dict[str, tuple[int, int]] = {}

    @property
    def answers_zeros(self) -> bool:
        """Whether the model answers zeros, as far as is known."""
        return not (self.folder / _NO_ZEROS).exists()

    def mark_without_zeros(self) -> None:
        """Note beside the engines that the model doesn't answer zeros, though they were just built."""
        (self.folder / _NO_ZEROS).touch()

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


def tensorrt_version(runtime: Any) -> str:
    """Return the version of the TensorRT library that the provider loads, as the library numbers it.

    Args:
        runtime: Module `onnxruntime`.

    Returns:
        Number such as "101400" for 10.14.0; "unknown" where the provider or its library isn't found.
    """
    provider = Path(runtime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    try:
        needed = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes())
        return "unknown" if needed is None else _number(needed[0].decode())
    except (OSError, AttributeError):
        return "unknown"


def _number(library: str) -> str:
    """Return the number of the version of TensorRT's library, which the provider loads by the same name."""
    return str(ctypes.CDLL(library).getInferLibVersion())
