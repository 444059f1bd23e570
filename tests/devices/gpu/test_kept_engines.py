"""What ONNX Runtime's TensorRT provider builds is kept in the user's own folder, and read at the next start.

The provider is a stand-in, since it needs a GPU: it keeps an engine in the folder that it is given, as the real one
does, and ONNX Runtime answers on this host.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.cuda import onnxruntime as onnxruntime_cuda
from hasten.engines.cuda.facts import DeviceFacts
from hasten.engines.cuda.kept_engines import tensorrt_version
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.runtime import Host
from hasten.errors import DeviceLost
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import request_for

ENGINE = OnnxRuntimeCuda("tensorrt")
ATTACHED = Target.host().with_threads(1).with_device("cuda", present=True)
PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
ENABLED, FOLDER = "trt_engine_cache_enable", "trt_engine_cache_path"


class Gpu(Host):
    """This host's memory under the name of a GPU's."""

    kind = "cuda"


class Binding:
    """Binding of a session to the memory of a GPU, which is this host's."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_input(self, name: str, kind: str, *place: Any) -> None:
        assert kind == "cuda"
        self.real.bind_input(name, "cpu", *place)

    def bind_output(self, name: str, kind: str, *place: Any) -> None:
        assert kind == "cuda"
        self.real.bind_output(name, "cpu", *place)


class Session:
    """Session of ONNX Runtime that says that it has the GPU's providers."""

    def __init__(self, real: Any, engine: str) -> None:
        self.real, self.engine = real, engine

    def get_providers(self) -> list[str]:
        return PROVIDERS

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {}

    def io_binding(self) -> Binding:
        return Binding(self.real.io_binding())

    def run(self, names: Any, inputs: Any, options: Any) -> Any:
        if self.engine == "an engine that fails":
            raise RuntimeError("TensorRT EP failed to create context from engine cache")
        return self.real.run(names, inputs, options)

    def failing(self, names: Any, inputs: Any, options: Any) -> Any:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self.real.run_with_iobinding(binding.real, options)


