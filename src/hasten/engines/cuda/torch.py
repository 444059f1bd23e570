"""Engine for torch on an NVIDIA GPU: an exported program, compiled or as one CUDA graph."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Tensors, TensorSpec
from hasten.core.torch_programs import keep, load
from hasten.core.words import amount, listed
from hasten.engines.artifacts import answer_once
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import private
from hasten.engines.compile_cache import CompileCache
from hasten.engines.cuda.capability import check_gpu
from hasten.engines.cuda.facts import device_facts
from hasten.engines.cuda.kept import KeptPrograms, check_own_folder
from hasten.engines.cuda.own_thread import in_own_thread
from hasten.engines.cuda.pins import check_pins, pin, pins_for
from hasten.engines.cuda.runtime import Cuda, Device, Host, array_at, capturing
from hasten.engines.cuda.session import COPIED_INTO, DeviceSession, Execution
from hasten.engines.cuda.tf32 import precise
from hasten.engines.failures import failed
from hasten.errors import CandidateError, InputError

_WARMUPS = 3
"""Number of runs before a capture: the first ones choose kernels and allocate memory."""
_THREAD = "hasten: torch"

_TF32_ADVICE = "TensorFloat32 tensor cores for float32 matrix multiplication available"
"""Beginning of inductor's warnings that TF32 could be used, as a pattern."""
_HIDING = threading.Lock()
"""Lock that is held while that advice is hidden: filters of warnings are the process's, and of two sessions
that hide it at once the second one would leave the filter of the first one there for good. torch
compiles one program at a time anyway."""

Mode = Literal["reduce-overhead", "max-autotune", "graph", "eager"]


