"""The records behind a report, as a bundle keeps them: read, bounded and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from hasten import bundle
from hasten.bundle import Manifest
from hasten.bundle.cold import COLD
from hasten.bundle.copies import copies_in_words
from hasten.bundle.manifest import unfinished
from hasten.core.records import leaves, to_record
from hasten.core.target import Target
from hasten.errors import InputError, IntegrityError
from hasten.measure.intervals import Ratio, Rounds
from hasten.measure.stages import WAYS
from hasten.reporting.result import Result

T = TypeVar("T")

_RESULT_BYTES = 16 << 20
_RAW_BYTES = 128 << 20
"""Largest number of bytes of raw records; a million latencies take about 14 MB."""
_MOST = 10_000
"""Largest number of candidates: more than any run has, and few enough to list."""
_MOST_DRAWN = 100
"""Largest number of rows, floors or rungs: each is drawn, and a run has a tenth of these."""
_MOST_POINTS = 100
"""Largest number of points of a batch curve; six batches on 128 threads are 48."""
_MOST_FORMS = 1000
"""Largest number of timed candidates, sizes or estimates, each of which is a mark in a plot."""
_MOST_LETTERS = 100_000
"""Largest length of a text of a result; a label has a few hundred."""
_SPELLED = 20
"""Largest number of items of a list to spell out; longer lists are counted."""
_LARGEST = 2**53
_LEAST = 1e-9
"""Least ratio; a smaller one was never measured."""
_SMALLEST = 1e-300
"""Least number that counts as above 0."""

_HALF = re.compile(rb"(\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|\\ud[89a-f][0-9a-f]{2}", re.I)

FIGURES_SCHEMA = 2
"""Version of the raw rounds' record. Version 1, which says no version, has neither the latencies of
refused rounds nor the processes of rounds: each model had one."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""Time in nanoseconds, at most eleven days."""
Taken: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=10**15)]
"""Latency as it was measured, in nanoseconds."""
Latencies: TypeAlias = dict[Count, tuple[Taken, ...]]
"""Round -> latencies in nanoseconds."""
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e15)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=10_000)]


@dataclass(frozen=True)
class Figures:
    """The raw rounds behind the figures.

    Attributes:
        rounds: Entrant -> round -> latencies in nanoseconds.
        refused: Number of rounds that didn't count.
        threads: Number of threads of each engine.
        roles: Row's role -> entrant.
        schema: Version of the record.
        refused_rounds: Entrant -> refused round -> latencies in nanoseconds.
        processes: Round -> number of the process of each entrant that it was measured in.
    """

    rounds: dict[Word, Latencies]
    refused: Count
    threads: Count
    roles: dict[Word, Word] = field(default_factory=dict)
    schema: Annotated[int, msgspec.Meta(ge=1, le=FIGURES_SCHEMA)] = 1
    refused_rounds: dict[Word, Latencies] = field(default_factory=dict)
    processes: dict[Count, Count] = field(default_factory=dict)

    def latencies(self) -> dict[str, Rounds]:
        """Return the rounds by role, for the roles that have any latency."""
        return {
            role: self.rounds[who]
            for role, who in self.roles.items()
            if any(self.rounds.get(who, {}).values())
        }


@dataclass(frozen=True)
class Step:
    """Step that a runtime executed, as far as it is read: see `hasten.engines.layers.LayerTime`."""

    name: Word
    operator: Word
    kind: Word
    latency_ns: tuple[Time, ...]
    precision: Word = ""
    sources: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The steps of the exact model and of the winner, in the order of execution.

    A winner whose runtime has no profiler has none; a cascade has those of its fast model.
    """

    exact: tuple[Step, ...]
    winner: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Floor:
    """The distance of a model from what the machine can do.

    Attributes:
        name: Role of the row.
        floor_ns: Least time that the machine's ceilings allow, in nanoseconds.
        ratio: Latency divided by the floor.
        binds: Main part of the floor: "arithmetic", "bytes" or "overhead".
    """

    name: Word
    floor_ns: Positive
    ratio: Positive
    binds: Word = ""


Floors: TypeAlias = Annotated[tuple[Floor, ...], msgspec.Meta(max_length=_MOST_DRAWN)]


@dataclass(frozen=True)
class Point:
    """The winner's speed with several samples in a request, or several requests at a time."""

    batch: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    threads: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    sessions: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    p50_ns: Positive
    throughput_per_s: Positive


