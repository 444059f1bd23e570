"""Time from the start of a process to the first answer of a bundle or a chain, in fresh processes in turns."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hasten.bundle.batch_mates import made_up
from hasten.bundle.chains.opened import check_chain
from hasten.bundle.engines import engine_of
from hasten.bundle.first_answer import SAMPLE
from hasten.bundle.folder import artifact_of, read
from hasten.bundle.manifest import Manifest, Part
from hasten.bundle.packing.unpacking import unpacked
from hasten.bundle.requests import kept_requests
from hasten.core.cache_folder import VARIABLE
from hasten.core.devices import at_hand, check_measurable
from hasten.core.lookups import RowNumbers
from hasten.core.processes import interpreter
from hasten.core.records import type_name
from hasten.core.scratch import SCRATCH
from hasten.core.telemetry import OFF
from hasten.errors import CandidateError, InputError
from hasten.inputs.chains import chain_of

STAGES = ("interpreter", "imports", "open", "first answer")
"""Stages of a start: Python itself; hasten, numpy and the runtime; checking and opening the bundle; one
request."""
_SCRIPT = (
    "import time; began = time.monotonic_ns(); import sys; sys.argv.insert(1, str(began)); "
    "from hasten.bundle.first_answer import main; main()"
)
_LIMIT_S = 600.0
COLD = "cold.json"
"""Name of the file of cold starts among a bundle's evidence."""
_MOST_STARTS = 1000


Answered: TypeAlias = tuple[str, str]
"""Batch sizes of a start, empty for a bundle, and the hash of its answers."""


@dataclass(frozen=True)
class Starts:
    """Starts of one kind.

    Attributes:
        label: Description of what was started, for people.
        stages_ns: Length of each stage of each start, in the order of `STAGES`, in nanoseconds.
        processor_ns: Time of each start that processors spent on it, all threads together, in
            nanoseconds: other work on the machine distorts it less.
        from_cache: Whether what was compiled came from the cache.
    """

    label: str
    stages_ns: tuple[tuple[int, ...], ...]
    processor_ns: tuple[int, ...]
    from_cache: bool

    @property
    def total_ns(self) -> float:
        """Return the median time to the first answer, in nanoseconds."""
        return statistics.median(sum(stages) for stages in self.stages_ns)

    def stage_ns(self, stage: str) -> float:
        """Return the median length of a stage, in nanoseconds."""
        place = STAGES.index(stage)
        return statistics.median(stages[place] for stages in self.stages_ns)


@dataclass(frozen=True)
class ColdStart:
    """Time of a bundle, or of a chain, from the start of a process to its first answer.

    Attributes:
        rows: Kinds of start: with an empty cache, with a filled one, without; the exact models without.
        kept_bytes: Size of what the cache keeps of the models.
    """

    rows: tuple[Starts, ...]
    kept_bytes: int


@dataclass(frozen=True)
class _Kind:
    label: str
    which: str
    engines: tuple[str, ...]
    cache: str


def cold_start(
    bundle: str | os.PathLike[str],
    *,
    starts: int = 7,
    seed: int = 0,
    brief: bool = False,
    within_s: float = math.inf,
) -> ColdStart:
    """Time a bundle's starts in fresh processes, in turns and in random order.

    Files and bytecode are in the page cache, as an untimed start of each kind leaves them: "cold" is
    the process, and in the first row what the engine compiles.

    Args:
        bundle: Folder of the bundle.
        starts: Number of counted starts of each kind, at least 1.
        seed: Seed of the orders, and of the request if the bundle keeps none.
        brief: Whether to leave out starts with an empty cache, and those with a filled one where the engine
            keeps nothing in it.
        within_s: Longest time for all starts, in seconds; the untimed ones show whether it suffices.

    Raises:
        InputError: the bundle can't be used, or needs operator libraries.
        CandidateError: a start failed, answers differ with the cache, or the starts would take too long.
    """
    _check_starts(starts)
    folder = unpacked(bundle).absolute()
    manifest = read(folder)
    with tempfile.TemporaryDirectory(prefix="hasten-cold-") as place:
        tensors: dict[str, Any] = _request(folder, manifest, seed)
        np.savez(Path(place) / "request.npz", **tensors)
        return _timed(
            str(folder),
            {"": manifest},
            starts,
            seed,
            Path(place),
            brief=brief,
            within_s=within_s,
        )


