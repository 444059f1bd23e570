"""The records of a search: what was tried, and what was seen of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias

from hasten.core.records import Value, digest, to_record, type_name
from hasten.engines.base import Artifact, Engine
from hasten.engines.estimates import Estimate, Source
from hasten.passes.base import Pass


def label(value: Value) -> str:
    """Spell out a value: its type, and the settings that differ from their defaults.

    A field whose metadata say `"in label": False` is left out.
    """
    changed = [
        f"{field.name}={_short(getattr(value, field.name))}"
        for field in dataclasses.fields(value)  # type: ignore[arg-type]
        if field.metadata.get("in label", True) and getattr(value, field.name) != field.default
    ]
    name = type_name(value).rpartition(":")[2]
    return f"{name}({', '.join(changed)})" if changed else name


def _short(setting: object) -> str:
    """A list of names is counted: a label has to fit into a table."""
    if isinstance(setting, Value):
        return label(setting)
    if isinstance(setting, float):
        return f"{setting:.3g}"
    if not isinstance(setting, tuple):
        return str(setting)
    if all(isinstance(item, str) for item in setting):
        return f"{len(setting)} nodes"
    if any(dataclasses.is_dataclass(item) for item in setting):
        return f"{len(setting)}, {digest([to_record(item) for item in setting])[:4]}"
    return "/".join(f"{item:g}" for item in setting)


@dataclass(frozen=True)
class Single:
    """One model on one engine: the passes that made it, in order, and the engine's settings."""

    passes: tuple[Pass, ...]
    engine: Engine

    @property
    def exact(self) -> bool:
        """Whether it keeps the model's own precision, by what its passes and engine state."""
        return self.engine.exact and all(step.exact for step in self.passes)

    @property
    def key(self) -> str:
        """A short stable name: the digest of its record."""
        return digest(to_record(self))[:12]

    @property
    def made(self) -> str:
        """What the passes make of the original, in words; "" without passes."""
        return ", ".join(step.words() for step in self.passes)

    @property
    def label(self) -> str:
        """What it is, for people: "int8 (NNCF, accurate biases), OpenVINO"."""
        return self.engine.label(self.made)

    @property
    def settings(self) -> str:
        """Every setting that isn't its default: "static_quantization + openvino(precision=bf16)"."""
        return " + ".join(label(value) for value in (*self.passes, self.engine))


Candidate: TypeAlias = Single


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one candidate, as they were taken.

    Attributes:
        source: Unlike sources are never ranked together.
        threads: How many threads the engine had.
        rounds: Round number -> latencies of that round's block, in nanoseconds, in order.
    """

    source: Source
    threads: int
    rounds: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Trial:
    """All that was seen of one candidate on the search split.

    Attributes:
        candidate: What was tried.
        artifact: What was built; None where that failed.
        measurement: Latencies; None where it never ran.
        baseline: The baseline's turns in the same rounds, to compare with.
        scores: One per search sample in order, `None` where it wasn't judged.
        failure: Why it fell out, in one line; None where it didn't.
        skipped: Why there was nothing to do; None where there was.
        properties: What the engine says that it does.
        estimate: What was said of it beforehand, where its device isn't here.
    """

    candidate: Candidate
    artifact: Artifact | None = None
    measurement: Measurement | None = None
    baseline: Measurement | None = None
    scores: tuple[float, ...] | None = None
    failure: str | None = None
    skipped: str | None = None
    properties: dict[str, str] | None = None
    estimate: Estimate | None = None
