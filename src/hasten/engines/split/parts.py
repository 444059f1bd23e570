"""Both parts of a model that was split: how they are built, and how an artifact keeps them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hasten.core.model import Model
from hasten.core.records import check_integers, from_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact, Engine
from hasten.engines.checked import content
from hasten.engines.failures import failed
from hasten.engines.split.graph import Part, SplitGraph, Splitter, inferred
from hasten.errors import CandidateError, IntegrityError, NotCovered, visible

_REST = "rest.onnx"
_ROWS = 3
"""Number of rows for which shapes are inferred, to see which tensors have a row for each."""


@dataclass(frozen=True)
class Half:
    """Part of a model as its runtime opens it.

    Attributes:
        files: Names of its files.
        inputs: Specs of its inputs.
        outputs: Specs of its outputs.
        request: Specs of its inputs for one request.
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    request: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Index:
    """Content of the file that a bundle keeps of a split model.

    Attributes:
        compiled: Part that is covered.
        rest: The rest.
        compiled_first: Whether the rest reads what compiled C gives.
        share: Number of operators of the compiled part out of all, for people.
        why: Reason for which the first operator isn't covered.
    """

    compiled: Half
    rest: Half
    compiled_first: bool
    share: str
    why: str


@dataclass(frozen=True)
class Parts:
    """Artifacts of both parts.

    Attributes:
        index: Facts that the bundle states about them.
        compiled: Artifact of the compiled part.
        rest: Artifact of the rest.
    """

    index: Index
    compiled: Artifact
    rest: Artifact


@dataclass(frozen=True)
class Halves:
    """Builder of both parts.

    Attributes:
        compiled: Engine of the part that is covered.
        rest: Engine of the rest.
        model: Model, with a request.
        target: Target to build for.
        workdir: Folder for the files.
        splitter: Graph that is split.
        known: Tensors whose sizes are known for one request.
    """

    compiled: Engine
    rest: Engine
    model: Model
    target: Target
    workdir: Path
    splitter: Splitter
    known: Mapping[str, TensorSpec]

    def built(self, split: SplitGraph) -> tuple[Artifact, Artifact]:
        """Build the compiled part and the rest.

        Raises:
            CandidateError: a part can't be built, or the shape of a tensor between them isn't known.
        """
        compiled, rest = split.compiled, split.rest
        if split.compiled_first:
            made = self._built(self.compiled, compiled, {}, "compiled.onnx")
            crossing = {spec.name: spec for spec in made.outputs}
            return made, self._built(self.rest, rest, crossing, _REST)
        crossing = {
            name: self._crossing(name) for name in compiled.inputs if name not in self._given
        }
        made = self._built(self.compiled, compiled, crossing, "compiled.onnx")
        return made, self._built(self.rest, rest, crossing, _REST)

    def _built(
        self, engine: Engine, part: Part, crossing: Mapping[str, TensorSpec], name: str
    ) -> Artifact:
        """Build a part, whose model is written to a folder that is removed then."""
        specs = {**self.known, **crossing}
        own = {spec.name: spec for spec in self.model.outputs}
        settled = {spec.name: spec for spec in self.model.request} | {
            spec.name: replace(
                spec, shape=tuple(1 if isinstance(n, str) else n for n in spec.shape)
            )
            for spec in crossing.values()
        }
        with tempfile.TemporaryDirectory(prefix="hasten-split-") as folder:
            path = Path(folder, name)
            try:
                path.write_bytes(self.splitter.model_of(part, specs).SerializeToString())
            except Exception as error:  # protobuf's own, above 2 GB
                raise failed("the model can't be split", error) from error
            model = Model(
                path=path,
                format="onnx",
                inputs=tuple(self._given.get(one) or crossing[one] for one in part.inputs),
                outputs=tuple(
                    own.get(one) or specs.get(one) or TensorSpec(one, "float32", ())
                    for one in part.outputs
                ),
                request=tuple(settled[one] for one in part.inputs),
                custom_ops=self.model.custom_ops if engine is self.rest else (),
                constant_inputs=self.model.constant_inputs,
            )
            return engine.build(model, self.target, self.workdir)

    @property
    def _given(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.model.inputs}

    def _crossing(self, name: str) -> TensorSpec:
        """Return the spec of what compiled C gets from the rest, with the batch open where the inputs' is.

        Raises:
            NotCovered: its shape isn't known, or depends on the request's values.
        """
        if name not in self.known:
            raise NotCovered(
                f"compiled C would read {visible(name[:80])!r}, whose shape depends on the request's values"
            )
        spec, more = self.known[name], self._of_rows.get(name)
        if more is not None and more.shape == (_ROWS, *spec.shape[1:]) and spec.shape[0] == 1:
            return replace(spec, shape=(self.model.inputs[0].shape[0], *spec.shape[1:]))
        return spec

    @cached_property
    def _of_rows(self) -> dict[str, TensorSpec]:
        """Specs of tensors for a request of several rows; empty if the model takes only one."""
        if not any_batch(self.model.inputs):
            return {}
        several = [
            replace(one, shape=(_ROWS, *one.shape[1:])) for one in self.model.request if one.shape
        ]
        return inferred(self.splitter.proto, several)


