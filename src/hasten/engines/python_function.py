"""Engine for a Python function: the user's present deployment, as a baseline for comparison."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.objects import load_object
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Artifact, Session
from hasten.engines.failures import failed
from hasten.engines.only_timed import OnlyTimed


@dataclass(frozen=True)
class PythonFunction(OnlyTimed):
    """Call `function(*inputs)`, with the inputs as arrays in the model's order.

    Attributes:
        function: Import path of the function, "file.py:name" or "module:name".
    """

    function: str

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino", "tflite"})

    @classmethod
    def version(cls) -> str:
        return platform.python_version()

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return Artifact(model.path, model.inputs, model.outputs, model.request, model.files)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the function, limited to as many processors as an engine would have threads."""
        allowed = os.sched_getaffinity(0)
        cpus = target.cpus[: target.threads]
        os.sched_setaffinity(0, cpus)
        try:
            function = load_object(self.function)
            yield _FunctionSession(function, artifact.inputs, artifact.outputs, cpus)
        finally:
            _bind(allowed)

    def words(self) -> str:
        return f"Python function {self.function}"


def _bind(cpus: Iterable[int]) -> None:
    """Restrict every thread of this process to these processors.

    A runtime may have bound its own threads elsewhere: ONNX Runtime's defaults bind one to each
    core of the machine, whatever processors the process was given.
    """
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(int(thread.name), cpus)


class _FunctionSession(Session):
    batch_sizes = None

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        cpus: tuple[int, ...],
    ) -> None:
        self.inputs, self.outputs, self._cpus = inputs, outputs, cpus
        self._function = function
        self._calls = 0

    def run(self, inputs: Tensors) -> dict[str, Array]:
        try:
            result = self._function(*(inputs[spec.name] for spec in self.inputs))
        except Exception as error:
            raise failed(f"the function raised {type(error).__name__}", error) from error
        self._calls += 1
        if self._calls & (self._calls - 1) == 0:  # at powers of 2: any call may start threads
            _bind(self._cpus)
        if isinstance(result, dict):
            return {name: np.asarray(array) for name, array in result.items()}
        several = result if isinstance(result, (tuple, list)) else (result,)
        names = (spec.name for spec in self.outputs)
        return {name: np.asarray(array) for name, array in zip(names, several, strict=False)}
