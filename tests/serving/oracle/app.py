"""Triton with its Python back end, both as pytriton's wheel brings them; run in their environment.

Called with a folder to write into, the models as JSON (their inputs' and outputs' names and types)
and the ports of HTTP and gRPC.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from pytriton.utils.distribution import (  # type: ignore[import-not-found]
    get_libs_path,
    get_root_module_path,
    get_stub_path,
)

CONFIG = """
backend: "python"
max_batch_size: 32
input [{inputs}]
output [{outputs}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
dynamic_batching {{ }}
"""
TENSOR = '{{ name: "{name}", data_type: TYPE_{datatype}, dims: [3] }}'


def lay_out(place: Path, models: dict[str, list[tuple[str, str, str]]]) -> Path:
    """Write a model repository; return it."""
    for model, tensors in models.items():
        version = place / "models" / model / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("model.py"), version)
        inputs = [TENSOR.format(name=came, datatype=datatype) for came, _, datatype in tensors]
        outputs = [TENSOR.format(name=goes, datatype=datatype) for _, goes, datatype in tensors]
        config = CONFIG.format(inputs=", ".join(inputs), outputs=", ".join(outputs))
        (version.parent / "config.pbtxt").write_text(config)
    return place / "models"


def backends(place: Path) -> Path:
    """Put the Python back end beside its stub for this Python; return the folder of back ends."""
    target = place / "backends" / "python"
    shutil.copytree(get_root_module_path() / "tritonserver" / "backends" / "python", target)
    shutil.copy(get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}"), target)
    return target.parent


if __name__ == "__main__":
    folder, models, http_port, grpc_port = sys.argv[1:]
    triton = get_root_module_path() / "tritonserver" / "bin" / "tritonserver"
    own = sysconfig.get_config_var("LIBDIR")  # the stub must find this Python, not the system's
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([own, str(get_libs_path())])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ["PATH"]])
    arguments = {
        "model-repository": lay_out(Path(folder), json.loads(models)),
        "backend-directory": backends(Path(folder)),
        "model-control-mode": "explicit",
        "load-model": "*",
        "http-address": "127.0.0.1",
        "http-port": http_port,
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "allow-metrics": "false",
    }
    os.execv(triton, [str(triton), *(f"--{name}={value}" for name, value in arguments.items())])
