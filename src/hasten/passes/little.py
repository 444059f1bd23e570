"""Another, smaller model of the same task, put in the original's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hasten.data.dataset import Dataset
from hasten.errors import InputError
from hasten.model import Model
from hasten.passes.base import Pass
from hasten.target import Target
from hasten.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Little(Pass):
    """Answer by a smaller model that a person has beside the original: alone, or in a cascade.

    What comes out is judged by the original's answers, as what any other pass makes.

    Attributes:
        path: Its ONNX file.
        files: What belongs to it, in the same folder.
        sha256: Of all of them.
    """

    path: Path = field(metadata={"in label": False})
    files: tuple[Path, ...] = field(metadata={"in label": False})
    sha256: str = field(metadata={"in label": False})

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield nothing: a person says which model."""
        yield from ()

    @classmethod
    def of(cls, model: Model, original: Model) -> Self:
        """Check that a model can stand in the original's place.

        Args:
            model: It takes and gives as many tensors in the same order, of the same types and
                sizes; what they are called may differ.
            original: With `request` settled.

        Raises:
            InputError: it takes or gives something else.
        """
        takes = replace(original, inputs=original.request)
        for what, own, other in (
            ("takes", model.inputs, takes.inputs),
            ("gives", model.outputs, original.outputs),
        ):
            if len(own) != len(other) or not all(map(_fits, own, other)):
                raise InputError(
                    f"the little model {what} {_listed(own)}; the original {what} {_listed(other)}"
                )
        return cls(model.path, model.files, model.sha256)

    def source(self, original: Model) -> Model:
        """Return it as a model of its own, with what the original takes and gives."""
        return replace(original, path=self.path, files=self.files)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        # Here, so that to know of this pass doesn't take onnx.
        from hasten.passes.onnx_files import read_onnx, write_onnx

        proto = read_onnx(self.source(model))
        _rename(proto, model)
        return write_onnx(proto, self.source(model), workdir / "little.onnx")


def _fits(own: TensorSpec, other: TensorSpec) -> bool:
    """Whether two tensors are of one type, and of one size where both say it."""
    return own.dtype == other.dtype and (
        any(size == "..." for size in (*own.shape, *other.shape))
        or (
            len(own.shape) == len(other.shape)
            and all(
                a == b
                for a, b in zip(own.shape, other.shape, strict=True)
                if isinstance(a, int) and isinstance(b, int)
            )
        )
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))


def _rename(proto: onnx.ModelProto, original: Model) -> None:
    """Call what it takes and gives as the original does."""
    from onnx.helper import make_node

    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    before, behind = [], []
    for value, spec in zip(inputs, original.inputs, strict=True):
        if value.name != spec.name:
            before.append(make_node("Identity", [spec.name], [value.name]))
            value.name = spec.name
    for value, spec in zip(graph.output, original.outputs, strict=True):
        if value.name != spec.name:
            behind.append(make_node("Identity", [value.name], [spec.name]))
            value.name = spec.name
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
