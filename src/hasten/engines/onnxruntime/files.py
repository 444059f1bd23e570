"""A model's files as ONNX Runtime takes them, so that nothing is mapped that others can change."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hasten.engines.base import Artifact
from hasten.engines.checked import private
from hasten.engines.external_data import external_locations


@contextmanager
def own_files(artifact: Artifact, options: Any) -> Iterator[Path]:
    """Lend the path of an artifact's model while the runtime loads it; see `private`.

    From version 1.24 the runtime follows no link to external data. So where the files are in memory it is
    given their bytes, which it copies; older versions map the sealed files instead.

    Args:
        artifact: Artifact that is loaded.
        options: The runtime's options, which are given the external data.

    Raises:
        IntegrityError: a file was changed since it was checked.
        InputError: there is no memory for a copy.
    """
    give = getattr(options, "add_external_initializers_from_files_in_memory", None)
    with private(artifact) as copy, ExitStack() as maps:
        if copy.files and copy.path.is_symlink() and give is not None:
            names = sorted(external_locations(copy.path.read_bytes()))
            sizes = [(copy.path.parent / name).stat().st_size for name in names]
            data = [
                maps.enter_context(_mapped(copy.path.parent / name)) if size else b""
                for name, size in zip(names, sizes, strict=True)
            ]
            give(names, data, sizes)
        yield copy.path


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