def cold_start_of_chain(
    chain: str | os.PathLike[str], sample: Path, *, starts: int = 7, seed: int = 0
) -> ColdStart:
    """Time a chain's starts as `cold_start` does a bundle's.

    Args:
        chain: The chain, by a line or a file.
        sample: File that is answered first.
        starts: Number of counted starts of each kind, at least 1.
        seed: Seed of the orders.

    Raises:
        InputError: the chain or the file can't be used, or a bundle needs operator libraries.
        CandidateError: a start failed, or answers differ with the cache.
    """
    _check_starts(starts)
    manifests = check_chain(chain_of(chain))
    with tempfile.TemporaryDirectory(prefix="hasten-cold-") as place:
        try:
            (Path(place) / SAMPLE).write_bytes(sample.read_bytes())
        except OSError as error:
            raise InputError(f"can't read {sample}: {error.strerror}") from error
        return _timed(os.fspath(chain), manifests, starts, seed, Path(place))


def _check_starts(starts: int) -> None:
    """Check the number of starts.

    Raises:
        InputError: it is out of range.
    """
    if not 1 <= starts <= _MOST_STARTS:
        raise InputError(f"starts= must be from 1 to {_MOST_STARTS}; got {starts}")


def _timed(
    what: str,
    manifests: Mapping[str, Manifest],
    starts: int,
    seed: int,
    work: Path,
    *,
    brief: bool = False,
    within_s: float = math.inf,
) -> ColdStart:
    """Time the starts of a bundle, whose only manifest has no name, or of a chain.

    Args:
        what: Folder of the bundle; or the chain, by a line or a file.
        manifests: Manifests of the bundles, by their nodes' names.
        starts: Number of counted starts of each kind.
        seed: Seed of the orders.
        work: Folder with what is answered.
        brief: Whether to leave out starts that say least.
        within_s: Longest time for all starts, in seconds.
    """
    for name, manifest in manifests.items():
        check_measurable(at_hand(manifest.target))
        if manifest.winner.custom_ops:
            raise InputError(
                f"{name or what} needs operator libraries, so its starts can't be timed"
            )
    winner = {name: manifest.winner for name, manifest in manifests.items()}
    exact = {name: one.exact for name, one in manifests.items() if one.exact is not None}
    empty, filled = str(work / "empty"), str(work / "filled")
    filled_counts = not brief or any(engine_of(part, 1).keeps_compiled for part in winner.values())
    kinds = [
        _Kind(f"{_label(winner)}, empty cache", "winner", _engines(winner), empty),
        _Kind(f"{_label(winner)}, filled cache", "winner", _engines(winner), filled),
        _Kind(f"{_label(winner)}, no cache", "winner", _engines(winner), "off"),
    ]
    if len(exact) == len(winner) and exact != winner:
        kinds.append(_Kind(f"{_label(exact)}, no cache", "exact", _engines(exact), "off"))
    if brief:
        kinds = [
            kind
            for kind in kinds
            if kind.cache == "off" or (kind.cache == filled and filled_counts)
        ]
    order, found = random.Random(seed), [list[dict[str, Any]]() for _ in kinds]
    hits, answers = [False] * len(kinds), [set[Answered]() for _ in kinds]
    began_s = time.monotonic()
    for round_ in range(starts + 1):
        for turn in order.sample(range(len(kinds)), len(kinds)):
            shutil.rmtree(empty, ignore_errors=True)
            record = _started(what, kinds[turn], work, within_s)
            needed_s = (starts + 1) * (time.monotonic() - began_s)
            if not round_ and needed_s > within_s:
                raise CandidateError(_too_long(needed_s))
            hits[turn] = record["from_cache"]
            answers[turn].add((record["batch_sizes"], record["answers"]))
            if round_:
                found[turn].append(record)
    own = {
        kind.cache: told
        for kind, told in zip(kinds, answers, strict=True)
        if kind.which == "winner"
    }
    if differ(own["off"], own.get(filled, own["off"])):
        raise CandidateError("the answers differ between starts with the cache and without it")
    kept = Path(filled)
    return ColdStart(
        rows=tuple(
            Starts(
                kind.label,
                tuple(record["stages_ns"] for record in each),
                tuple(record["processor_ns"] for record in each),
                from_cache=hit,
            )
            for kind, each, hit in zip(kinds, found, hits, strict=True)
        ),
        kept_bytes=sum(file.stat().st_size for file in kept.glob("*")),
    )


