"""Small models that carry a state from step to step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models.onnx import load

WIDE, HIDDEN, CLASSES = 12, 16, 4


def gru(folder: Path, *, name: str = "gru.onnx", batch: int | str = "batch") -> Path:
    """Write a step of a GRU: x (batch, 12) and h (batch, 16) give scores (batch, 4) and h_out."""
    rng = np.random.default_rng(3)

    def weights(label: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32), label
        )

    def tensor(label: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(label, TensorProto.FLOAT, [batch, width])

    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["x3"]),
        helper.make_node("Unsqueeze", ["h", "zero"], ["h3"]),
        helper.make_node("GRU", ["x3", "W", "R", "", "", "h3"], ["", "next3"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["next3", "zero"], ["h_out"]),
        helper.make_node("MatMul", ["h_out", "V"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gru",
        [tensor("x", WIDE), tensor("h", HIDDEN)],
        [tensor("scores", CLASSES), tensor("h_out", HIDDEN)],
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            weights("W", 1, 3 * HIDDEN, WIDE),
            weights("R", 1, 3 * HIDDEN, HIDDEN),
            weights("V", HIDDEN, CLASSES),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / name
    onnx.save(model, str(path))
    return path


def sequences(count: int = 60, steps: int = 7, seed: int = 0) -> Array:
    """Return sequences (count, steps, 12)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, steps, WIDE)).astype(np.float32)


def unrolled(
    path: Path, steps: Array, start: Array | None = None, engine: Engine | None = None
) -> tuple[Array, Array]:
    """Run a GRU's steps (steps, 12) in a loop: scores (steps, 4), and the state.

    Args:
        path: The model, whose only open dimension is the batch.
        steps: Input of each step.
        start: State to begin with; zeros by default.
        engine: Engine that answers the steps; ONNX Runtime by itself by default.
    """
    state = np.zeros((1, HIDDEN), np.float32) if start is None else start
    found = []
    with _step_of(path, engine) as step:
        for x in steps:
            answer = step({"x": x[np.newaxis], "h": state})
            state = answer["h_out"]
            found.append(answer["scores"][0])
    return np.stack(found), state


@contextmanager
def _step_of(path: Path, engine: Engine | None) -> Iterator[Callable[[Tensors], Tensors]]:
    """Open a model by an engine's own session, or by ONNX Runtime itself."""
    if engine is None:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        yield lambda given: dict(zip(names, session.run(names, given), strict=True))
        return
    model, target = load(path), Target.host()
    sample = {
        one.name: np.zeros([int(n) for n in one.shape[1:]], one.dtype) for one in model.inputs
    }
    with tempfile.TemporaryDirectory() as folder:
        artifact = engine.build(model.settled_by(sample), target, Path(folder))
        with engine.open(artifact, target) as opened:
            yield opened.run


@dataclass(frozen=True)
class Leaky(Engine):
    """ONNX Runtime, but a state loses a share in each step: a small error that adds up.

    Attributes:
        keep: Share of the state h_out that stays.
    """

    keep: float = 0.9
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})

    @property
    def exact(self) -> bool:
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        yield cls()

    @classmethod
    def version(cls) -> str:
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return OnnxRuntime().build(model, target, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with OnnxRuntime().open(artifact, target) as session:
            yield _LeakySession(session, self.keep)

    def words(self) -> str:
        return f"leaky, {self.keep:g} of the state stays"


class _LeakySession(Session):
    def __init__(self, inner: Session, keep: float) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner, self._keep = inner, np.float32(keep)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        answer = self._inner.run(inputs)
        return {**answer, "h_out": answer["h_out"] * self._keep}
