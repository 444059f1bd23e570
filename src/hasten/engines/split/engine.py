"""Engine that runs the part of a model that compiled C covers, and leaves the rest to ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.core.tensors import Tensors
from hasten.core.words import counted, listed
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC, one_request
from hasten.engines.compiled.lowering import coverage, read_model
from hasten.engines.layers import LayerTime
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.split.graph import Splitter, check_products, inferred
from hasten.engines.split.parts import (
    Halves,
    Index,
    half_of,
    parts_of,
    whole_inputs,
    whole_outputs,
)
from hasten.engines.split.session import SplitSession
from hasten.engines.weights import Stretch
from hasten.errors import CandidateError, NotCovered

_INDEX = "split.json"


def _one_thread() -> OnnxRuntime:
    return OnnxRuntime(threads=1)


@dataclass(frozen=True)
class Split(Engine):
    """Compiled C for most of a model, and ONNX Runtime for the operators that it doesn't cover.

    A model is split once: ONNX Runtime has either all that depends on an operator that isn't covered, such as the
    removal of overlapping boxes, or all that such an operator depends on, such as the scaling of a picture.
    It has one thread, because no product of matrices that matters is in its part.

    Attributes:
        compiled: Engine of the part that is covered.
        rest: Engine of the rest.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    settles: ClassVar[bool] = True
    hurry: ClassVar[int] = 0
    copied_into: ClassVar[tuple[str, ...] | None] = ()

    compiled: Engine = field(default_factory=CompiledC)
    rest: Engine = field(default_factory=_one_thread)

    @property
    def _most_work(self) -> int:
        """Largest number of calculations with floats that the compiled part may have for one row.

        Raises:
            CandidateError: its engine doesn't compile plans.
        """
        if not isinstance(self.compiled, CompiledC):
            raise CandidateError(
                f"split takes compiled C for one part, not {self.compiled.words()}"
            )
        return self.compiled.most_work

    @property
    def exact(self) -> bool:
        """Whether both engines keep the model's own precision."""
        return self.compiled.exact and self.rest.exact

    @property
    def keeps_compiled(self) -> bool:
        """Whether one of its engines keeps something."""
        return self.compiled.keeps_compiled or self.rest.keeps_compiled

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """Both engines."""
        return (*self.compiled.runtimes, *self.rest.runtimes)

    @property
    def threads(self) -> int | None:
        """Number of threads of the compiled part."""
        return self.compiled.threads

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine with the compiled part set to a number of threads."""
        return replace(self, compiled=self.compiled.on_threads(threads, alone=alone))

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield one thread for the compiled part, and all that the target has."""
        for compiled in CompiledC.variants(target):
            yield cls(compiled)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield the other settings of the compiled part that are worth trying."""
        for compiled in self.compiled.tunings(target):
            yield replace(self, compiled=compiled)

    @classmethod
    def version(cls) -> str:
        """Return "1": the engines have versions of their own, see `runtimes`.

        Raises:
            InputError: one of them isn't installed.
        """
        CompiledC.version()
        OnnxRuntime.version()
        return "1"

    @classmethod
    def tools(cls) -> Mapping[str, str]:
        """Return the version of the C compiler."""
        return CompiledC.tools()

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Split the model, and build both parts.

        Raises:
            NotCovered: compiled C covers all of the model, or too little of it.
            CandidateError: the model can't be read, or a part can't be built.
        """
        request = one_request(model)
        proto = read_model(model.path)
        check_products(proto)
        known = {name: one for name, one in inferred(proto, request).items() if one.static}
        covered = coverage(proto, request, known, self._most_work, model.constant_inputs)
        if not covered.refused:
            raise NotCovered(
                "compiled C covers all of the model, so there is nothing to leave to another runtime"
            )
        splitter = Splitter(proto, covered)
        split = splitter.split()
        halves = Halves(
            self.compiled,
            self.rest,
            replace(model, request=request),
            target,
            workdir,
            splitter,
            known,
        )
        compiled, rest = halves.built(split)
        why = covered.refused[min(covered.refused.keys() & split.rest.nodes)]
        counts = len(split.compiled.nodes), len(split.compiled.nodes) + len(split.rest.nodes)
        index = Index(
            half_of(compiled), half_of(rest), split.compiled_first, share(*counts), f"{why:.200}"
        )
        path = workdir / _INDEX
        path.write_text(json.dumps(to_record(index)))
        return Artifact(
            path=path,
            files=(compiled.path, *compiled.files, rest.path, *rest.files),
            inputs=whole_inputs(model, request, compiled),
            outputs=whole_outputs(model, compiled),
            request=request,
            custom_ops=model.custom_ops,
        )

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open both parts.

        Raises:
            CandidateError: a part can't be opened, or the list of files is damaged.
        """
        parts = parts_of(artifact)
        with (
            self.compiled.open(parts.compiled, target) as compiled,
            self.rest.open(parts.rest, target) as rest,
        ):
            yield SplitSession(artifact, parts.index, compiled, rest)

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open both parts as `open` does, each through the cache.

        Raises:
            CandidateError: a part can't be opened, or the list of files is damaged.
        """
        parts = parts_of(artifact)
        with (
            self.compiled.open_cached(parts.compiled, target, compiled) as first,
            self.rest.open_cached(parts.rest, target, compiled) as second,
        ):
            yield SplitSession(artifact, parts.index, first, second)

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Profile both parts, one after the other. See `Engine.profile`."""
        parts = parts_of(artifact)
        engines = [(self.compiled, parts.compiled), (self.rest, parts.rest)]
        found: tuple[LayerTime, ...] = ()
        for engine, part in engines if parts.index.compiled_first else engines[::-1]:
            asked = [{spec.name: one[spec.name] for spec in part.inputs} for one in requests]
            found += engine.profile(part, target, asked)
            with engine.open(part, target) as session:
                requests = [
                    {**one, **session.run(own)} for one, own in zip(requests, asked, strict=True)
                ]
        return found

    def stretches(self, artifact: Artifact) -> Iterator[Stretch]:
        """Yield where the tensors of both parts lie."""
        try:
            parts = parts_of(artifact)
        except CandidateError:
            return
        yield from self.compiled.stretches(parts.compiled)
        yield from self.rest.stretches(parts.rest)

    def constant_inputs(self, artifact: Artifact) -> Mapping[str, tuple[int, ...]]:
        """Return the inputs that the compiled part takes with only some numbers."""
        try:
            return self.compiled.constant_inputs(parts_of(artifact).compiled)
        except CandidateError:
            return {}

    def words(self) -> str:
        threads = self.threads or 1
        return listed(
            "compiled C for most of the model and ONNX Runtime for the rest",
            counted(threads, "thread") if threads > 1 else "",
        )