def differ(without: Set[Answered], cached: Set[Answered]) -> bool:
    """Whether answers differ between starts without the cache and with it.

    Each start of a chain chooses batch sizes by what they take, and a sample's last digits may depend on
    its batch. So starts of the same sizes are compared, where those without the cache answer alike.
    """
    for sizes in {sizes for sizes, _ in cached}:
        alone = {answers for its, answers in without if its == sizes}
        if len(alone) == 1 and {answers for its, answers in cached if its == sizes} != alone:
            return True
    return False


def _request(folder: Path, manifest: Manifest, seed: int) -> dict[str, Any]:
    """Return one request: the first that the bundle keeps, else a random one."""
    if kept := kept_requests(folder, manifest):
        return kept[0]
    artifact = artifact_of(folder, manifest.winner, manifest, ())
    numbers = RowNumbers.of(manifest.lookups, artifact.inputs)
    return made_up(artifact.request, None, np.random.default_rng(seed), numbers=numbers)


def _label(parts: Mapping[str, Part]) -> str:
    """Return the label of a bundle's model, or of a chain's models with their nodes' names."""
    return "; ".join(
        f"{name}: {part.label}" if name else part.label for name, part in parts.items()
    )


def _engines(parts: Mapping[str, Part]) -> tuple[str, ...]:
    names = (type_name(each) for part in parts.values() for each in engine_of(part, 1).runtimes)
    return tuple(dict.fromkeys(names))


def _too_long(needed_s: float) -> str:
    return f"left out, because they would take {needed_s:.0f} s or more; to measure them, run hasten bench --cold"


def _started(what: str, kind: _Kind, work: Path, within_s: float = math.inf) -> dict[str, Any]:
    """Start one process, and return what it wrote, with the lengths of its stages."""
    said, scratch = work / "start.json", work / "scratch"
    said.unlink(missing_ok=True)
    words = [what, kind.which, kind.cache, ",".join(kind.engines), str(work)]
    environment = {name: text for name, text in os.environ.items() if name != VARIABLE}
    # Without a cache the compiled engine finds what it compiled in another process of the same run.
    shutil.rmtree(scratch, ignore_errors=True)
    environment[SCRATCH] = str(scratch)
    limit_s = min(_LIMIT_S, within_s)
    began_ns = time.monotonic_ns()
    try:
        done = subprocess.run(
            [*interpreter(), "-W", "ignore", "-c", _SCRIPT, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**environment, **OFF},
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise CandidateError(f"{kind.label}: no answer within {limit_s:.0f} s") from error
    if done.returncode or not said.exists():
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise CandidateError(f"{kind.label}: the process ended with {done.returncode}: {lines[-1]}")
    record: dict[str, Any] = json.loads(said.read_bytes())
    ends = [began_ns, *record["ends_ns"]]
    stages = [after - before for before, after in itertools.pairwise(ends)]
    return {**record, "stages_ns": (*stages, record["first_ns"])}
