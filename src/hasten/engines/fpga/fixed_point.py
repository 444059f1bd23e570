"""Engine that runs fixed-point programs on this host, by da4ml's interpreter (extra `fpga`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.fpga import program
from hasten.errors import CandidateError

_COST, _LAYERS = "1-bit adders, about", "layers"


def cost(properties: Mapping[str, str]) -> float:
    """Return the approximate number of 1-bit adders, by a session's properties, else infinity."""
    return float(properties.get(_COST, "inf"))


def layers(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of a program's products, from its session's properties."""
    return tuple(filter(None, properties.get(_LAYERS, "").split("\n")))


@dataclass(frozen=True)
class FixedPointProgram(Engine):
    """Run a fixed-point program on this host, with the answers of any design of it, bit for bit.

    It is for judging answers; its speed says nothing about a design's.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"dais"})
    distributions: ClassVar[tuple[str, ...]] = ("da4ml",)
    extra: ClassVar[str] = "fpga"

    @property
    def exact(self) -> bool:
        """False: the program was rounded."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return da4ml's version."""
        return program.version()

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the program as it is.

        Raises:
            CandidateError: a file of the program is missing.
        """
        return place(model, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the program.

        Raises:
            CandidateError: the program is damaged.
        """
        with private(artifact) as copy:
            loaded = program.load(copy.path)
        yield FixedPointSession(artifact, loaded, target.threads)

    def words(self) -> str:
        return "program on this host"


class FixedPointSession(Session):
    """Session of a program with its ports."""

    def __init__(self, artifact: Artifact, loaded: program.FpgaProgram, threads: int) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = None
        self._program, self._threads = loaded, threads

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: an input is missing.
        """
        try:
            rounded = self._program.ports.encode(inputs)
        except KeyError as error:
            raise CandidateError(f"the program didn't get the input {error.args[0]!r}") from error
        answers = self._program.answers(rounded, self._threads)
        return self._program.ports.decode(answers, self.outputs)

    def properties(self) -> Mapping[str, str]:
        """Size of the program, and the names of its products."""
        return {
            "operations": str(len(self._program.logic.ops)),
            _COST: f"{self._program.cost:.0f}",
            _LAYERS: "\n".join(self._program.ports.layers),
        }
