"""Triton and hasten side by side, serving the same models; `make test-triton` brings Triton."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from tests.support.models import identity
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.testing import models

HERE = Path(__file__).parent
ENVIRONMENT = "HASTEN_TRITON"
"""Names the environment that has Triton, where it isn't `.venv-triton`."""
PATIENCE_S, END_S = 120.0, 30.0
IDENTITIES = {"float32": ("float", "FP32"), "int64": ("int64", "INT64"), "bool": ("bool", "BOOL"),
              "float16": ("float16", "FP16")}  # fmt: skip
"""Model -> ONNX's name of its type and the protocol's."""
MODELS = {
    **{name: [("x", "y", datatype)] for name, (_, datatype) in IDENTITIES.items()},
    "pair": [("left", "same_left", "FP32"), ("right", "same_right", "INT64")],
}
"""Model -> its inputs, the outputs that are the same, and their types; all have 3 columns."""


class Ports(NamedTuple):
    """Where a server listens on 127.0.0.1."""

    http: int
    grpc: int


class Both(NamedTuple):
    """The two servers."""

    hasten: Ports
    triton: Ports


def triton_python() -> Path:
    """Return the Python that has Triton; skip or fail aloud where there is none."""
    named = os.environ.get(ENVIRONMENT)
    python = Path(named or HERE.parents[2] / ".venv-triton").absolute() / "bin" / "python"
    if not python.exists() and named is not None:
        pytest.fail(f"{ENVIRONMENT} names {named}, which has no bin/python")
    if not python.exists():
        pytest.skip("needs a Triton server, which has an environment of its own: make test-triton")
    return python


def free_ports() -> Ports:
    """Return two ports that nothing listens at now."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return Ports(one.getsockname()[1], other.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    """Ask Triton until it is ready.

    Raises:
        RuntimeError: it ended, or isn't in time.
    """
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"Triton didn't start: {output.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """A Triton server in a process of its own."""
    python, ports = triton_python(), free_ports()
    folder = tmp_path_factory.mktemp("triton")
    output = folder / "output.txt"
    arguments = [str(folder), json.dumps(MODELS), str(ports.http), str(ports.grpc)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [python, HERE / "app.py", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, ports.http, output)
        yield ports
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def both(triton: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Triton, and hasten in a thread, with the same models; clients may do everything."""
    folder = tmp_path_factory.mktemp("hasten")
    pair = folder / "pair.onnx"
    text = f"""{models.HEADER}
        pair (float[batch, 3] left, int64[batch, 3] right)
            => (float[batch, 3] same_left, int64[batch, 3] same_right) {{
            same_left = Identity(left)
            same_right = Identity(right)
        }}"""
    onnx.save(onnx.parser.parse_model(text), pair)
    bundles = [
        bundle_of(folder, identity(folder, kind, "3"), name)
        for name, (kind, _) in IDENTITIES.items()
    ]
    places = [place_of(bundle) for bundle in (*bundles, bundle_of(folder, pair))]
    with ServerThread(*places, grpc=True, control=True, shared_memory="/?hasten-test-.*") as one:
        yield Both(Ports(one.http_port, one.grpc_port), triton)
