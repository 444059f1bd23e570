"""Records of a search: the candidates that were tried, and what was measured."""

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

    A field whose metadata has `"in label": False` is left out.
    """
    changed = [
        f"{field.name}={_short(getattr(value, field.name))}"
        for field in dataclasses.fields(value)  # type: ignore[arg-type]
        if field.metadata.get("in label", True) and getattr(value, field.name) != field.default
    ]
    name = type_name(value).rpartition(":")[2]
    return f"{name}({', '.join(changed)})" if changed else name


def _short(setting: object) -> str:
    """Spell out a setting; a list of names is counted, since a label must fit into a table."""
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
    """One model on one engine: the passes that made it, in order, and the engine's settings.

    Attributes:
        passes: Passes that made the model, in order.
        engine: Engine that runs it.
        least: Pixels of the shorter side that are enough where its pictures are decoded smaller than the run's
            pipeline decodes them, as `Decode.least`; 0 where they aren't.
    """

    passes: tuple[Pass, ...]
    engine: Engine
    least: int = 0

    @property
    def exact(self) -> bool:
        """Whether passes and engine state that they keep the model's own precision, on the same pixels.

        Whether the answers are the original's, a trial tells: see `Trial.exact`.
        """
        return not self.least and self.engine.exact and all(step.exact for step in self.passes)

    @property
    def key(self) -> str:
        """Return a short stable name: the digest of the candidate's record."""
        record = to_record(self)
        if not self.least:
            del record["least"]  # journals of older versions know the candidate by its key
        return digest(record)[:12]

    @property
    def made(self) -> str:
        """Describe what the passes make of the original; "" without passes."""
        return ", ".join(step.words() for step in self.passes)

    @property
    def label(self) -> str:
        """Return a label for people: "int8 (NNCF, accurate biases), OpenVINO"."""
        own = self.engine.label(self.made)
        return f"{own}, pictures decoded to {self.least:,} pixels or more" if self.least else own

    @property
    def settings(self) -> str:
        """Spell out every changed setting: "static_quantization + openvino(precision=bf16)"."""
        own = " + ".join(label(value) for value in (*self.passes, self.engine))
        return f"decode(least={self.least}) + {own}" if self.least else own


Candidate: TypeAlias = Single


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one candidate, as they were taken.

    Attributes:
        source: Source of the latencies; those of different sources are never ranked together.
        threads: Number of threads that the engine had.
        rounds: Round number -> latencies of that round's block, in nanoseconds, in order.
    """

    source: Source
    threads: int
    rounds: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Trial:
    """Everything that was observed of one candidate on the search split.

    Attributes:
        candidate: Candidate that was tried.
        artifact: Artifact that was built; None where building failed.
        measurement: Latencies of the candidate; None where it never ran.
        baseline: Latencies of the baseline in the same rounds, to compare with.
        scores: Score of each search sample, in order; None where it wasn't judged.
        changed: Number of answers of a candidate with exact settings that aren't the original's, on
            the search split or, once it is read, on the sealed data; None where not all were
            compared.
        failure: Reason why the candidate failed, in one line; None where it didn't.
        skipped: Reason why there was nothing to do, or why the engine isn't made for the model; None where
            it was tried.
        properties: Properties that the engine reports.
        estimate: Estimate by the device's tools, where the device isn't here.
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
    changed: int | None = None

    @property
    def exact(self) -> bool:
        """Whether it needs no certificate: its settings are exact, and no answer changed."""
        return self.candidate.exact and self.changed == 0