class Runtime:
    """ONNX Runtime with TensorRT's provider.

    Attributes:
        tensorrt: Version of TensorRT, which reads only engines of its own.
        built: Number of engines that it built.
        folders: Folder of engines of each session; None for a session without.
    """

    def __init__(self) -> None:
        self.tensorrt, self.built = "10.9", 0
        self.folders: list[Path | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return PROVIDERS

    def preload_dlls(self) -> None: ...

    def InferenceSession(self, path: Any, options: Any, providers: Any, **_: Any) -> Session:  # noqa: N802
        (name, told), *_rest = providers
        assert name == PROVIDERS[0]
        folder = Path(told[FOLDER]) if told.get(ENABLED) == "1" else None
        self.folders.append(folder)
        return Session(
            onnxruntime.InferenceSession(path, options, providers=PROVIDERS[2:]),
            self._engine(folder),
        )

    def _engine(self, folder: Path | None) -> str:
        file = None if folder is None else folder / "TRTKernel_graph_main_1_0_sm90.engine"
        if file is not None and file.exists():
            engine = file.read_text()
            if not engine.endswith((self.tensorrt, "that fails")):
                raise RuntimeError(f"TensorRT EP could not deserialize engine from cache: {file}")
            return engine
        self.built += 1
        if file is not None:
            file.write_text(f"an engine of {self.tensorrt}")
        return f"an engine of {self.tensorrt}"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """ONNX Runtime with TensorRT's provider, and a GPU."""
    found = Runtime()
    monkeypatch.setattr(onnxruntime_cuda, "_runtime", lambda: found)
    monkeypatch.setattr(onnxruntime_cuda, "Cuda", Gpu)
    monkeypatch.setattr(onnxruntime_cuda, "device_facts", lambda: DeviceFacts("sm90", "13.0"))
    return found


@pytest.fixture
def artifact(runtime: Runtime, tmp_path: Path) -> Artifact:
    model = load(models.small_cnn(tmp_path))
    request = {name: array[0] for name, array in request_for(model.inputs).items()}
    (tmp_path / "built").mkdir()
    made = ENGINE.build(model.settled_by(request), ATTACHED, tmp_path / "built")
    assert runtime.folders == [None]  # it only looks whether the model can be loaded
    runtime.built = 0
    runtime.folders.clear()
    return made


def start(artifact: Artifact, folder: Path, engine: OnnxRuntimeCuda = ENGINE) -> tuple[int, int]:
    """Answer in a session with a cache; return how often the cache was read and written."""
    request = request_for(artifact.inputs)
    expected = onnxruntime.InferenceSession(artifact.path).run(None, request)[0]
    compiled = CompileCache(CacheFolder(folder))
    with engine.open_cached(artifact, ATTACHED, compiled) as session:
        np.testing.assert_allclose(session.run(request)["logits"], expected, rtol=1e-5, atol=1e-6)
    return compiled.found, compiled.kept


def test_an_engine_is_built_at_the_first_start_only(
    runtime: Runtime, artifact: Artifact, tmp_path: Path
) -> None:
    assert start(artifact, tmp_path / "cache") == (0, 1)
    assert start(artifact, tmp_path / "cache") == (1, 0)
    assert runtime.built == 1
    first, second = runtime.folders
    assert first is not None
    assert first != second
    assert not first.exists()


def test_a_session_without_a_cache_keeps_nothing(runtime: Runtime, artifact: Artifact) -> None:
    with ENGINE.open(artifact, ATTACHED) as session:
        session.run(request_for(artifact.inputs))
    assert runtime.folders == [None]


OTHER_FACTS = {
    "capability": DeviceFacts("sm89", "13.0"),
    "driver": DeviceFacts("sm90", "13.1"),
    "gpu of one capability": DeviceFacts("sm90", "13.0", "NVIDIA GH200"),
}


@pytest.mark.parametrize("change", ["weights", "tensorrt", *OTHER_FACTS])
def test_an_engine_serves_no_other_model_gpu_driver_or_library(
    change: str,
    runtime: Runtime,
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start(artifact, tmp_path / "cache")
    if change == "weights":
        data = bytearray(artifact.path.read_bytes())
        at = data.index(_weight(artifact.path))
        data[at] ^= 1
        artifact.path.write_bytes(data)
    elif change == "tensorrt":
        monkeypatch.setattr(onnxruntime_cuda, "tensorrt_version", lambda runtime: "101400")
    else:
        monkeypatch.setattr(onnxruntime_cuda, "device_facts", lambda: OTHER_FACTS[change])
    assert start(artifact, tmp_path / "cache") == (0, 1)
    assert runtime.built == 2


def _weight(path: Path) -> bytes:
    """Return the bytes of a model's first weights."""
    import onnx

    tensor = onnx.load(path).graph.initializer[0]
    return onnx.numpy_helper.to_array(tensor).tobytes()


def test_an_engine_that_the_library_refuses_is_built_anew_and_kept(
    runtime: Runtime, artifact: Artifact, tmp_path: Path
) -> None:
    start(artifact, tmp_path / "cache")
    runtime.tensorrt = "10.14"
    assert start(artifact, tmp_path / "cache") == (0, 1)
    assert start(artifact, tmp_path / "cache") == (1, 0)
    assert runtime.built == 2


def test_an_engine_that_fails_at_its_first_request_is_built_anew(
    runtime: Runtime, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(Runtime, "_engine", _failing_later)
        start(artifact, tmp_path / "cache")
    assert start(artifact, tmp_path / "cache") == (0, 1)
    assert runtime.built == 1


def _failing_later(runtime: Runtime, folder: Path) -> str:
    (folder / "TRTKernel_graph_main_1_0_sm90.engine").write_text("an engine that fails")
    return "an engine"


def test_engines_of_a_model_that_answers_no_zeros_are_kept_all_the_same(
    runtime: Runtime, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Session.run

    def refusing(session: Session, names: Any, inputs: Any, options: Any) -> Any:
        if not any(array.any() for array in inputs.values()):
            raise RuntimeError("division by zero")
        return answer(session, names, inputs, options)

    monkeypatch.setattr(Session, "run", refusing)
    found = [start(artifact, tmp_path / "cache") for _ in range(3)]
    assert (found, runtime.built) == ([(0, 1), (1, 0), (1, 0)], 1)
    runtime.tensorrt = "10.14"  # which refuses them when the model is loaded
    found = [start(artifact, tmp_path / "cache") for _ in range(2)]
    assert (found, runtime.built) == ([(0, 1), (1, 0)], 2)


def test_a_lost_device_costs_no_engine(
    runtime: Runtime, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(artifact, tmp_path / "cache")

    def lost(*_: Any) -> None:
        raise DeviceLost("the GPU no longer works in this process")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Session, "run", Session.failing)
        meanwhile.setattr(Gpu, "check", lost)
        with pytest.raises(DeviceLost, match=r"^the GPU no longer works in this process$"):
            start(artifact, tmp_path / "cache")
        with pytest.raises(DeviceLost, match=r"^the GPU no longer works in this process$"):
            start(artifact, tmp_path / "another cache")
    built = runtime.built
    assert start(artifact, tmp_path / "cache") == (1, 0)
    assert runtime.built == built
    assert start(artifact, tmp_path / "another cache") == (0, 1)  # nothing was learned there


def test_tensorrts_version_is_that_of_the_library_that_the_provider_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, loaded = SimpleNamespace(__file__=str(tmp_path / "__init__.py")), []

    def library(name: str) -> Any:
        loaded.append(name)
        return SimpleNamespace(getInferLibVersion=lambda: 101400)

    monkeypatch.setattr(ctypes, "CDLL", library)
    assert tensorrt_version(runtime) == "unknown"
    (tmp_path / "capi").mkdir()
    provider = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    provider.write_bytes(b"libcudart.so.12\0")
    assert tensorrt_version(runtime) == "unknown"
    provider.write_bytes(b"libcudart.so.12\0libnvinfer.so.10\0libnvinfer_plugin.so.10\0")
    assert tensorrt_version(runtime) == "101400"
    assert loaded == ["libnvinfer.so.10"]
    monkeypatch.undo()
    provider.write_bytes(b"libnvinfer.so.999\0")
    assert tensorrt_version(runtime) == "unknown"


def test_only_tensorrts_provider_builds_engines(artifact: Artifact) -> None:
    assert ENGINE.keeps_compiled
    assert not OnnxRuntimeCuda().keeps_compiled
    device: Any = Gpu()
    told = [
        dict(options)
        for name, options in OnnxRuntimeCuda()._providers(device, artifact, Path("kept"))
    ]
    assert all(FOLDER not in options for options in told)
    assert onnxruntime_cuda.engine_cache(None) == {}
    assert onnxruntime_cuda.engine_cache(Path("kept")) == {ENABLED: "1", FOLDER: "kept"}


def test_the_real_provider_has_these_settings() -> None:
    library = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_tensorrt.so"
    if not library.exists():
        pytest.skip("needs the extra gpu: pip install 'hasten[gpu]'")
    content = library.read_bytes()
    assert all(f"{name}\0".encode() in content for name in (ENABLED, FOLDER))
