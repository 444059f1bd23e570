"""Replace the original by another, smaller model for the same task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hasten.core.lookups import Lookup
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.models.embedding import lookups_of
from hasten.passes.base import Pass

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Student:
    """Smaller model that a caller hands in to be tried.

    Attributes:
        name: Name of the model for people.
        model: Path of an ONNX file, or anything else that a model can be read from.
        quantized: Whether the model is already in int8, by explicit QDQ.
        trained: Description of the training for people.
    """

    name: str
    model: Any
    quantized: bool = False
    trained: str = ""


@dataclass(frozen=True)
class SmallModel(Pass):
    """Answer with a smaller model that a person hands in: alone, or in a cascade with the original.

    The result is compared with the original's answers, like that of any other pass.

    Attributes:
        path: ONNX file of the smaller model.
        files: Further files of the smaller model, in the same folder.
        sha256: SHA-256 of all these files.
        name: Name that tells several smaller models apart.
        quantized: Whether the smaller model is already in int8, by explicit QDQ.
    """

    path: Path = field(metadata={"in label": False})
    files: tuple[Path, ...] = field(metadata={"in label": False})
    sha256: str = field(metadata={"in label": False})
    name: str = ""
    quantized: bool = False

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield nothing, since a person hands in the model."""
        yield from ()

    @classmethod
    def of(cls, model: Model, original: Model, name: str = "", *, quantized: bool = False) -> Self:
        """Return the pass for a smaller model, after checking that it can replace the original.

        Args:
            model: Smaller model, with the original's number of inputs and outputs, of equal types
                and sizes, under the same names or else in the same order.
            original: Original model with its `request` settled.
            name: Name that tells several smaller models apart.
            quantized: Whether the smaller model is already in int8.

        Raises:
            InputError: the inputs or outputs differ from the original's.
        """
        for what, own, other in (
            ("takes", model.inputs, original.request),
            ("returns", model.outputs, original.outputs),
        ):
            paired = _paired([spec.name for spec in own], [spec.name for spec in other])
            by_name = {spec.name: spec for spec in own}
            if len(own) != len(other) or not all(
                _fits(by_name[paired[spec.name]], spec) for spec in other
            ):
                which = f"the small model {name}".rstrip()
                raise InputError(
                    f"{which} {what} {_listed(own)}; the original {what} {_listed(other)}"
                )
        return cls(model.path, model.files, model.sha256, name, quantized)

    def source(self, original: Model) -> Model:
        """Return the smaller model's own file as a model, whose tensors keep their own names."""
        return replace(original, path=self.path, files=self.files)

    def lookups(self, original: Model) -> tuple[Lookup, ...]:
        """Return the tables that the smaller model looks the original's inputs up in; see `lookups_of`."""
        from hasten.passes.onnx_files import read_onnx

        renamed, inputs, _ = _renamed(read_onnx(self.source(original), weights=False), original)
        return lookups_of(renamed, inputs)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        # Imported here, so that importing this module doesn't need onnx.
        from hasten.passes.onnx_files import read_onnx, write_onnx

        renamed, inputs, outputs = _renamed(read_onnx(self.source(model)), model)
        written = write_onnx(renamed, self.source(model), workdir / "small.onnx")
        return replace(written, inputs=inputs, outputs=outputs)

    def words(self) -> str:
        form = " (int8)" if self.quantized else ""
        return f"small model {self.name}".rstrip() + form


def _paired(own: Sequence[str], other: Sequence[str]) -> dict[str, str]:
    """Return the smaller model's name for each of the original's names."""
    if set(own) == set(other):
        return {name: name for name in other}
    return dict(zip(other, own, strict=False))


def _fits(own: TensorSpec, other: TensorSpec) -> bool:
    """Return whether two tensors have equal types, and equal sizes where both are known."""
    unknown = any(size == "..." for size in (*own.shape, *other.shape))
    same = len(own.shape) == len(other.shape) and all(
        isinstance(a, str) or isinstance(b, str) or a == b
        for a, b in zip(own.shape, other.shape, strict=True)
    )
    return own.dtype == other.dtype and (unknown or same)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))


def _renamed(
    proto: onnx.ModelProto, original: Model
) -> tuple[onnx.ModelProto, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Rename inputs and outputs like the original's; rename all else to what the original lacks.

    Returns:
        Graph, inputs and outputs, in the original's order; sizes that the graph has settled stay.
    """
    from onnx import compose, helper

    prefixed = compose.add_prefix(proto, "small/")
    graph = prefixed.graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes, specs = list(graph.node), []
    for values, wanted, given in (
        ([v for v in graph.input if v.name not in constants], original.inputs, True),
        (list(graph.output), original.outputs, False),
    ):
        by_name = {value.name.removeprefix("small/"): value for value in values}
        paired = _paired(list(by_name), [spec.name for spec in wanted])
        found = []
        for spec in wanted:
            value = by_name[paired[spec.name]]
            ends = [spec.name], [value.name]
            link = helper.make_node("Identity", *(ends if given else reversed(ends)))
            nodes.insert(0 if given else len(nodes), link)
            value.name = spec.name
            dims = value.type.tensor_type.shape.dim
            if len(dims) == len(spec.shape):
                sizes = zip(dims, spec.shape, strict=True)
                settled = (d.dim_value if d.HasField("dim_value") else size for d, size in sizes)
                spec = replace(spec, shape=tuple(settled))
            found.append(spec)
        specs.append(tuple(found))
    del graph.node[:]
    graph.node.extend(nodes)
    return prefixed, specs[0], specs[1]


def small_model_of(passes: Sequence[Pass]) -> SmallModel | None:
    """Return the small model among passes; None if there is none."""
    return next((step for step in passes if isinstance(step, SmallModel)), None)
