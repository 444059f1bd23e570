"""Triton with its Python back end, both as pytriton's wheel brings them."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from handed import bundle, folder, model, port
from pytriton.utils.distribution import get_libs_path, get_root_module_path, get_stub_path

import hasten.bundle

CONFIG = """
backend: "python"
max_batch_size: 0
input [{{ name: "{input}", data_type: TYPE_FP32, dims: {sizes} }}]
output [{{ name: "{output}", data_type: TYPE_FP32, dims: [-1, -1] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
"""


def lay_out(place: Path) -> Path:
    """Write a model repository; return it."""
    artifact = hasten.bundle.read(bundle()).winner.artifact
    (spec,) = artifact.request
    version = place / "models" / model() / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("model.py"), version)
    names = {"input": spec.name, "sizes": list(spec.sizes), "output": artifact.outputs[0].name}
    (version.parent / "config.pbtxt").write_text(CONFIG.format(**names))
    return place / "models"


def backends(place: Path) -> Path:
    """Put the Python back end beside its stub for this Python; return the folder of back ends."""
    source = get_root_module_path() / "tritonserver" / "backends" / "python"
    target = place / "backends" / "python"
    shutil.copytree(source, target)
    shutil.copy(get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}"), target)
    return target.parent


if __name__ == "__main__":
    triton = get_root_module_path() / "tritonserver" / "bin" / "tritonserver"
    own = sysconfig.get_config_var("LIBDIR")  # the stub must find this Python, not the system's
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([own, str(get_libs_path())])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ["PATH"]])
    arguments = {
        "model-repository": lay_out(folder()),
        "backend-directory": backends(folder()),
        "http-address": "127.0.0.1",
        "http-port": port(),
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    os.execv(triton, [str(triton), *(f"--{name}={value}" for name, value in arguments.items())])