def half_of(artifact: Artifact) -> Half:
    files = tuple(file.name for file in (artifact.path, *artifact.files))
    return Half(files, artifact.inputs, artifact.outputs, artifact.request)


def whole_inputs(
    model: Model, request: tuple[TensorSpec, ...], compiled: Artifact
) -> tuple[TensorSpec, ...]:
    """Return the inputs of the whole: as of one request, for any batch where the compiled part takes any."""
    opened = any_batch(compiled.inputs) and any_batch(model.inputs)
    return tuple(
        replace(settled, shape=(spec.shape[0], *settled.shape[1:])) if opened else settled
        for spec, settled in zip(model.inputs, request, strict=True)
    )


def whole_outputs(model: Model, compiled: Artifact) -> tuple[TensorSpec, ...]:
    own = {spec.name: spec for spec in compiled.outputs}
    return tuple(own.get(spec.name, spec) for spec in model.outputs)


def any_batch(inputs: Sequence[TensorSpec]) -> bool:
    return all(bool(spec.shape) and isinstance(spec.shape[0], str) for spec in inputs)


def parts_of(artifact: Artifact) -> Parts:
    """Return the two artifacts that an artifact contains.

    Raises:
        CandidateError: the list of files is damaged, or names a file that isn't the artifact's.
    """
    folder = artifact.path.parent
    try:
        record = json.loads(content(artifact, artifact.path))
        check_integers(record)
        index = from_record(Index, record)
        _check_names(index, artifact)
        compiled, rest = (
            _artifact(artifact, folder, half) for half in (index.compiled, index.rest)
        )
    except (OSError, ValueError, TypeError, RecursionError, IntegrityError) as error:
        raise CandidateError(f"{artifact.path.name} is damaged: {error}") from error
    return Parts(index, replace(compiled, custom_ops=()), rest)


def _check_names(index: Index, whole: Artifact) -> None:
    """Check that each part reads what the caller or the other part gives."""
    halves = [index.compiled, index.rest]
    first, second = halves if index.compiled_first else halves[::-1]
    given = {spec.name for spec in whole.inputs}
    reads, reads_then = ({spec.name for spec in half.inputs} for half in (first, second))
    made, made_then = ({spec.name for spec in half.outputs} for half in (first, second))
    wanted = {spec.name for spec in whole.outputs}
    whole_fits = reads <= given and reads_then <= given | made and wanted <= made | made_then
    if not (whole_fits and index.compiled.inputs):
        raise ValueError("its parts don't fit each other")


def _artifact(whole: Artifact, folder: Path, half: Half) -> Artifact:
    path, *files = (folder / name for name in half.files)
    if not {path, *files} <= set(whole.files):
        raise ValueError("it lists other files")
    return replace(
        whole,
        path=path,
        files=tuple(files),
        inputs=half.inputs,
        outputs=half.outputs,
        request=half.request,
    )