@dataclass(frozen=True)
class TorchCuda(Engine):
    """Exported program of a PyTorch model, on one request at a time.

    It takes only models that no pass changed, as passes change the ONNX file and not the program.
    Where the device isn't here, the program runs uncompiled on this host.

    Attributes:
        mode: Way of launching: torch.compile's "reduce-overhead" (its own kernels in CUDA graphs)
            or "max-autotune" (kernels chosen by timing them); the program's own kernels captured as
            one CUDA graph ("graph"); or one after another ("eager").
        precision: Precision of products: "f32"; "tf32", which rounds their operands to 10 bits; or
            "f16" or "bf16", by autocast.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"cuda"})
    distributions: ClassVar[tuple[str, ...]] = ("torch", "triton")
    extra: ClassVar[str] = "gpu"
    settles: ClassVar[bool] = True
    float_only: ClassVar[bool] = True
    needs_program: ClassVar[bool] = True
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = COPIED_INTO

    mode: Mode = "reduce-overhead"
    precision: Literal["f32", "tf32", "f16", "bf16"] = "f32"

    @property
    def exact(self) -> bool:
        """Whether products are in f32."""
        return self.precision == "f32"

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield every precision; nothing without the device, since nothing is compiled."""
        if target.kind == "attached":
            yield cls()
            yield from (cls(precision="tf32"), cls(precision="f16"), cls(precision="bf16"))

    @classmethod
    def in_half(cls) -> Iterator[Self]:
        """Yield every setting with PyTorch's own half precision."""
        for mode in get_args(Mode):
            yield from (cls(mode, "f16"), cls(mode, "bf16"))

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield the other ways to launch."""
        if target.kind == "attached" and self.mode == "reduce-overhead":
            yield replace(self, mode="graph")
            yield replace(self, mode="max-autotune")

    @classmethod
    def version(cls) -> str:
        """Return torch's version.

        Raises:
            InputError: it isn't installed.
        """
        return str(_torch().__version__)

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check that CUDA can use the GPU, where it is here, and that torch was built for CUDA.

        Raises:
            InputError: it can't, or it wasn't.
        """
        check_gpu(target)
        torch = _torch()
        if target.kind == "attached" and torch.version.cuda is None:
            raise InputError(
                f"this torch, {torch.__version__}, has no CUDA: "
                "pip uninstall -y torch && pip install torch"
            )

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the program, after checking that it can be loaded and answers.

        Raises:
            CandidateError: the model has no program, or the program doesn't run.
        """
        if model.program is None:
            raise CandidateError(
                f"torch runs the exported program of a PyTorch model, but {model.path.name} has "
                "none: give the module itself"
            )
        if model.origin is not None:
            raise CandidateError(
                "torch runs the original's program, but a pass changed the ONNX file"
            )
        path = workdir / f"{model.path.stem}.pt2"
        try:
            keep(model.program, path)
        except CandidateError:
            raise
        except OSError as error:
            raise CandidateError(
                f"can't copy {model.program}: {error.strerror or error}"
            ) from error
        except Exception as error:
            raise failed("torch can't load the program", error) from error
        request = model.request or tuple(_alone(spec) for spec in model.inputs)
        pinned = pin(path, pins_for(target, "PyTorch", self.version()))
        artifact = Artifact(path, request, model.outputs, request, (pinned,))
        with replace(self, mode="eager").open(artifact, target) as session:
            session.run({spec.name: np.zeros(spec.sizes, spec.dtype) for spec in request})
        return artifact

    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load the program; the first request compiles it, and leaving the context frees it.

        Raises:
            CandidateError: the program was made for another GPU, driver or version of torch, or
                can't be loaded; or anybody else could have written what torch compiled before.
        """
        attached = target.kind == "attached"
        if attached:
            check_pins(artifact, "PyTorch", self.version())
            if self.keeps_compiled:
                check_own_folder()
        mode: Mode = self.mode if attached else "eager"
        place: type[Device] = Cuda if attached else Host
        return in_own_thread(_opened(artifact, place, mode, self.precision), _THREAD)

    @property
    def keeps_compiled(self) -> bool:
        """Whether what torch compiles is kept."""
        return self.mode in ("reduce-overhead", "max-autotune")

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Load the program as `open` does, with what an earlier start compiled for this GPU.

        Raises:
            CandidateError: as `open` raises it.
        """
        if not self.keeps_compiled or target.kind != "attached":
            with self.open(artifact, target) as session:
                yield session
            return
        here = device_facts()
        what = f"programs for {here.part} and CUDA {here.driver}"
        kept = KeptPrograms(_torch(), compiled, cache_key(compiled, self, artifact, target, what))
        with self.open(artifact, target) as session:
            kept.recall()
            answer_once(session, artifact)
            kept.keep()
            try:
                yield session
            finally:
                kept.keep()  # what other shapes needed, too

    def words(self) -> str:
        precisions = {"f32": "", "tf32": "TF32"}
        modes = {"reduce-overhead": "compiled", "max-autotune": "compiled by timing"}
        launches = {"graph": "CUDA graph", "eager": "op by op"}
        return listed(
            precisions.get(self.precision, self.precision),
            "PyTorch",
            modes.get(self.mode) or launches[self.mode],
        )


def opened(
    artifact: Artifact, device: Device, mode: Mode, precision: str
) -> AbstractContextManager[Session]:
    """Open a program on a device, and run it in a thread of its own; see `in_own_thread`.

    Raises:
        CandidateError: the program can't be loaded.
    """
    return in_own_thread(_opened(artifact, lambda: device, mode, precision), _THREAD)


@contextmanager
def _opened(
    artifact: Artifact, place: Callable[[], Device], mode: Mode, precision: str
) -> Iterator[Session]:
    device = place()
    with device.apart():
        with ExitStack() as failing:
            failing.callback(device.close)
            network = _DeviceProgram(artifact, device, mode, precision)
            session = DeviceSession(artifact, device, network, _batches(artifact), capture=False)
            failing.pop_all()  # the session closes the device
        with closing(session):
            yield session


class _DeviceProgram:
    """Program on a device, compiled or not."""

    def __init__(self, artifact: Artifact, device: Device, mode: Mode, precision: str) -> None:
        torch = _torch()
        self._place = "cuda" if device.kind == "cuda" else "cpu"
        self._artifact, self._device, self._mode = artifact, device, mode
        self.tf32 = precision != "f32"
        self._facts: dict[str, str] = {}
        try:
            with private(artifact) as copy:
                program = load(copy.path)
            if self._place == "cuda":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, self._place)
            module = program.module()
        except CandidateError:
            raise
        except Exception as error:
            raise failed("torch can't load the program", error) from error
        from hasten.engines.cuda.casts import cast_once

        named = list(program.example_inputs[1]) if program.example_inputs else []
        half = {"f16": torch.float16, "bf16": torch.bfloat16}.get(precision)

        def answer(*tensors: Any) -> tuple[Any, ...]:
            by_name = dict(zip(named, tensors[len(tensors) - len(named) :], strict=True))
            with torch.autocast(self._place, half, enabled=half is not None):
                given = module(*tensors[: len(tensors) - len(named)], **by_name)
            return tuple(torch.utils._pytree.tree_leaves(given))

        self.answer: Callable[..., tuple[Any, ...]] = answer
        self._cast = (lambda given: cast_once(module, half, answer, given)) if half else None
        if mode in ("reduce-overhead", "max-autotune"):
            # torch compiles one code object 8 times at most, and runs it uncompiled from then on; all
            # programs that this process ever opened would share this function's.
            answer.__code__ = answer.__code__.replace()
            self.answer = torch.compile(answer, mode=mode)

    def first_answer(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """Answer a request of new shapes; the first one of all casts the weights, once."""
        if self._cast is not None:
            made, self._cast = self._cast(given), None
            self._facts = {
                "weights_cast_once": str(made.once),
                "weights_cast_each_request": str(made.each_request),
            }
        with _HIDING, warnings.catch_warnings():
            # Inductor advises TF32 where a product of float32 is to be exact; it says so in
            # compile_fx.py and in fuse_attention.py.
            warnings.filterwarnings("ignore", _TF32_ADVICE, UserWarning, r"torch\._inductor\.")
            return self.answer(*given)

    def execution(self, inputs: Tensors) -> Execution:
        return _ProgramExecution(self, self._artifact, self._device, inputs, self._mode == "graph")

    def properties(self) -> Mapping[str, str]:
        torch = _torch()
        return {
            "mode": self._mode,
            "torch": str(torch.__version__),
            "cudnn": str(torch.backends.cudnn.version()),
            **self._facts,
        }

    def close(self) -> None:
        self.answer = lambda *tensors: ()
        self._cast = None


class _ProgramExecution:
    """Program over tensors at addresses in a device's memory."""

    lasting = False

    def __init__(
        self,
        program: _DeviceProgram,
        artifact: Artifact,
        device: Device,
        inputs: Tensors,
        graph: bool,
    ) -> None:
        self._program, self._device, self._graph = program, device, graph
        self._inputs = [spec.name for spec in artifact.inputs]
        self._outputs = [spec.name for spec in artifact.outputs]
        self._bound: dict[str, Any] = {}
        self._replay: Callable[[], None] | None = None
        torch = _torch()
        place = "cuda" if device.kind == "cuda" else "cpu"
        given = [torch.from_numpy(inputs[name].copy()).to(place) for name in self._inputs]
        with self._running():
            answers = program.first_answer(given)
        if len(answers) != len(self._outputs):
            raise CandidateError(
                f"the program gives {amount(len(answers), 'output')}, but the model has {len(self._outputs)}"
            )
        self.outputs: Mapping[str, tuple[tuple[int, ...], str]] = {
            spec.name: (tuple(answer.shape), spec.dtype)
            for spec, answer in zip(artifact.outputs, answers, strict=True)
        }

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self._bound[name] = _tensor_at(address, shape, dtype, self._device)

    def enqueue(self) -> None:
        if self._replay is not None:  # its kernels and their precision are those of the capture
            with self._on_stream():
                self._replay()
            return
        with self._running():
            if not self._graph:
                self._once()
                return
            self._replay = self._captured()
            self._replay()

    def _once(self) -> None:
        answers = self._program.answer(*(self._bound[name] for name in self._inputs))
        for name, answer in zip(self._outputs, answers, strict=True):
            self._bound[name].copy_(answer)

    def _captured(self) -> Callable[[], None]:
        """Return a function that replays the program's kernels in one launch."""
        torch = _torch()
        for _ in range(_WARMUPS):
            self._once()
        self._device.synchronize()
        graph = torch.cuda.CUDAGraph()
        # By default another thread can't allocate meanwhile without breaking the capture.
        with capturing(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._once()
        replay: Callable[[], None] = graph.replay
        return replay

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Have torch compute on the device's stream, in the program's precision."""
        torch = _torch()
        with self._on_stream(), precise(torch, tf32=self._program.tf32), torch.inference_mode():
            yield

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Put torch's work on the device's stream, and turn its errors into CandidateError."""
        torch = _torch()
        try:
            with ExitStack() as on:
                if self._device.kind == "cuda":
                    stream = torch.cuda.ExternalStream(self._device.stream)
                    on.enter_context(torch.cuda.stream(stream))
                yield
        except CandidateError:
            raise
        except Exception as error:
            raise failed("torch failed", error) from error


def _tensor_at(address: int, shape: tuple[int, ...], dtype: str, device: Device) -> Any:
    """Return a tensor over existing memory."""
    torch = _torch()
    if device.kind == "cuda":
        interface = {
            "data": (address, False),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }
        memory = type("Memory", (), {"__cuda_array_interface__": interface})()
        return torch.as_tensor(memory, device="cuda")
    return torch.from_numpy(array_at(address, shape, dtype))


def _alone(spec: TensorSpec) -> TensorSpec:
    """Return an input's spec for a single request."""
    return replace(spec, shape=tuple(1 if isinstance(size, str) else size for size in spec.shape))


def _batches(artifact: Artifact) -> tuple[int, ...]:
    sizes = {int(spec.shape[0]) for spec in artifact.inputs if spec.shape}
    return (sizes.pop() if len(sizes) == 1 else 1,)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"torch isn't installed ({error}): pip install 'hasten[gpu]'") from error
    return torch
