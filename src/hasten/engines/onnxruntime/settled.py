"""Engine for ONNX Runtime with one request's shapes settled, and open ones for every other request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from hasten.core.cache_folder import Entry
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import listed
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.failures import failed
from hasten.engines.onnxruntime.engine import OnnxRuntime

_BATCH = "hasten.batch"
"""Name of a batch axis that has none."""


@dataclass(frozen=True)
class OnnxRuntimeSettled(OnnxRuntime):
    """ONNX Runtime with two sessions of one file: settled for the certified request, open for others.

    A session that knows all shapes plans its memory ahead and drops the nodes that compute them. The open
    one is made when the first request of another shape comes, so who asks one by one has one session, and
    who asks in batches isn't kept from it.
    """

    families: ClassVar[frozenset[str]] = (
        frozenset()
    )  # the search proposes it where a model has open shapes
    settles: ClassVar[bool] = True

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model, with a name for each open dimension, by which it can be settled.

        Raises:
            CandidateError: the model can't be loaded.
        """
        with tempfile.TemporaryDirectory(prefix="hasten-named-") as folder:
            return super().build(_named(model, Path(folder)), target, workdir)

    def settling(self) -> None:
        """Return None: it is that engine."""
        return

    @property
    def plain(self) -> OnnxRuntime:
        """The engine with the same settings and open shapes."""
        return OnnxRuntime(self.threads, self.spinning, self.graph_optimization, self.lingering)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the model for the certified request; other shapes are loaded when they are asked.

        Raises:
            CandidateError: the model can't be loaded.
        """
        with super().open(artifact, target) as settled, ExitStack() as others:

            def other() -> Session:
                return others.enter_context(self.plain.open(artifact, target))

            yield SettledSession(artifact, settled, other)

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Load the model as `open` does, through the cache, in which the two sessions have an entry each.

        Raises:
            CandidateError: the model can't be loaded.
        """
        with super().open_cached(artifact, target, compiled) as settled, ExitStack() as others:

            def other() -> Session:
                return others.enter_context(self.plain.open_cached(artifact, target, compiled))

            yield SettledSession(artifact, settled, other)

    def _load(
        self,
        artifact: Artifact,
        target: Target,
        more: Callable[[Any], None] = lambda options: None,
        kept: Entry | None = None,
    ) -> Any:
        """Load the artifact, or what an earlier load of it saved, for the certified request alone."""

        def settle(options: Any) -> None:
            more(options)
            for name, size in _sizes(artifact).items():
                options.add_free_dimension_override_by_name(name, size)

        return super()._load(artifact, target, settle, kept)

    def words(self) -> str:
        return listed(super().words(), "fixed shapes for one sample")


class SettledSession(Session):
    """The session for the certified request's shapes, and one for all others.

    Args:
        artifact: Artifact that was opened.
        settled: Session that takes the certified request's shapes alone.
        open_other: Function that opens the session for other shapes.
    """

    def __init__(
        self, artifact: Artifact, settled: Session, open_other: Callable[[], Session]
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._sizes = [(spec.name, spec.sizes) for spec in artifact.request]
        self._settled, self._open_other = settled, open_other
        self._other: Session | None = None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed.
        """
        if all(inputs[name].shape == sizes for name, sizes in self._sizes):
            return self._settled.run(inputs)
        if self._other is None:
            self._other = self._open_other()
        return self._other.run(inputs)

    def properties(self) -> Mapping[str, str]:
        """Settings that the runtime's session reports."""
        return {**self._settled.properties(), "shapes": "fixed for one sample, open for batches"}


def _sizes(artifact: Artifact) -> dict[str, int]:
    """Return the size of each open dimension of the certified request, by its name."""
    requested = {spec.name: spec.sizes for spec in artifact.request}
    return {
        name: size
        for spec in artifact.inputs
        if spec.name in requested
        for name, size in zip(spec.shape, requested[spec.name], strict=True)
        if isinstance(name, str)
    }


def _named(model: Model, folder: Path) -> Model:
    """Return the model with a name for each open dimension of an input that stands for one size.

    A dimension without a name, or with one that stands for another size too, can't be settled by it.
    """
    requested = {spec.name: spec.sizes for spec in model.request}
    named, meant = list[TensorSpec](), dict[str, int]()
    for spec in model.inputs if requested else ():
        shape = list[int | str]()
        for axis, (dim, size) in enumerate(zip(spec.shape, requested[spec.name], strict=True)):
            if isinstance(dim, str) and (dim == "?" or meant.setdefault(dim, size) != size):
                # First axes of one size are the batch, and have one name.
                dim = _BATCH if axis == 0 and size == 1 else f"{spec.name}.{axis}"
            shape.append(dim)
        named.append(replace(spec, shape=tuple(shape)))
    if not named or tuple(named) == model.inputs:
        return model
    return _renamed(model, tuple(named), folder)


def _renamed(model: Model, inputs: tuple[TensorSpec, ...], folder: Path) -> Model:
    """Write a model whose inputs' open dimensions have these names.

    Raises:
        CandidateError: the file can't be read or written.
    """
    import onnx

    placed = place(model, folder)
    try:
        proto = onnx.load(str(placed.path), load_external_data=False)
        wanted = {spec.name: spec.shape for spec in inputs}
        for value in proto.graph.input:
            dims = value.type.tensor_type.shape.dim
            for dim, name in zip(dims, wanted.get(value.name, ()), strict=False):
                if isinstance(name, str):
                    dim.dim_param = name
        del proto.graph.value_info[:]  # they may state other names
        placed.path.write_bytes(proto.SerializeToString())
    except Exception as error:
        raise failed("the open dimensions can't be named", error) from error
    return replace(model, path=placed.path, files=placed.files, inputs=inputs)
