"""Processes of their own for strangers' files, bounded in memory and in time."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.records import from_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.core.workers import Worker
from hasten.errors import InputError, IntegrityError

LIMIT_S = 3600.0
"""Longest time for each thing that such a process is asked, in seconds; the code in a file could run without end."""
MEMORY_SHARE = 0.75
"""Share of this machine's memory that such a process may take, so that it's ended before the system ends others."""
_LONGEST_BYTES = 1 << 20
"""Largest number of bytes of what the process says: inputs that a file states, or a message."""
_MOST = 1000
"""Largest number of inputs, or of outputs, that a file may state, and of letters of each name."""
_MOST_DIMENSIONS = 64
_TYPE = re.compile(r"bool|bytes|(bfloat|float|complex|u?int)[0-9][0-9a-z_]{,20}", re.ASCII)
"""Pattern of the names of torch's and TensorFlow's types."""


@dataclass(frozen=True)
class Stated:
    """Inputs and outputs that a file states.

    Attributes:
        names: Names of the required inputs, in order.
        inputs: Specs of the inputs, as far as the file states them, the batch first.
        outputs: Specs of the outputs, in the same way.
    """

    names: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()


def stated_of(record: Any) -> Stated | None:
    """Return what a process says that a file states, which need not be true; None for what no model states."""
    try:
        stated = from_record(Stated, record)
    except IntegrityError:
        return None
    return stated if _plausible(stated) else None


def _plausible(stated: Stated) -> bool:
    """Whether a model may have these inputs and outputs; names, types and sizes are of bounded length."""
    if max(len(stated.names), len(stated.inputs), len(stated.outputs)) > _MOST:
        return False
    texts = [*stated.names]
    for spec in (*stated.inputs, *stated.outputs):
        if len(spec.shape) > _MOST_DIMENSIONS or not _TYPE.fullmatch(spec.dtype):
            return False
        if any(isinstance(size, int) and not 0 <= size < 1 << 63 for size in spec.shape):
            return False
        texts += [spec.name, *(size for size in spec.shape if isinstance(size, str))]
    return all(len(text) <= _MOST for text in texts)


def start(path: Path, library: str) -> tuple[Worker, Path]:
    """Start a process for a file; return it, and a folder for its files, which the caller removes after killing it.

    Args:
        path: The file, for messages.
        library: Name of the library that reads it.

    Raises:
        InputError: no process can be started, or its files have no place.
    """
    with contextlib.ExitStack() as undo:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"hasten-{library}-"))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            worker = Worker(
                folder / f"{library}.log",
                int(MEMORY_SHARE * Target.host().memory_bytes),
                longest_bytes=_LONGEST_BYTES,
            )
        except OSError as error:
            raise InputError(
                f"no process can be started for {path}, with its files in {tempfile.gettempdir()}: "
                f"{error.strerror or error}; free memory and space, or let TMPDIR name another folder"
            ) from error
        undo.pop_all()
    return worker, folder


@contextlib.contextmanager
def started(path: Path, library: str) -> Iterator[tuple[Worker, Path]]:
    """Start a process as `start` does, which ends with the block, and its folder with it."""
    worker, folder = start(path, library)
    try:
        yield worker, folder
    finally:
        worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
