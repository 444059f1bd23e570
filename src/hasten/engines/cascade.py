"""Two engines as one: a fast model answers, and where its margin is small, the original does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, IntegrityError

_PARTS = "cascade.json"
_NAMES = ("fast", "careful")
_TAKES = "careful inputs"


@dataclass(frozen=True)
class Cascade(Engine):
    """Answers by the fast engine; asks the careful one again where the answer was close.

    Mistakes of a quantized model sit where the two highest scores are close: asking the original
    about those few mends most of them. A request that is asked again costs both models.

    Attributes:
        fast: Runs the model that passes made.
        careful: Runs the original; exact.
        threshold: A margin below it is asked again. In units of the output: a difference of logits
            is a logarithm of odds.
        output: The output with class scores `(n, classes)`.
        rank: The margin lies between the scores of this rank and the next: 1 between the highest
            two, 5 for the top five.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino", "tflite"})
    uneven: ClassVar[bool] = True

    fast: Engine
    careful: Engine
    threshold: float
    output: str
    rank: int = 1

    @property
    def exact(self) -> bool:
        """Never: the fast model's clear answers aren't asked again."""
        return False

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """Those of both."""
        return (*self.fast.runtimes, *self.careful.runtimes)

    def within(self, threads: int) -> Self:
        """Return it with both its engines on at most so many threads."""
        fast, careful = self.fast.within(threads), self.careful.within(threads)
        return replace(self, fast=fast, careful=careful)

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield nothing: the threshold follows from what a fast model was seen to answer."""
        yield from ()

    @classmethod
    def version(cls) -> str:
        """Return "1": its parts have versions of their own, see `runtimes`."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build both models, each in a folder of its own.

        Raises:
            CandidateError: one can't be built, or what the model was made of isn't known.
        """
        if model.origin is None:
            raise CandidateError("a cascade needs the original beside what passes made of it")
        parts = {}
        for name, engine, part in zip(
            _NAMES, (self.fast, self.careful), (model, model.origin), strict=True
        ):
            (workdir / name).mkdir()
            parts[name] = engine.build(part, target, workdir / name)
        files = {name: (part.path, *part.files) for name, part in parts.items()}
        index: dict[str, Any] = {
            name: [file.relative_to(workdir).as_posix() for file in own]
            for name, own in files.items()
        }
        # An engine may take fewer batch sizes of a model than another does.
        index[_TAKES] = to_record(parts["careful"].inputs)
        path = workdir / _PARTS
        path.write_text(json.dumps(index))
        return replace(
            parts["fast"], path=path, files=tuple(file for own in files.values() for file in own)
        )

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open both models.

        Raises:
            CandidateError: one can't be opened, or the list of files is damaged.
        """
        fast, careful = _parts(artifact)
        with self.fast.open(fast, target) as quick, self.careful.open(careful, target) as slow:
            yield CascadeSession(quick, slow, self.threshold, self.output, self.rank)

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Profile the fast model alone: what every request takes. See `Engine.profile`."""
        return self.fast.profile(_parts(artifact)[0], target, requests)

    def words(self) -> str:
        return f"{self.fast.words()}, then {self.careful.words()} below a margin of {self.threshold:.6g}"

    def label(self, made: str) -> str:
        """Say which model is asked first."""
        return f"{made or 'original'} first, then the original ({self.words()})"


def _parts(artifact: Artifact) -> tuple[Artifact, Artifact]:
    """Return the two artifacts that a cascade's consists of.

    Raises:
        CandidateError: its list is damaged, or names a file that isn't the artifact's.
    """
    folder = artifact.path.parent
    try:
        index = json.loads(artifact.path.read_bytes())
        found = [[folder / name for name in index[part]] for part in _NAMES]
        if any(not own or not set(own) <= set(artifact.files) for own in found):
            raise ValueError("it lists other files")
        takes = tuple(from_record(TensorSpec, spec) for spec in index[_TAKES])
        if [_kind(spec) for spec in takes] != [_kind(spec) for spec in artifact.inputs]:
            raise ValueError("its models take other inputs")
    except (OSError, ValueError, TypeError, KeyError, RecursionError, IntegrityError) as error:
        raise CandidateError(f"{artifact.path.name} is damaged: {error}") from error
    fast, careful = (replace(artifact, path=own[0], files=tuple(own[1:])) for own in found)
    return fast, replace(careful, inputs=takes)


def _kind(spec: TensorSpec) -> tuple[str, str, int]:
    return spec.name, spec.dtype, len(spec.shape)


class CascadeSession(Session):
    """Two open sessions, and how often the second was asked."""

    def __init__(
        self, fast: Session, careful: Session, threshold: float, output: str, rank: int
    ) -> None:
        self.inputs, self.outputs = fast.inputs, fast.outputs
        self.batch_sizes = fast.batch_sizes
        self.answered = self.escalated = 0
        self._fast, self._careful = fast, careful
        self._threshold, self._output, self._rank = threshold, output, rank

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; its close rows are asked again.

        Raises:
            CandidateError: a runtime failed, or there is no such output of class scores.
        """
        answers = self._fast.run(inputs)
        scores = answers.get(self._output)
        if scores is None or scores.ndim != 2 or scores.shape[1] <= self._rank:
            raise CandidateError(
                f"a cascade reads class scores (n, classes) of more than {self._rank} classes from "
                f"the output {self._output!r}; the model gives "
                + ", ".join(f"{name} {list(array.shape)}" for name, array in answers.items())
            )
        # What is no number has no margin.
        close = np.flatnonzero(~(margins(scores, self._rank) >= self._threshold))
        self.answered += len(scores)
        if not len(close):
            return answers
        self.escalated += len(close)
        return self._asked_again(inputs, answers, close)

    def _asked_again(
        self, inputs: Tensors, answers: dict[str, Array], close: Array
    ) -> dict[str, Array]:
        count, takes = len(answers[self._output]), self._careful.batch_sizes
        if len(close) == count and (takes is None or count in takes):
            return self._careful.run(inputs)
        merged = {name: np.array(array) for name, array in answers.items()}
        for rows in [close] if takes is None else np.split(close, len(close)):
            some = {name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()}
            for name, array in self._careful.run(some).items():
                merged[name][rows] = array
        return merged

    def properties(self) -> Mapping[str, str]:
        """What both runtimes say, and how many answers were asked again: a drift shows there."""
        both = {"fast": self._fast.properties(), "careful": self._careful.properties()}
        said: dict[str, Any] = {f"{k}: {n}": v for k, own in both.items() for n, v in own.items()}
        return {**{name: share(*counts) for name, counts in self.shares().items()}, **said}

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """How many answers were asked again."""
        return {"asked again": (self.escalated, self.answered)}


def margins(scores: Array, rank: int = 1) -> Array:
    """Return how far the score of a rank is above the next.

    Args:
        scores: `(n, classes)`.
        rank: From 1, below the number of classes.

    Returns:
        Shape `(n,)`, not below 0; NaN where a score is.
    """
    places = scores.shape[1] - rank
    highest = np.partition(scores, (places - 1, places), axis=1)
    return np.asarray(highest[:, places] - highest[:, places - 1])
