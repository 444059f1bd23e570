"""Triton Inference Server with a chain as a model of its Python back end, both as nvidia-pytriton's wheel brings them.

    python -m venv triton
    triton/bin/pip install --requirement benchmarks/triton_chain/requirements.txt
    python benchmarks/chains.py --triton triton/bin/python

The models run in that environment, by the code of this checkout, so that the same code prepares pictures and runs models
as elsewhere. Its numpy is older than 2: with a newer one the back end gets other bytes than were sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tritonclient.http as triton

HERE = Path(__file__).parent
SOURCES = (HERE.parents[1] / "src", HERE.parent)
NAME = "chain"
_READY_S = 120.0
_LOOK = """
import importlib.metadata as metadata, importlib.util as util, json, sys, sysconfig
names = ("nvidia-pytriton", "numpy", "onnxruntime", "pillow", "simplejpeg", "msgspec", "onnx", "click")
versions = {name: metadata.version(name) for name in names}
wheel = util.find_spec("pytriton").submodule_search_locations[0]
version = "{}.{}".format(*sys.version_info)
print(json.dumps([version, sysconfig.get_config_var("LIBDIR"), wheel, versions]))
"""
_CONFIG = """
backend: "python"
max_batch_size: 0
input [{{ name: "raw", data_type: TYPE_STRING, dims: [1] }}]
output [{{ name: "decision", data_type: TYPE_STRING, dims: [1] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
{parameters}
"""


@dataclass(frozen=True)
class Environment:
    """Python with the packages that the server needs.

    Attributes:
        python: Its interpreter.
        version: Its version, such as "3.11".
        libraries: Folder of its own shared library.
        wheel: Folder of nvidia-pytriton.
        versions: Version of each package that runs or prepares anything.
    """

    python: Path
    version: str
    libraries: str
    wheel: Path
    versions: dict[str, str]

    @classmethod
    def of(cls, python: Path) -> Self:
        """Look at an environment.

        Raises:
            SystemExit: it isn't there, or a package is missing.
        """
        try:
            done = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True)
        except OSError as error:
            raise SystemExit(f"{python} can't be run: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise SystemExit(f"{python} hasn't what triton_chain/requirements.txt lists: {last}")
        version, libraries, wheel, versions = json.loads(done.stdout)
        return cls(python, version, libraries, Path(wheel), versions)


@contextlib.contextmanager
def served(
    own: Environment, folder: Path, detect: Path, classify: Path, sizes: Sequence[int], port: int
) -> Iterator[str]:
    """Run Triton, and yield its host and port.

    Args:
        own: Environment that it runs in.
        folder: Folder to write the model's repository to.
        detect: Bundle of the detector.
        classify: Bundle of the classifier.
        sizes: Sizes of the batches in which the classifier is asked.
        port: Port of HTTP.

    Raises:
        SystemExit: it didn't start; the message ends with its last line.
    """
    given = {"detector": str(detect), "classifier": str(classify), "sizes": list(sizes)}
    version = folder / "models" / NAME / "1"
    version.mkdir(parents=True)
    shutil.copy(HERE / "model.py", version)
    parameters = [
        f"parameters {{ key: {json.dumps(name)} value: {{ string_value: {json.dumps(json.dumps(one))} }} }}"
        for name, one in given.items()
    ]
    (version.parent / "config.pbtxt").write_text(_CONFIG.format(parameters="\n".join(parameters)))
    backend = folder / "backends" / "python"
    wheel = own.wheel / "tritonserver"
    shutil.copytree(wheel / "backends" / "python", backend)
    stub = wheel / "python_backend_stubs" / own.version / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    libraries = (own.libraries, own.wheel.with_name("nvidia_pytriton.libs"))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(own.python.absolute().parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
    }
    arguments = {
        "model-repository": version.parents[1],
        "backend-directory": backend.parent,
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "exit-timeout-secs": 5,
    }
    command = [wheel / "bin" / "tritonserver", *(f"--{n}={one}" for n, one in arguments.items())]
    log = folder / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait(process, f"127.0.0.1:{port}", log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), triton.InferenceServerClient(address) as client:
            if client.is_model_ready(NAME):
                return
        time.sleep(0.2)
    lines = log.read_text(errors="replace").splitlines() or ["it said nothing"]
    raise SystemExit(f"Triton didn't start: {lines[-1]}")
