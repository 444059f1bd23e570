"""Engine of two: a fast model answers first, and the original where the fast one is unsure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.records import check_integers, from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import amount
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.engines.checked import content
from hasten.engines.compile_cache import CompileCache
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, IntegrityError

_PARTS = "cascade.json"
_NAMES = ("fast", "careful")
_TAKES = "careful inputs"


@dataclass(frozen=True)
class Cascade(Engine):
    """Answer by a fast engine, and again by a careful one where the fast answer's margin is small.

    A quantized model's mistakes lie where its two highest scores are close, so asking the original
    about those few answers corrects most of them. A request that is asked again costs both models.

    Attributes:
        fast: Engine of the model that passes made.
        careful: Engine of the original; exact.
        threshold: Margin below which a request is asked again, in units of the output; a difference
            of logits is a logarithm of odds.
        output: Name of the output with class scores `(n, classes)`.
        rank: Rank of the score whose distance to the next one is the margin: 1 for the highest, 5
            for top-5.
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
        """False: the fast model's clear answers aren't asked again."""
        return False

    @property
    def keeps_compiled(self) -> bool:
        """Whether one of its engines keeps something."""
        return self.fast.keeps_compiled or self.careful.keeps_compiled

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """Runtimes of both engines."""
        return (*self.fast.runtimes, *self.careful.runtimes)

    def within(self, threads: int) -> Self:
        """Return the cascade with both its engines limited to a number of threads."""
        fast, careful = self.fast.within(threads), self.careful.within(threads)
        return replace(self, fast=fast, careful=careful)

    def beside(self) -> Self:
        """Return the cascade with both its engines for use next to another."""
        return replace(self, fast=self.fast.beside(), careful=self.careful.beside())

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield nothing: the threshold depends on the answers of a particular fast model."""
        yield from ()

    @classmethod
    def version(cls) -> str:
        """Return "1": the two engines have versions of their own, see `runtimes`."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build both models, each in its own folder.

        Raises:
            CandidateError: a model can't be built, or the model's original isn't known.
        """
        if model.origin is None:
            raise CandidateError(
                "a cascade needs the original and the model that passes made from it"
            )
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
        # The two engines may take different batch sizes of a model.
        index[_TAKES] = to_record(parts["careful"].inputs)
        path = workdir / _PARTS
        path.write_text(json.dumps(index))
        return replace(
            parts["fast"], path=path, files=tuple(file for own in files.values() for file in own)
        )

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open both models, the careful one for use beside the fast one.

        Raises:
            CandidateError: a model can't be opened, or the list of files is damaged.
        """
        fast, careful = _parts(artifact)
        beside = self.careful.beside()
        with self.fast.open(fast, target) as quick, beside.open(careful, target) as slow:
            yield CascadeSession(quick, slow, self.threshold, self.output, self.rank)

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open both models as `open` does, each through the cache.

        Raises:
            CandidateError: a model can't be opened, or the list of files is damaged.
        """
        fast, careful = _parts(artifact)
        with (
            self.fast.open_cached(fast, target, compiled) as quick,
            self.careful.beside().open_cached(careful, target, compiled) as slow,
        ):
            yield CascadeSession(quick, slow, self.threshold, self.output, self.rank)

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Profile only the fast model, which every request runs on. See `Engine.profile`."""
        return self.fast.profile(_parts(artifact)[0], target, requests)

    def constant_inputs(self, artifact: Artifact) -> Mapping[str, tuple[int, ...]]:
        """Return the inputs that one of both models takes with only some numbers."""
        try:
            fast, careful = _parts(artifact)
        except CandidateError:
            return {}
        return {**self.careful.constant_inputs(careful), **self.fast.constant_inputs(fast)}

    def words(self) -> str:
        return f"{self.fast.words()}, then {self.careful.words()} below a margin of {self.threshold:.6g}"

    def label(self, made: str) -> str:
        """Return the name for people, which says which model is asked first."""
        return f"{made or 'original'} first, then the original ({self.words()})"


def _parts(artifact: Artifact) -> tuple[Artifact, Artifact]:
    """Return the two artifacts that a cascade's artifact contains.

    Raises:
        CandidateError: the list of files is damaged, or names a file that isn't the artifact's.
    """
    folder = artifact.path.parent
    try:
        index = json.loads(content(artifact, artifact.path))
        check_integers(index)
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
    """Two open sessions, with counts of the answers and of those that were asked again."""

    def __init__(
        self, fast: Session, careful: Session, threshold: float, output: str, rank: int
    ) -> None:
        self.inputs, self.outputs = fast.inputs, fast.outputs
        self.batch_sizes = fast.batch_sizes
        self.compiling_s = fast.compiling_s + careful.compiling_s
        self.answered = self.escalated = 0
        self._fast, self._careful = fast, careful
        self._threshold, self._output, self._rank = threshold, output, rank

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; its rows with a small margin are asked again.

        Raises:
            CandidateError: a runtime failed, or the output of class scores is missing.
        """
        answers = self._fast.run(inputs)
        scores = answers.get(self._output)
        if scores is None or scores.ndim != 2 or scores.shape[1] <= self._rank:
            raise CandidateError(
                f"a cascade reads class scores (n, classes) of more than {amount(self._rank, 'class', 'classes')} from "
                f"the output {self._output!r}; the model gives "
                + ", ".join(f"{name} {list(array.shape)}" for name, array in answers.items())
            )
        # NaN has no margin, so it is asked again.
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
        """Properties of both sessions, and how often requests are asked again, which shows drift."""
        both = {"fast": self._fast.properties(), "careful": self._careful.properties()}
        said: dict[str, Any] = {f"{k}: {n}": v for k, own in both.items() for n, v in own.items()}
        return {**{name: share(*counts) for name, counts in self.shares().items()}, **said}

    def settle(self, again: Callable[[], object]) -> None:
        self._fast.settle(again)

    def device_times(self) -> Mapping[str, str]:
        return self._fast.device_times()

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """Number of answers that were asked again, out of all."""
        return {"asked again": (self.escalated, self.answered)}


def margins(scores: Array, rank: int = 1) -> Array:
    """Return how far the score of a rank lies above the next one.

    Args:
        scores: Class scores `(n, classes)`.
        rank: Rank from 1, below the number of classes.

    Returns:
        Margins of shape `(n,)`, at least 0; NaN where a score is NaN, or both are the same infinity.
    """
    places = scores.shape[1] - rank
    highest = np.partition(scores, (places - 1, places), axis=1)
    with np.errstate(invalid="ignore"):  # of two infinities
        return np.asarray(highest[:, places] - highest[:, places - 1])
