"""Files that are kept of a compiled model, so that the next opening neither writes C nor compiles."""

from __future__ import annotations

import hashlib
import json
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np

from hasten.core.c_compiler import Compiler
from hasten.core.forks import ForkedLock
from hasten.core.records import digest
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.library import Library, aligned
from hasten.engines.compiled.plan import ALIGNMENT, MOST_BYTES
from hasten.engines.compiled.source import Source
from hasten.errors import CandidateError, InputError

_MOST_HEAD = 4096
"""Largest number of bytes of the line before kept tables."""
_SHARING = ForkedLock()
_tables: weakref.WeakValueDictionary[str, Array] = weakref.WeakValueDictionary()
"""Tables that sessions of this process read, by the key of their model."""
_log = logging.getLogger("hasten.compiled")


@cache
def code() -> str:
    """Return the SHA-256 of the code that writes C: another version of it may write something else."""
    found = hashlib.sha256()

    def add(folder: Traversable) -> None:
        for one in sorted(folder.iterdir(), key=lambda each: each.name):
            if one.is_dir() and one.name != "__pycache__":
                add(one)
            elif one.is_file():
                found.update(f"{one.name}\0".encode())
                found.update(one.read_bytes())

    add(resources.files("hasten.engines.compiled"))
    return found.hexdigest()


def prepared(
    key: str, write: Callable[[], Source], target: Target, compiled: CompileCache
) -> tuple[Source, Library]:
    """Return the tables and the shared object of a model, from the cache as far as it has them.

    Tables are kept under the model's key; the shared object under that of its text, which models that
    differ in numbers alone have in common, and one model on different numbers of threads.

    Args:
        key: Key of the model with all that its C depends on.
        write: Writes the C of the model.
        target: Processor.
        compiled: The cache.

    Raises:
        CandidateError: `write` failed, there is no compiler, or it failed.
    """
    rooms: list[Array] = []

    def room(size: int) -> memoryview:
        rooms.append(aligned(size))
        return rooms[0].data

    with compiled.entry(key, room) as entry:
        if entry is not None:
            with suppress(ValueError):
                source, below = _unpacked(rooms[0])
                with compiled.entry(below) as second, suppress(CandidateError):
                    if second is not None:
                        return source, Library.load(second.content)
    if entry is not None:
        compiled.drop(key)
    source = write()
    below = _library_key(source, target)
    library = library_of(source, target, compiled)
    compiled.put(key, _packed(source, below))
    return source, library


def shared_tables(key: str, tables: Array) -> Array:
    """Return the tables that another session reads under this key, if they are equal; else these, from now on.

    So the weights are in memory once, and once in the caches that processors have in common, however
    many sessions there are.

    Args:
        key: Key of the model with all that its C depends on.
        tables: Tables as uint8, aligned, which nobody writes to any more.
    """
    with _SHARING:
        known = _tables.get(key)
        if known is not None and np.array_equal(known, tables):
            return known
        tables.flags.writeable = False
        _tables[key] = tables
        return tables


def library_of(source: Source, target: Target, compiled: CompileCache) -> Library:
    """Return the shared object of a text, from the cache or the compiler.

    Raises:
        CandidateError: there is no compiler, or it failed.
    """
    key = _library_key(source, target)
    with compiled.entry(key) as entry:
        if entry is not None:
            with suppress(CandidateError):
                return Library.load(entry.content)
    if entry is not None:
        compiled.drop(key)
    compiler = _compiler()
    built = compiler.compile(source.text)
    _log.info("the model was compiled by %s in %.2f s", compiler.version, built.seconds)
    compiled.compiling_s += built.seconds
    library = Library.load(built.content)
    compiled.put(key, built.content)
    return library


class Facts(NamedTuple):
    """Facts of a compiler that its results depend on."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]


def compiler_facts() -> Facts:
    """Return what of the compiler its results depend on.

    Raises:
        CandidateError: there is no compiler.
    """
    compiler = _compiler()
    return Facts(compiler.command, compiler.version, compiler.flags)


def _compiler() -> Compiler:
    try:
        return Compiler.find()
    except InputError as error:
        raise CandidateError(str(error)) from error


def _library_key(source: Source, target: Target) -> str:
    facts = [*compiler_facts(), target.processor, target.isa]
    return digest({"c": source.digest, "facts": facts})


def _packed(source: Source, library: str) -> bytes:
    """Return tables behind one line that says how a call uses them, and under which key the shared object is."""
    head = {"arena": source.arena_bytes, "threads": source.threads, "library": library}
    line = json.dumps(head).encode()
    spaces = b" " * (-(len(line) + 1) % ALIGNMENT)  # so that the tables are aligned, too
    return b"".join((line, spaces, b"\n", source.tables))


def _unpacked(content: Array) -> tuple[Source, str]:
    """Return a source without its text, and the key of its shared object.

    Args:
        content: Bytes that were kept, as uint8, aligned; the source's tables are a part of them.

    Raises:
        ValueError: it is something else.
    """
    line, ended, _ = content[:_MOST_HEAD].tobytes().partition(b"\n")
    head = json.loads(line)
    if not (ended and isinstance(head, dict)):
        raise ValueError("no head")
    arena, threads, library = (head.get(one) for one in ("arena", "threads", "library"))
    if not (type(arena) is type(threads) is int and type(library) is str):
        raise ValueError("no numbers of a call")
    if not (0 <= arena <= 2 * MOST_BYTES and threads >= 1):
        raise ValueError("numbers out of bounds")
    return Source("", content[len(line) + 1 :].data, arena, threads), library
