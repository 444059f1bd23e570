"""Keys under which a cache keeps what engines make of artifacts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hasten.core.cache_folder import key_of
from hasten.core.pieces import hash_of_file
from hasten.core.records import digest
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.engines.checked import CheckedArtifact
from hasten.engines.compile_cache import CompileCache

_FORMAT = 1
"""Number to raise when an engine keeps something else than before."""


def cache_key(
    compiled: CompileCache, engine: Engine, artifact: Artifact, target: Target, what: str
) -> str:
    """Return the key of something that an engine makes of an artifact on this machine.

    It states all that the thing may depend on: every file's content, the shapes, the engine with its
    settings and version, the processor, its instruction sets and the number of threads.

    Args:
        compiled: Cache that keeps it, which may know the files' digests.
        engine: Engine that makes it.
        artifact: Artifact of which it is made.
        target: Target for this machine.
        what: Word that tells an engine's things from each other.
    """
    files = (artifact.path, *artifact.files)
    known = dict(compiled.digests)
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