Curve: TypeAlias = Annotated[tuple[Point, ...], msgspec.Meta(max_length=_MOST_POINTS)]


@dataclass(frozen=True)
class Loaded:
    """The result in one of MLCommons' scenarios: see `hasten.measure.scenario.Load`.

    Attributes:
        scenario: Name of the scenario.
        said: Figures in words, and how requests were sent.
        figures: Figures as numbers; empty where no rate met the bound.
    """

    scenario: Word
    said: Annotated[tuple[Word, ...], msgspec.Meta(max_length=100)]
    figures: dict[Word, Any]


@dataclass(frozen=True)
class Part:
    """A stage of the way from a file's bytes to the decision: see `hasten.measure.stages.Stage`."""

    name: Word
    p50_ns: Time
    p99_ns: Time
    share: Share


@dataclass(frozen=True)
class Ways:
    """The stages of the model as it was given and of what ships: see `hasten.measure.stages.Ways`."""

    before: tuple[Part, ...]
    after: tuple[Part, ...]
    files: Count
    threads: Count


@dataclass(frozen=True)
class Started:
    """Cold starts of one model: see `hasten.bundle.cold.Starts`.

    Attributes:
        label: Description of what was started, for people.
        stages_ns: Length of each stage of each start, in nanoseconds.
    """

    label: Word
    stages_ns: Annotated[
        tuple[tuple[Time, Time, Time, Time], ...], msgspec.Meta(min_length=1, max_length=1000)
    ]


@dataclass(frozen=True)
class Cold:
    """Cold starts of what ships and of the exact model."""

    rows: Annotated[tuple[Started, ...], msgspec.Meta(min_length=1, max_length=10)]


@dataclass(frozen=True)
class Tried:
    """The records of a candidate's passes, in order, and of its engine.

    Attributes:
        passes: Records of the passes.
        engine: Record of the engine.
        least: Pixels of the shorter side that are enough where its pictures are decoded smaller; 0 where they aren't.
    """

    passes: tuple[dict[Word, Any], ...]
    engine: dict[Word, Any]
    least: Count = 0

    def spelled(self) -> str:
        """Spell out all settings: "half_precision(keep_float=[]) + openvino(precision=bf16)"."""
        own = " + ".join(map(_spelled, (*self.passes, self.engine)))
        return f"decode(least={self.least}) + {own}" if self.least else own


@dataclass(frozen=True)
class _Trial:
    candidate: Tried


