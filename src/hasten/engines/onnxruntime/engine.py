"""Engines for ONNX Runtime on the CPU: as it is, and with one request's shapes settled beside open ones."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from hasten.core.cache_folder import Entry, bulk_name
from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Tensors, TensorSpec
from hasten.core.words import counted, listed
from hasten.engines.artifacts import place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import operators
from hasten.engines.compile_cache import CompileCache
from hasten.engines.failures import failed
from hasten.engines.onnxruntime.dimensions import named, requested_sizes
from hasten.engines.onnxruntime.divisions import guard_divisions
from hasten.engines.onnxruntime.files import own_files
from hasten.engines.onnxruntime.installation import load
from hasten.engines.onnxruntime.session import (
    SPINNING,
    STOPS_SPINNING,
    OnnxRuntimeSession,
    SettledSession,
)
from hasten.errors import CandidateError

if TYPE_CHECKING:
    from hasten.engines.layers import LayerTime

_LOG_FATAL_ONLY = 4  # what the runtime logs as an error is in the exception that it raises
_QUANTIZES_AT_LOAD = "WeightBiasQuantization"
"""Optimizer that rounds weights between quantized layers which were left in float on purpose."""
_LARGEST_KEPT_BYTES = 1 << 30
"""Largest model whose optimized graph is kept: a copy of a larger one takes too long."""
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class OnnxRuntime(Engine):
    """ONNX Runtime's CPU kernels, set up as `InferenceSession(path)` does, except for the threads.

    Attributes:
        threads: Number of threads that share an operator; None for all that the target has.
        spinning: Whether idle threads wait by spinning, which is faster but takes time from other
            threads and from a cgroup's quota.
        graph_optimization: Optimization of the graph at load: "all", or "disabled" to see the file
            as it is.
        lingering: Whether threads that spin go on for milliseconds after a request, to be there for the next.
            It depends on what a model is opened next to, so no record has it.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"host"})
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime-gpu")
    extra: ClassVar[str] = "onnxruntime"
    hurry: ClassVar[int] = 3
    reads_late: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    copied_into: ClassVar[tuple[str, ...] | None] = ()

    threads: int | None = None
    spinning: bool = True
    graph_optimization: Literal["all", "disabled"] = "all"
    lingering: bool = field(default=True, metadata={"in records": False})

    @property
    def exact(self) -> bool:
        """True: no setting here lowers the precision."""
        return True

    @property
    def keeps_compiled(self) -> bool:
        """Whether there is an optimized graph to keep."""
        return self.graph_optimization == "all"

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant: every setting computes the same."""
        yield cls()

    def beside(self) -> Self:
        """Return the engine with threads that sleep between requests."""
        return replace(self, lingering=False)

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine set to a number of threads."""
        return replace(self, threads=threads)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield a single thread, which is faster for small models; and, where a quota allows less
        than the processors at hand, threads that don't spend the quota on waiting."""
        if target.threads > 1 and self.threads is None:
            yield replace(self, threads=1)
            if target.threads < len(target.cpus) and self.spinning:
                yield replace(self, spinning=False)

    def settling(self) -> Engine | None:
        """Return the engine that has a second session, for one sample alone."""
        return OnnxRuntimeSettled(
            self.threads, self.spinning, self.graph_optimization, self.lingering
        )

    @classmethod
    def version(cls) -> str:
        """Return ONNX Runtime's version.

        Raises:
            InputError: it isn't installed, or not whole.
        """
        try:
            return str(load().__version__)
        except ImportError as error:
            raise cls.missing("ONNX Runtime", error) from error

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model, whose divisions are guarded, after checking that it can be loaded; see `guard_divisions`.

        Raises:
            CandidateError: the model can't be loaded; the message names the operator and node.
        """
        artifact = place(model, workdir)
        guard_divisions(artifact.path, [spec.name for spec in artifact.inputs])
        self._load(artifact, target)
        return artifact

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the model; leaving the context frees it and its threads.

        Raises:
            CandidateError: the model can't be loaded.
        """
        with self._session(artifact, self._load(artifact, target)) as session:
            yield session

    @contextmanager
    def open_at(
        self, artifact: Artifact, target: Target, request: tuple[TensorSpec, ...]
    ) -> Iterator[Session]:
        """Load the model with the sizes of one request in place of its named open dimensions.

        Raises:
            CandidateError: the model can't be loaded.
        """
        sizes = {
            name: size
            for spec, own in zip(artifact.inputs, request, strict=True)
            for name, size in zip(spec.shape, own.sizes, strict=True)
            if isinstance(name, str) and name != "?"
        }

        def settle(options: Any) -> None:
            for name, size in sizes.items():
                options.add_free_dimension_override_by_name(name, size)

        loaded = self._load(artifact, target, settle)
        settled = replace(artifact, inputs=request, request=request)
        with self._session(settled, loaded) as session:
            yield session

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Load the model as `open` does, and keep the optimized graph with its weights.

        The weights are read in place. What is kept is loaded without optimizing it once more, since
        a second pass could fuse further.

        Raises:
            CandidateError: the model can't be loaded.
        """
        plain = self.keeps_compiled and not artifact.custom_ops
        if plain and artifact.size_bytes <= _LARGEST_KEPT_BYTES:
            loaded = self._recall(artifact, target, compiled)
        else:
            loaded = self._load(artifact, target)
        with self._session(artifact, loaded) as session:
            yield session

    @contextmanager
    def _session(self, artifact: Artifact, loaded: Any) -> Iterator[Session]:
        level = "ORT_ENABLE_ALL" if self.graph_optimization == "all" else "ORT_DISABLE_ALL"
        session = OnnxRuntimeSession(artifact, loaded, level)
        try:
            yield session
        finally:
            session.close()

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Answer requests with the runtime's trace on; see `layers.profiled`."""
        from hasten.engines.onnxruntime.layers import observe, profiled

        with tempfile.TemporaryDirectory(prefix="hasten-profile-") as folder:
            session = self._load(artifact, target, lambda options: observe(options, Path(folder)))
            return profiled(session, artifact, requests, Path(folder))

    def _recall(self, artifact: Artifact, target: Target, compiled: CompileCache) -> Any:
        """Load the optimized graph from the cache, or optimize it as `_load` does and keep it."""
        key = cache_key(compiled, self, artifact, target, "optimized")
        with compiled.entry(key) as entry:
            if entry is not None:
                with contextlib.suppress(CandidateError):
                    return self._load(artifact, target, kept=entry)
        if entry is not None:
            compiled.drop(key)
        try:
            with tempfile.TemporaryDirectory(prefix="hasten-optimized-") as place:
                graph, weights = Path(place, "graph.onnx"), Path(place, bulk_name(key))
                loaded = self._load(
                    artifact, target, lambda options: _save(options, graph, weights)
                )
                compiled.put(key, graph.read_bytes(), weights if weights.exists() else None)
                return loaded
        except (CandidateError, OSError):  # it may have failed to write only
            return self._load(artifact, target)

    def _load(
        self,
        artifact: Artifact,
        target: Target,
        more: Callable[[Any], None] = lambda options: None,
        kept: Entry | None = None,
    ) -> Any:
        """Load the artifact, or what an earlier load of it saved.

        Args:
            more: Function that changes the options.
            kept: Optimized graph, and its weights, which are read in place; None to read the artifact.
        """
        ort = import_quietly("onnxruntime")

        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL_ONLY
        options.intra_op_num_threads = self.threads or target.threads
        options.add_session_config_entry(SPINNING, str(int(self.spinning)))
        options.add_session_config_entry(STOPS_SPINNING, str(int(not self.lingering)))
        if kept is not None and kept.bulk is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(kept.bulk.parent))
        if self.graph_optimization == "disabled" or kept is not None:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for library in operators(artifact, "RegisterCustomOps"):
            try:
                options.register_custom_ops_library(str(library))
            except Exception as error:
                raise failed(f"ONNX Runtime can't load {library.name}", error) from error
        more(options)
        with ExitStack() as open_files:
            model: bytes | Path = (
                kept.content if kept else open_files.enter_context(own_files(artifact, options))
            )
            try:
                return ort.InferenceSession(
                    model,
                    options,
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=[_QUANTIZES_AT_LOAD],
                )
            except Exception as error:
                raise failed("ONNX Runtime can't load the model", error, artifact.path) from error

    def words(self) -> str:
        return listed(
            "ONNX Runtime",
            counted(self.threads or 0, "thread"),
            "" if self.spinning else "idle threads asleep",
            "" if self.lingering else "threads asleep between requests",
            "unoptimized graph" if self.graph_optimization == "disabled" else "",
        )


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
            return super().build(named(model, Path(folder)), target, workdir)

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
            for name, size in requested_sizes(artifact).items():
                options.add_free_dimension_override_by_name(name, size)

        return super()._load(artifact, target, settle, kept)

    def words(self) -> str:
        return listed(super().words(), "fixed shapes for one sample")


def _save(options: Any, graph: Path, weights: Path) -> None:
    """Let the runtime write the optimized graph, with the weights beside it, to be read in place.

    Its own format ("ORT") isn't faster here: the runtime then copies the weights several times.
    """
    options.optimized_model_filepath = str(graph)
    options.add_session_config_entry(_SAVED_WEIGHTS, weights.name)
