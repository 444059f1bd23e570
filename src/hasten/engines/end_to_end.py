"""Engine for the whole way of a sample: from a file's bytes over another engine to a decision."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from hasten.core.model import Format, Model
from hasten.core.records import type_name
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.failures import failed
from hasten.engines.only_timed import OnlyTimed
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, as_request
from hasten.inputs.pipeline.resample import compile_now
from hasten.inputs.pipeline.strips import Scaling

REQUEST = (TensorSpec("file", "int64", (1,)),)
"""A request: the number of the file to answer."""
STAGES = "stages"
"""Property with the stages' latencies, as JSON: stage -> latencies in nanoseconds, one per request."""
MODEL = "model"
"""Stage in which the engine answers; those of the pipeline have the names of its steps."""
_MOST_KEPT = 20_000


@dataclass(frozen=True)
class EndToEnd(OnlyTimed):
    """Prepare a file's bytes, run another engine on them, and decide.

    Attributes:
        inner: Engine that runs the model.
        pipeline: Steps before and after the model; None where a function does all by itself.
        files: Files to answer; a request names one by its number.
        inputs: Inputs of the model.
        request: Inputs of one request of the model, without open dimensions.
    """

    inner: Engine
    pipeline: Pipeline | None
    files: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    request: tuple[TensorSpec, ...]

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino", "tflite"})

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return asked_by_file(self.inner.build(model, target, workdir))

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Read the files into memory, and open the model."""
        own = replace(artifact, inputs=self.inputs, request=self.request)
        contents = [file.read_bytes() for file in self.files]
        steps = () if self.pipeline is None else self.pipeline.steps
        if any(isinstance(step, Scaling) for step in steps):
            compile_now()  # not while requests are timed
        with self.inner.open(own, target) as session:
            yield _WholeSession(session, self.pipeline, self.files, contents)

    def words(self) -> str:
        return f"{self.inner.words()}, from bytes to decision"


def asked_by_file(artifact: Artifact) -> Artifact:
    """Return an artifact whose requests name a file by its number."""
    return replace(artifact, inputs=REQUEST, request=REQUEST)


class _WholeSession(Session):
    batch_sizes = (1,)

    def __init__(
        self,
        session: Session,
        pipeline: Pipeline | None,
        files: tuple[Path, ...],
        contents: list[bytes],
    ) -> None:
        self._session, self._pipeline = session, pipeline
        self._files, self._contents = files, contents
        self._model_inputs = session.inputs
        self.inputs, self.outputs = REQUEST, session.outputs
        self._latencies_ns: dict[str, deque[int]] = {}
        before = [] if pipeline is None else [step.name for step in pipeline.joined]
        after = [] if pipeline is None else [type_name(step) for step in pipeline.after]
        self._names = _names([*before, *after])

    def run(self, inputs: Tensors) -> dict[str, Array]:
        number = int(inputs["file"][0])
        content = self._contents[number]
        if self._pipeline is None:
            self._session.run({"raw": content})  # type: ignore[dict-item]
            return {}
        try:
            self._answer(content, self._pipeline)
        except InputError as error:
            raise failed(f"{self._files[number]} can't be answered", error) from error
        return {}

    def _answer(self, content: bytes, pipeline: Pipeline) -> Any:
        value: Any = content
        origin = pipeline.source
        began_ns = time.perf_counter_ns()
        before = len(pipeline.joined)
        for name, step in zip(self._names, pipeline.joined, strict=False):
            value, origin = step.traced(value, origin)
            began_ns = self._note(name, began_ns)
        outputs = self._session.run(as_request(value, self._model_inputs))
        began_ns = self._note(MODEL, began_ns)
        value = {name: array[0] for name, array in outputs.items()}
        for name, post in zip(self._names[before:], pipeline.after, strict=True):
            value = post(value, origin)
            began_ns = self._note(name, began_ns)
        return value

    def _note(self, stage: str, began_ns: int) -> int:
        now_ns = time.perf_counter_ns()
        kept = self._latencies_ns.setdefault(stage, deque(maxlen=_MOST_KEPT))
        kept.append(now_ns - began_ns)
        return now_ns

    def properties(self) -> Mapping[str, str]:
        kept = {stage: list(spans) for stage, spans in self._latencies_ns.items()}
        return {**self._session.properties(), STAGES: json.dumps(kept)}

    def settle(self, again: Callable[[], object]) -> None:
        self._session.settle(again)

    def device_times(self) -> Mapping[str, str]:
        return self._session.device_times()


def _names(names: list[str]) -> list[str]:
    """Number the names that occur more than once."""
    return [
        f"{name} {names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
