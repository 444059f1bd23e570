"""Exports that are made once, for tests of what comes after an export."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from hasten.core.model import Model
from hasten.inputs.models import onnx
from hasten.inputs.models import torch as frontend


@contextlib.contextmanager
def exported_once(folder: Path) -> Iterator[None]:
    """Let equal torch modules be exported once in the block; later exports copy the file.

    Args:
        folder: Existing folder for the files, emptied by nobody meanwhile. Other processes may use it, too, even
            ones that are killed.
    """
    export = frontend.export

    def kept(
        module: Any, sample: Any, workdir: Path, names: Sequence[str] | None = None, **more: Any
    ) -> Model:
        if any(more.values()):
            return export(module, sample, workdir, names, **more)
        own = folder / _digest(module, sample, names)
        if not own.exists():
            made = export(module, sample, workdir, names)
            part = own.with_suffix(f".{os.urandom(4).hex()}")
            part.mkdir()
            for file in (made.path, *made.files):
                shutil.copy(file, part)
            with contextlib.suppress(OSError):  # another process was as soon
                part.rename(own)
            return made
        for file in own.iterdir():
            shutil.copy(file, workdir)
        return onnx.load(workdir / "model.onnx")

    with patch.object(frontend, "export", kept):
        yield


def _digest(module: Any, sample: Any, names: Sequence[str] | None) -> str:
    """Digest a module's structure and weights, and the sample that settles shapes."""
    named = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    arrays = [(str(name), np.asarray(array)) for name, array in named]
    arrays += [(name, tensor.numpy()) for name, tensor in module.state_dict().items()]
    found = sha256(f"{type(module).__qualname__} {module} {names}".encode())
    for name, array in arrays:
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()
