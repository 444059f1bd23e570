"""An engine for perceptrons: a few matrix products by numpy, without a runtime's cost per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.failures import failed
from hasten.errors import NotCovered


@dataclass(frozen=True)
class NumpyEngine(Engine):
    """Run an ONNX graph of matrix products, sums and ReLUs as a list of numpy's calls.

    A graph with any other operator is left to onnx's own evaluator, which is exact and slow.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"host"})
    distributions: ClassVar[tuple[str, ...]] = ("hasten-numpy", "numpy", "onnx")
    float_only: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        """Always: numpy computes in the graph's own precision."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """There is one."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return the plug-in's own version."""
        return metadata.version("hasten-numpy")

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model as it is, and prove that it can be loaded.

        Raises:
            NotCovered: an operator isn't made for this engine, so the search skips it.
            CandidateError: the file is no model.
        """
        artifact = place(model, workdir)
        _load(artifact)
        return artifact

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the model.

        Raises:
            CandidateError: it can't be loaded.
        """
        yield NumpySession(artifact, _load(artifact))

    def words(self) -> str:
        return "numpy"


class NumpySession(Session):
    """A loaded graph. It runs in the calling thread."""

    def __init__(self, artifact: Artifact, answer: Callable[[Tensors], Sequence[Array]]) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._names = [spec.name for spec in artifact.outputs]
        self._answer = answer

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: an operator failed.
        """
        try:
            answers = self._answer(inputs)
        except Exception as error:
            raise failed("numpy failed", error) from error
        return dict(zip(self._names, answers, strict=True))

    def properties(self) -> Mapping[str, str]:
        """What runs the graph."""
        return {"runs": "numpy" if isinstance(self._answer, _Calls) else "onnx's evaluator"}


def _load(artifact: Artifact) -> Callable[[Tensors], Sequence[Array]]:
    """Return what answers a request with the outputs in their order.

    Raises:
        NotCovered: an operator has no implementation, or none with its attributes.
        CandidateError: the file is no model.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [spec.name for spec in artifact.outputs]
    try:
        proto = onnx.load(artifact.path)
        if all(node.op_type in _OPERATORS and not node.domain for node in proto.graph.node):
            return _Calls(proto.graph, names)
        evaluator = ReferenceEvaluator(proto)
    except NotCovered:
        raise
    except Exception as error:
        raise failed("numpy can't run the model", error, artifact.path) from error

    def evaluate(inputs: Tensors) -> list[Array]:
        # An operator that changes nothing hands its input on; the caller's own must not alias it.
        return [np.array(value) for value in evaluator.run(names, dict(inputs))]

    return evaluate


class _Calls:
    """A graph as a list of calls: each reads values by name and makes one."""

    def __init__(self, graph: Any, outputs: Sequence[str]) -> None:
        from onnx import helper, numpy_helper

        self._constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self._outputs = outputs
        self._calls = [
            (
                _OPERATORS[node.op_type](
                    {one.name: helper.get_attribute_value(one) for one in node.attribute}
                ),
                tuple(node.input),
                node.output[0],
            )
            for node in graph.node
        ]

    def __call__(self, inputs: Tensors) -> list[Array]:
        values = {**self._constants, **inputs}
        for call, names, made in self._calls:
            values[made] = call(*[values[name] for name in names])
        return [values[name] for name in self._outputs]


def _gemm(settings: Mapping[str, Any]) -> Callable[..., Array]:
    """Return alpha * A * B + beta * C, as the ONNX operator Gemm."""
    alpha, beta = settings.get("alpha", 1.0), settings.get("beta", 1.0)
    if (alpha, beta) != (1.0, 1.0) or settings.get("transA", 0):
        raise NotCovered("Gemm with alpha, beta or transA isn't taken")
    turned = settings.get("transB", 0)

    def call(a: Array, b: Array, c: Array | None = None) -> Array:
        product = a @ (b.T if turned else b)
        return product if c is None else product + c

    return call


_OPERATORS: Mapping[str, Callable[[Mapping[str, Any]], Callable[..., Array]]] = {
    "Gemm": _gemm,
    "MatMul": lambda settings: np.matmul,
    "Add": lambda settings: np.add,
    "Relu": lambda settings: lambda x: np.maximum(x, 0),
}
"""Operator -> its settings -> numpy's call."""