def _spelled(record: dict[str, Any], *, inner: bool = False) -> str:
    """Spell out a record and the records in it; show long lists by length, and files by name."""
    settings = []
    for key, value in record.items():
        if isinstance(value, dict):
            value = "..." if inner else _spelled(value, inner=True)
        elif isinstance(value, list):
            value = f"{len(value)} items" if key == "files" or len(value) > _SPELLED else value
        elif key in ("path", "training"):  # whose folders would tell others about this machine
            value = str(value).rpartition("/")[2]
        if key != "type":
            settings.append(f"{key}={value}")
    return f"{record.get('type', '')}({', '.join(settings)})"


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        result: Result of the run.
        target: Device that the model runs on.
        environment: Versions of packages, and the host.
        created: Time in ISO 8601, UTC.
        source_sha256: SHA-256 of the model that was given.
        sealed: Number of sealed samples, and the SHA-256 over their hashes.
        figures: Raw rounds, where they were kept.
        profile: Steps before and after, where they were timed.
        limit: Floors, where they were computed.
        curve: Speed by batch and by sessions, where it was measured.
        load: Results under load, where it was measured.
        ways: Stages from a file's bytes to the decision, where they were timed.
        cold: Cold starts, where they were timed.
        requests: Number of samples of the data that the bundle keeps.
        cascade: Whether what ships is a cascade.
        settings: Every setting of the candidates, in the order of the result's outcomes.
        copies: Words for the copies that the shipped model's engine makes of a request's inputs; empty if unknown.
    """

    result: Result
    target: Target
    environment: dict[str, str]
    created: str
    source_sha256: str
    sealed: dict[str, Any]
    figures: Figures | None = None
    profile: Profile | None = None
    limit: tuple[Floor, ...] = ()
    curve: tuple[Point, ...] = ()
    load: tuple[Loaded, ...] = ()
    ways: Ways | None = None
    cold: Cold | None = None
    requests: int = 0
    cascade: bool = False
    settings: tuple[Tried, ...] = ()
    copies: str = ""


def gathered(folder: Path) -> Report:
    """Read the records of a bundle's run.

    Raises:
        InputError: there is no bundle, or its run didn't finish.
        IntegrityError: the bundle or its evidence is damaged, or larger than a run leaves it.
    """
    manifest = bundle.read(folder)

    def kept(name: str, most_bytes: int) -> bytes | None:
        path = f"evidence/{name}"
        if path not in manifest.files:
            return None
        size_bytes = manifest.files[path][1]
        if size_bytes > most_bytes:
            raise IntegrityError(
                f"{folder}: {path} has {size_bytes:,} bytes; at most {most_bytes:,} are read"
            )
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise IntegrityError(f"{folder}: {path} can't be read: {error.strerror}") from error

    return assembled(folder, manifest, kept)


def assembled(folder: Path, manifest: Manifest, kept: Callable[[str, int], bytes | None]) -> Report:
    """Put a report's records together.

    Args:
        folder: Folder of the bundle, to name in messages.
        manifest: Manifest of the bundle.
        kept: Function from an evidence file's name and the most bytes to read to its JSON content;
            it returns None where there is no such file.

    Raises:
        InputError: the bundle has no result, since its run didn't finish.
        IntegrityError: the evidence is damaged.
    """

    def read(name: str, kind: type[T], most_bytes: int = _RAW_BYTES) -> T | None:
        data = kept(name, most_bytes)
        if data is None:
            return None
        try:
            # Typed as it is read, so that unwanted fields never get into memory.
            return msgspec.json.decode(_whole_letters(data), type=kind, dec_hook=as_path)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{folder}: evidence/{name} is damaged: {error}") from error

    result = read("result.json", Result, _RESULT_BYTES)
    if result is None:
        if unfinished(manifest.why):
            raise InputError(
                f"{folder} has no evidence of a finished run, so there is nothing to report: "
                "continue the run with resume=True, or make the bundle again"
            )
        raise InputError(
            f"{folder} has no evidence of its run, so there is nothing to report: take the bundle that it was packed "
            "from, since packing can leave the evidence out"
        )
    if wrong := _implausible(result, manifest):
        raise IntegrityError(f"{folder}: evidence/result.json is damaged: {wrong}")
    return Report(
        result=result,
        target=manifest.target,
        environment=manifest.environment,
        created=manifest.created,
        source_sha256=manifest.source_sha256,
        sealed=manifest.sealed,
        figures=read("figures.json", Figures),
        profile=read("profile.json", Profile),
        limit=read("limit.json", Floors) or (),
        curve=read("curve.json", Curve) or (),
        load=read("load.json", tuple[Loaded, ...], _RESULT_BYTES) or (),
        ways=read(WAYS, Ways, _RESULT_BYTES),
        cold=read(COLD, Cold, _RESULT_BYTES),
        requests=manifest.requests,
        cascade=manifest.winner.engine.get("type") == "cascade",
        settings=tuple(one.candidate for one in read("trials.json", tuple[_Trial, ...]) or ()),
        copies=copies_in_words(manifest.winner),
    )


def _whole_letters(data: bytes) -> bytes:
    """Replace lone surrogates, which names of files hold where their bytes are no text."""
    return _HALF.sub(lambda found: found[1] or rb"\ufffd", data)


def as_path(kind: type, value: Any) -> Any:
    """Read a path, which JSON holds as a string."""
    if issubclass(kind, Path):
        return Path(value)
    raise ValueError(f"a {kind.__name__} can't be read")


def _implausible(result: Result, manifest: Manifest) -> str | None:
    """Return what makes a result implausible; None for one that can be drawn."""
    if result.status != manifest.status:
        return f"its status is {result.status}, but the manifest's is {manifest.status}"
    if result.comparison != manifest.comparison:
        return "its comparison with the original differs from the manifest's"
    if result.estimates is not None and result.rows:
        return "it has both latencies and estimates"
    if result.sizes is not None and (result.rows or result.estimates is not None):
        return "it has both sizes and latencies"
    if result.sizes is not None and not result.sizes.possible():
        return "it has an impossible size or share"
    timed = result.estimates is None and result.sizes is None
    if timed and all(r.role == "fastest uncertified" for r in result.rows):
        return "it has no row of what ships"
    if wrong := _too_many(result):
        return wrong
    record = to_record(result)
    longest = max((len(text) for text in leaves(record) if isinstance(text, str)), default=0)
    if longest > _MOST_LETTERS:
        return f"it has a text of {longest:,} letters; at most {_MOST_LETTERS:,} are shown"
    if not all(abs(number) < _LARGEST for number in numbers(record)):
        return "it has a number that is infinite or too large"
    if not all(list(bounds) == sorted(bounds) for bounds in _ascending(result)):
        return "it has an interval that isn't one, or a figure that is out of range"
    return None


def _too_many(result: Result) -> str | None:
    """Return what a result has too many of to draw; None where it has few enough."""
    timed = sum(outcome.ratio is not None for outcome in result.outcomes)
    on_ladder = sum(outcome.rung is not None for outcome in result.outcomes)
    estimates, sizes = result.estimates, result.sizes
    for count, most, what in (
        (len(result.outcomes), _MOST, "candidates"),
        (timed, _MOST_FORMS, "timed candidates"),
        (len(result.rows), _MOST_DRAWN, "rows"),
        (max(len(result.ladder), on_ladder), _MOST_DRAWN, "rungs"),
        (0 if estimates is None else len(estimates.rows), _MOST_FORMS, "estimates"),
        (0 if sizes is None else len(sizes.rows), _MOST_FORMS, "sizes"),
    ):
        if count > most:
            return f"it has {count:,} {what}; at most {most:,} are shown"
    return None


def numbers(record: Any) -> Iterator[float]:
    """Yield every number in a record."""
    left = [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, (int, float)):
            yield value


def _ascending(result: Result) -> Iterator[tuple[float, ...]]:
    """Yield tuples of numbers that must ascend."""
    yield (0, result.spread)
    for row in result.rows:
        for ratio in (row.ratio, row.mean_ratio, row.p99_ratio):
            if ratio is not None:
                yield _ratio(ratio)
        for value_ns in (row.mean_ns, row.p50.value_ns, row.p99.value_ns):
            yield (0, value_ns)
    others = (result.on_all, result.whole, *(method.ratio for method in result.methods))
    for ratio in (*others, *(outcome.ratio for outcome in result.outcomes)):
        if ratio is not None:
            yield _ratio(ratio)
    for outcome in result.outcomes:
        if outcome.drop is not None:
            yield (-1, outcome.drop.low, outcome.drop.estimate, outcome.drop.high, 1)
    for rung in result.ladder:
        if rung.judgement is not None:
            yield (-1, rung.judgement.estimate, 1)
            yield (0, rung.judgement.bound, 1)
    for limits in (result.judgement, *(rung.judgement for rung in result.ladder), result.asked):
        if limits is not None:
            yield (_SMALLEST, limits.max_drop, 1)
            yield (_SMALLEST, limits.confidence, 1)


def _ratio(ratio: Ratio) -> tuple[float, ...]:
    return (_LEAST, ratio.low, ratio.estimate, ratio.high, 1 / _LEAST)
