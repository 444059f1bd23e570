"""Engine for ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from hasten.core.cache_folder import Entry, bulk_name
from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import counted, listed
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import operators, private
from hasten.engines.compile_cache import CompileCache
from hasten.engines.failures import failed, failed_request
from hasten.engines.missing_numbers import ROUNDED, check_nan
from hasten.engines.onnxruntime.divisions import guard_divisions
from hasten.engines.onnxruntime.files import own_files
from hasten.engines.onnxruntime.installation import load
from hasten.errors import BeyondRange, CandidateError, HastenError

if TYPE_CHECKING:
    from hasten.engines.layers import LayerTime

_LOG_FATAL_ONLY = 4  # what the runtime logs as an error is in the exception that it raises
_QUANTIZES_AT_LOAD = "WeightBiasQuantization"
"""Optimizer that rounds weights between quantized layers which were left in float on purpose."""
_LARGEST_KEPT_BYTES = 1 << 30
"""Largest model whose optimized graph is kept: a copy of a larger one takes too long."""
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL = ("DynamicQuantizeLSTM", "Einsum", "GRU", "LSTM")
"""Operators that end the process, in ONNX Runtime 1.32, for some empty inputs: as a batch, or without steps."""
_OF_TYPE = 0x22
"""Byte before the length and the type of a node's operator in an ONNX file: field 4 of NodeProto, a string."""
_SPINNING = "session.intra_op.allow_spinning"
_STOPS_SPINNING = "session.force_spinning_stop"


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
        from hasten.engines.onnxruntime.settled import OnnxRuntimeSettled

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
        options.add_session_config_entry(_SPINNING, str(int(self.spinning)))
        options.add_session_config_entry(_STOPS_SPINNING, str(int(not self.lingering)))
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
        with contextlib.ExitStack() as open_files:
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


def _save(options: Any, graph: Path, weights: Path) -> None:
    """Let the runtime write the optimized graph, with the weights beside it, to be read in place.

    Its own format ("ORT") isn't faster here: the runtime then copies the weights several times.
    """
    options.optimized_model_filepath = str(graph)
    options.add_session_config_entry(_SAVED_WEIGHTS, weights.name)


class OnnxRuntimeSession(Session):
    """Session of one `InferenceSession`; inputs are read in place, and outputs are new arrays.

    Args:
        artifact: Artifact that was opened.
        session: The runtime's session.
        optimization: Level by which the runtime optimized the graph, now or when it was kept.
    """

    def __init__(self, artifact: Artifact, session: Any, optimization: str) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._names = [spec.name for spec in artifact.outputs]
        self._session = session
        self._optimization = optimization
        self._artifact = artifact
        self._fatal: bool | None = None
        rounded = ROUNDED in session.get_modelmeta().custom_metadata_map
        self._no_nan = tuple(s.name for s in self.inputs if rounded and s.dtype.startswith("float"))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            BeyondRange: an input is empty, and the model may have an operator that would end the process then; or it
                has NaN, and the model rounds.
            CandidateError: the runtime failed.
        """
        for name, array in inputs.items():
            if not array.size:
                self._check_empty(name, array)
        for name in self._no_nan:
            if name in inputs:
                check_nan("In int8, ONNX Runtime", name, inputs[name])
        try:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except Exception as error:
            if self._session is None:
                raise CandidateError("the session is closed: open the artifact again") from error
            raise failed_request("ONNX Runtime failed", error, inputs) from error

    def properties(self) -> Mapping[str, str]:
        """Settings that the runtime's session reports."""
        options = self._session.get_session_options()
        return {
            "providers": ", ".join(self._session.get_providers()),
            "threads": str(options.intra_op_num_threads),
            "spinning": str(options.get_session_config_entry(_SPINNING) == "1"),
            "lingering": str(options.get_session_config_entry(_STOPS_SPINNING) == "0"),
            "graph_optimization": self._optimization,
        }

    def _check_empty(self, name: str, array: Array) -> None:
        """Refuse an empty input if the model has an operator that may end the process, or can't be read any more."""
        if self._fatal is None:
            self._fatal = True
            with contextlib.suppress(HastenError, OSError), private(self._artifact) as copy:
                self._fatal = _has_fatal(copy.path)
        if self._fatal:
            raise BeyondRange(
                f"the input {name!r} has the shape {list(array.shape)}, and an empty Einsum, GRU or LSTM may end ONNX "
                "Runtime's process: give at least one number along each axis"
            )

    def close(self) -> None:
        """Free the runtime's session and its threads."""
        self._session = None


def _has_fatal(path: Path) -> bool:
    """Whether an ONNX file has such an operator. Three letters alone are also somewhere among many weights."""
    types = [bytes([_OF_TYPE, len(name)]) + name.encode() for name in _FATAL]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(one) >= 0 for one in types)
