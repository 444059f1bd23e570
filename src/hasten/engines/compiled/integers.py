"""Engine that calculates a plan of bytes in numpy: the answers of `compiled` on any machine, slowly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.checked import private
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.constants import Constants
from hasten.engines.compiled.engine import CompiledC, read, row_counts
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import wrong_size
from hasten.errors import CandidateError


@dataclass(frozen=True)
class Integers(CompiledC):
    """Answers of `compiled` for a model of bytes, by numpy: bit for bit where each step calculates with bytes.

    Steps of floats in between or at the end, such as a softmax, are near the compiled ones: their last
    bits differ. It needs no compiler, and never takes part in a search.
    """

    families: ClassVar[frozenset[str]] = frozenset()
    distributions: ClassVar[tuple[str, ...]] = ("numpy",)
    extra: ClassVar[str] = "optimize"
    program: ClassVar[str] = ""

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return itself: numpy decides."""
        return self

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield nothing."""
        yield from ()

    @property
    def keeps_compiled(self) -> bool:
        """False: nothing is compiled."""
        return False

    @classmethod
    def version(cls) -> str:
        """Return numpy's version."""
        return np.__version__

    @classmethod
    def tools(cls) -> dict[str, str]:
        """Return nothing: no program affects the answers."""
        return {}

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write the model's plan and weights.

        Raises:
            CandidateError: an operator isn't covered, or numpy has no form of a step of floats.
        """
        artifact = super().build(model, target, workdir)
        plan, weights = read(artifact)
        request = {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in artifact.request}
        for name, numbers in Constants(artifact, plan).numbers.items():
            request[name].flat[:] = numbers
        IntegerSession(artifact, plan, weights).run(request)
        return artifact

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Read the plan.

        Raises:
            CandidateError: the plan is damaged.
        """
        with private(artifact) as copy:
            session = IntegerSession(artifact, *read(copy))
        yield session

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open as `open` does: nothing is compiled."""
        with self.open(artifact, target) as session:
            yield session

    def words(self) -> str:
        return "integers in numpy"


class IntegerSession(Session):
    """Session that calculates one step after the other.

    Args:
        artifact: Artifact that was opened.
        plan: Its plan, checked.
        weights: Its constants.
    """

    def __init__(self, artifact: Artifact, plan: Plan, weights: bytes) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = row_counts(artifact, plan)
        self._only = Constants(artifact, plan)
        self._plan = plan
        self._constants = {
            name: plan.constant(name, weights)
            for name, tensor in plan.tensors.items()
            if tensor.offset is not None
        }

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: an array is missing, or of another size; or numpy has no form of a step of floats.
            InputError: a constant input has other numbers.
        """
        plan = self._plan
        try:
            given = [np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs]
        except KeyError as error:
            raise CandidateError(f"the input {error} is missing") from error
        self._only.check(given)
        rows = len(given[0]) if plan.by_row else 1
        for array, name, spec in zip(given, plan.inputs, self.inputs, strict=True):
            if array.size != rows * plan.tensor(name).size:
                raise wrong_size(spec.name, array, plan.tensor(name), rows, self.batch_sizes)
        found: dict[str, list[Array]] = {spec.name: [] for spec in self.outputs}
        for row in range(rows):
            tensors = dict(self._constants)
            for name, array in zip(plan.inputs, given, strict=True):
                tensors[name] = (array[row] if plan.by_row else array).ravel()
            for operation in plan.operations:
                for name in operation.writes:
                    if name not in tensors:
                        tensors[name] = np.zeros(plan.tensor(name).size, plan.tensor(name).dtype)
                operation.calculate(tensors)
            for spec, name, shape in zip(self.outputs, plan.outputs, plan.shapes, strict=True):
                made = tensors[name].reshape(shape)
                spoiling = plan.rounded_inputs.get(name, ())
                if any(np.isnan(tensors[one]).any() for one in spoiling):
                    made = np.full(shape, np.nan, made.dtype)
                found[spec.name].append(made)
        return {name: np.concatenate(arrays) for name, arrays in found.items()}
