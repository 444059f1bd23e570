"""Files that are kept of a compiled model, so that the next opening neither writes C nor compiles."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np

from hasten.core.c_compiler import Compiler
from hasten.core.cache_folder import key_of
from hasten.core.forks import ForkedLock
from hasten.core.records import digest, from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.library import Library, aligned
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import Source
from hasten.engines.compiled.tensors import MOST_BYTES
from hasten.errors import CandidateError, InputError, IntegrityError

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


@dataclass(frozen=True)
class _Kept:
    """Facts that are kept under a model's key.

    Attributes:
        plan: Plan without its steps, which was checked.
        tables_bytes: Size of the tables.
        arena_bytes: Memory that a call needs for tensors in between.
        threads: Largest number of threads that share a call.
        library: Key of the shared object.
    """

    plan: Plan
    tables_bytes: int
    arena_bytes: int
    threads: int
    library: str


def prepared(
    key: str, write: Callable[[], tuple[Plan, Source]], target: Target, compiled: CompileCache
) -> tuple[Plan, Source, Library]:
    """Return a model's plan without its steps, its tables and its shared object, from the cache if it has all.

    The plan and what a call needs are kept under the model's key, and the tables under another one. The shared
    object is kept under that of its text, which models that differ in numbers alone have in common, and one
    model on different numbers of threads.

    Args:
        key: Key of the model with all that its C depends on.
        write: Reads and checks the model's plan, and writes its C.
        target: Processor.
        compiled: The cache.

    Raises:
        CandidateError: `write` failed, there is no compiler, or it failed.
    """
    if (found := _found(key, compiled)) is not None:
        return found
    plan, source = write()
    plan = plan.outline
    _give_back()
    below = library_key(source, target)
    library = library_of(below, source, compiled)
    source = replace(source, lines=())
    _give_back()
    compiled.put(_tables_key(key), source.tables.data)
    kept = _Kept(plan, len(source.tables), source.arena_bytes, source.threads, below)
    compiled.put(key, json.dumps(to_record(kept)).encode())
    return plan, source, library


def _give_back() -> None:
    """Give memory that was freed back to the system, where the C library can: a call needs more of it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _found(key: str, compiled: CompileCache) -> tuple[Plan, Source, Library] | None:
    """Return what the cache has of a model; None unless it has all."""
    with compiled.entry(key) as entry:
        if entry is None:
            return None
    with suppress(ValueError, IntegrityError):
        kept = from_record(_Kept, json.loads(entry.content))
        library = _loaded(kept.library, compiled)
        tables = _tables_of(key, kept.tables_bytes, compiled) if library else None
        bounded = 0 <= kept.arena_bytes <= 2 * MOST_BYTES and kept.threads >= 1
        if library and tables is not None and bounded:
            return kept.plan, Source((), tables, kept.arena_bytes, kept.threads), library
    compiled.drop(key)
    return None


def _tables_key(key: str) -> str:
    return key_of(digest({"tables": key}))


def _tables_of(key: str, size: int, compiled: CompileCache) -> Array | None:
    """Return a model's tables from the cache, aligned; None if it has none of that size."""
    rooms: list[Array] = []

    def room(there: int) -> memoryview:
        rooms.append(aligned(there))
        return rooms[0].data

    with compiled.entry(_tables_key(key), room) as entry:
        if entry is None:
            return None
    if len(rooms[0]) == size:
        return rooms[0]
    compiled.drop(_tables_key(key))
    return None


def _loaded(key: str, compiled: CompileCache) -> Library | None:
    """Return a shared object from the cache; None if it has none that can be loaded."""
    with compiled.entry(key) as entry:
        if entry is None:
            return None
    with suppress(CandidateError):
        return Library.load(entry.content)
    compiled.drop(key)
    return None


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


def library_of(key: str, source: Source, compiled: CompileCache) -> Library:
    """Return the shared object of a text, from the cache or the compiler.

    Args:
        key: Key of the text; see `library_key`.
        source: The text.
        compiled: The cache.

    Raises:
        CandidateError: there is no compiler, or it failed.
    """
    if (found := _loaded(key, compiled)) is not None:
        return found
    compiler = _compiler()
    built = compiler.compile(source.lines)
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


def library_key(source: Source, target: Target) -> str:
    """Return the key of a text's shared object: the text, the compiler and the processor.

    Raises:
        CandidateError: there is no compiler.
    """
    facts = [*compiler_facts(), target.processor, target.isa]
    return key_of(digest({"c": source.digest, "facts": facts}))
