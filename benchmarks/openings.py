"""How much memory opening a compiled model takes; this file imports little, since each opening has its own process."""

from __future__ import annotations

import heapq
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

from memory import grown_bytes

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Engine
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import read


def _open_and_call(
    engine: Engine, artifact: Artifact, target: Target, cache: Path, request: dict[str, Array]
) -> None:
    with engine.open_cached(artifact, target, CompileCache(CacheFolder(cache, 1 << 30))) as session:
        session.run(request)


def _peak(*given: Any) -> int:
    return grown_bytes(partial(_open_and_call, *given))


def peaks(
    engine: Engine, artifact: Artifact, target: Target, cache: Path, request: dict[str, Array]
) -> str:
    """Say how much memory a first and a second opening with a call take, each in a process of its own."""
    plan, weights = read(artifact)
    maps = (one.bytes for one in plan.tensors.values() if one.offset is None)
    least = len(weights) + sum(heapq.nlargest(2, maps))
    given = (engine, artifact, target, cache, request)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = [pool.apply(_peak, given) for _ in range(2)]
    ratios = " and ".join(f"{one / least:.1f}" for one in found)
    return f"peak {ratios} times {least / 1e6:.1f} MB"
