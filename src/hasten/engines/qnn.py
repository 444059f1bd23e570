"""Engine for Qualcomm's HTP by QNN: on a Snapdragon itself, elsewhere by QNN's x86 simulator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import batch_sizes, place, settle, settled_request
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.estimates import Estimate
from hasten.engines.failures import failed
from hasten.errors import CandidateError

DEFAULT_PART = "sm8550"
_PROVIDER = "QNNExecutionProvider"
_SILENT = 4
_REFUSED = "fallback to CPU EP has been explicitly disabled"
"""Part of ONNX Runtime's message when a provider leaves nodes to the CPU, which it doesn't name."""


@dataclass(frozen=True)
class Qnn(Engine):
    """ONNX Runtime's QNN execution provider with its HTP backend, leaving nothing to the CPU.

    `build` compiles a context binary for one chip, whose HTP generation affects the answers.
    Everything that isn't quantized runs in float16. The model stays beside the binary, for other
    chips and later compilers.

    The simulator doesn't count as faithful: nothing that comes with it promises the device's
    answers bit for bit, and ONNX Runtime's own tests know operators that differ.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"qnn"})
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime-qnn", "onnxruntime")
    extra: ClassVar[str] = "edge"
    settles: ClassVar[bool] = True
    faithful: ClassVar[bool] = False

    @property
    def exact(self) -> bool:
        """False: float32 runs in float16."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return the version of the execution provider, which brings QNN.

        Raises:
            InputError: it isn't installed.
        """
        try:
            import_quietly("onnxruntime")
            return str(import_quietly("onnxruntime_qnn").__version__)
        except ImportError as error:
            raise cls.missing("QNN", error) from error

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Compile the model for the shapes of its request, and check that the HTP takes all of it.

        Raises:
            CandidateError: the model can't be compiled (the message names the operator and node),
                or a shape is open.
        """
        artifact = place(model, workdir)
        settled = settled_request(model, "the HTP")
        settle(artifact.path, settled, "QNN can't load the model")
        compiled = workdir / f"{model.path.stem}_htp.onnx"
        session = self._load(
            artifact.path,
            target,
            {
                "ep.context_enable": "1",
                "ep.context_file_path": str(compiled),
                "ep.context_embed_mode": "0",
            },
        )
        sizes = {output.name: tuple(output.shape) for output in session.get_outputs()}
        binaries = sorted(workdir.glob(f"{compiled.stem}*.bin"))
        if not binaries:
            raise CandidateError("QNN compiled nothing for the HTP: the model has no node for it")
        return replace(
            artifact,
            path=compiled,
            files=(*binaries, artifact.path, *artifact.files),
            inputs=settled,
            outputs=tuple(replace(spec, shape=sizes[spec.name]) for spec in model.outputs),
        )

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the context binary; leaving the context frees it.

        Raises:
            CandidateError: the binary can't be loaded, or the device isn't there.
        """
        with private(artifact) as copy:
            session = QnnSession(artifact, self._load(copy.path, target), _runs_on(target))
        try:
            yield session
        finally:
            session.close()

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the size of the binary that the HTP's compiler made; its time stays unknown.

        The provider's profiler also reports cycles for the simulator, but those are the host's.
        """
        size_bytes = sum(f.stat().st_size for f in artifact.files if f.suffix == ".bin")
        return Estimate("compiler estimate", figures={"context_binary_size_bytes": size_bytes})

    def _load(self, path: Path, target: Target, entries: Mapping[str, str] | None = None) -> Any:
        """Open a model on the HTP alone, or compile it if `entries` say so."""
        options = _options(target, entries or {})
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        ort = import_quietly("onnxruntime")
        try:
            with _quiet():
                return ort.InferenceSession(path, options)
        except Exception as error:
            if _REFUSED in str(error):
                raise CandidateError(_left_over(path, target)) from error
            raise failed("QNN can't load the model", error, path) from error

    def words(self) -> str:
        return "f16, QNN"


def _options(target: Target, entries: Mapping[str, str]) -> Any:
    """Return a session's options for the HTP of a target."""
    ort, qnn = import_quietly("onnxruntime"), import_quietly("onnxruntime_qnn")

    def devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]

    try:
        if not devices():
            with _quiet():
                ort.register_execution_provider_library(_PROVIDER, qnn.get_library_path())
        found = devices()
    except Exception as error:
        raise failed("ONNX Runtime can't load QNN's provider", error) from error
    settings = {
        "backend_path": qnn.get_qnn_htp_path(),
        "htp_performance_mode": "burst",
        "htp_graph_finalization_optimization_mode": "3",
    }
    if target.kind == "attached":
        found = [d for d in found if d.device.type == ort.OrtHardwareDeviceType.NPU]
    else:
        # Always set: without it, float32 models fail to compile, or are compiled for the chip of
        # the process's previous session. The provider ignores names that it doesn't know.
        settings["soc_model"] = (target.part or DEFAULT_PART).upper()
    if not found:
        raise CandidateError(f"QNN's provider finds no HTP on this host ({target.system})")
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(found[:1], settings)
    return options


def _left_over(path: Path, target: Target) -> str:
    """Return the message about the nodes that the HTP doesn't take."""
    ort = import_quietly("onnxruntime")
    options = _options(target, {"session.record_ep_graph_assignment_info": "1"})
    try:
        with _quiet():
            parts = ort.InferenceSession(path, options).get_provider_graph_assignment_info()
    except Exception:  # the names only add to a message
        return "the HTP can't take all of the model"
    left = [node for part in parts if part.ep_name != _PROVIDER for node in part.get_nodes()]
    if not left:
        return "the HTP can't take all of the model"
    more = f", and {len(left) - 1} more nodes" if len(left) > 1 else ""
    return f"the HTP can't take the operator {left[0].op_type} (node {left[0].name!r}{more})"


def _runs_on(target: Target) -> str:
    if target.kind == "attached":
        return "HTP"
    return f"QNN's simulator of the HTP of {target.part or DEFAULT_PART}"


_output = threading.RLock()
"""Lock on standard output, which is the process's: a second block would restore the first's."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard what QNN's libraries print when they are loaded; no setting stops it."""
    with _output, contextlib.ExitStack() as stack:
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # the process has no standard output
            sys.stdout.flush()
            kept = os.dup(1)
            stack.callback(os.close, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, 1)
            stack.callback(os.dup2, kept, 1)
            stack.callback(ctypes.CDLL(None).fflush, None)
        yield


class QnnSession(Session):
    """Session of one `InferenceSession` all of whose nodes run on the HTP."""

    def __init__(self, artifact: Artifact, session: Any, runs_on: str) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._names = [spec.name for spec in artifact.outputs]
        self._runs_on = runs_on
        self._session = session

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed.
        """
        try:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except Exception as error:
            if self._session is None:
                raise CandidateError("the session is closed: open the artifact again") from error
            raise failed("QNN failed", error) from error

    def properties(self) -> Mapping[str, str]:
        """Name of the hardware or simulator that runs the model."""
        return {"runs_on": self._runs_on}

    def close(self) -> None:
        """Free the runtime's session."""
        self._session = None
