"""Shared memory that its owner changes while it is registered: the server lives on, and writes to no other's memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.models import identity
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)


@contextlib.contextmanager
def shared(name: str, data: bytes) -> Iterator[tuple[str, int]]:
    """A shared memory object that holds data: its key, and a file descriptor."""
    key = f"hasten-test-{os.getpid()}-{name}"
    number = os.open(f"/dev/shm/{key}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(number, data)
        yield key, number
    finally:
        os.close(number)
        Path(f"/dev/shm/{key}").unlink()


USES = """
import os, sys
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import Region
from hasten.serving.wire.shared_memory import SharedMemory

key, use, before, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
number = os.open(f"/dev/shm/{key}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
try:
    os.ftruncate(number, before)
    memory, region = SharedMemory(".*"), Region("r", 100, before - 100)
    memory.register("r", key, 0, before)
    region = memory.place(region)
    if after != before:  # it is used before, too
        memory.read(region)
        memory.write(region, bytes(region.size_bytes))
        os.ftruncate(number, after)
    try:
        if use == "read":
            print(sum(memory.read(region)))
        else:
            memory.write(region, bytes(region.size_bytes))
            print("written")
    except ProtocolError as error:
        print(error.kind.name, error)
finally:
    os.unlink(f"/dev/shm/{key}")
"""


def used(use: str, before: int, after: int, *launch: str) -> str:
    """Return what a process says that registers an object, and uses it once its size has changed."""
    words = (f"hasten-test-{os.getpid()}-used", use, str(before), str(after))
    command = [*launch, sys.executable, "-c", USES, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip().replace(words[0], "KEY")


@pytest.mark.seconds
@pytest.mark.parametrize(("use", "fine"), [("read", "0"), ("write", "written")])
def test_a_shared_memory_object_that_was_made_smaller_ends_no_process(use: str, fine: str) -> None:
    assert used(use, 1 << 16, 1 << 16) == fine
    assert used(use, 1 << 16, 1 << 20) == fine
    for left in (0, 100, 4096, (1 << 16) - 1):
        assert used(use, 1 << 16, left) == (
            f"INVALID the shared memory object 'KEY' was made smaller: it has {left:,} bytes, but the tensor ends "
            "at 65,536: unregister the region, and register it again"
        )


@pytest.mark.seconds
@pytest.mark.parametrize("use", ["read", "write"])
def test_shared_memory_for_which_there_is_no_memory_left_ends_no_process(use: str) -> None:
    """As in a container, whose /dev/shm is small: an object may be longer than that until it is used."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    apart = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    small = "mount -t tmpfs -o size=64k none /dev/shm && exec "
    if subprocess.run([*apart, f"{small} true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount in a namespace of one's own")
    assert used(use, 1 << 20, 1 << 20, *apart, f'{small} "$0" "$@"') == (
        "OVERLOADED the system has no memory left for the shared memory object 'KEY': free some in /dev/shm, or "
        "make that larger"
    )


def asked(server: ServerThread, path: str, content: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", path, json.dumps(content))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body) if body else None


def register(server: ServerThread, region: str, key: str) -> None:
    path = f"/v2/systemsharedmemory/region/{region}/register"
    assert asked(server, path, {"key": key, "offset": 0, "byte_size": 16})[0] == 200


def unregister(server: ServerThread, region: str) -> None:
    assert asked(server, f"/v2/systemsharedmemory/region/{region}/unregister", {})[0] == 200


PLACE = {"shared_memory_region": "r", "shared_memory_byte_size": 16}


@pytest.mark.parametrize("where", ["its input", "its output"])
def test_a_region_that_is_registered_anew_is_another_one_for_a_request_under_way(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(bundle_of(tmp_path, identity(tmp_path, sizes="4")), "same")
    running, go_on = threading.Event(), threading.Event()
    with (
        ServerThread(place, shared_memory="hasten-test-.*") as server,
        shared("old", ROW.tobytes()) as (old, _),
        shared("new", bytes(16)) as (new, number),
    ):
        model = server.server.state.repository.find("same")
        (engine,) = model._batching._threads
        runs = engine._model

        def held(inputs: Any) -> Any:
            running.set()
            assert go_on.wait(PATIENCE_S)
            return runs(inputs)

        monkeypatch.setattr("hasten.serving.models.batching.INLINE_NS", -1)
        monkeypatch.setattr("hasten.serving.models.batching._LONE_NS", -1)
        monkeypatch.setattr(engine, "_model", held)
        (spec,), (output,) = model.inputs, model.outputs
        tensor: dict[str, Any] = {"name": spec.name, "datatype": "FP32", "shape": [1, 4]}
        request: dict[str, Any] = {"inputs": [tensor]}
        if where == "its input":
            tensor["parameters"] = PLACE
        else:
            tensor["data"] = ROW.reshape(-1).tolist()
            request["outputs"] = [{"name": output.name, "parameters": PLACE}]
        register(server, "r", old)
        answers: list[tuple[int, Any]] = []
        asking = threading.Thread(
            target=lambda: answers.append(asked(server, "/v2/models/same/infer", request))
        )
        asking.start()
        assert running.wait(PATIENCE_S)
        unregister(server, "r")
        register(server, "r", new)
        go_on.set()
        asking.join(PATIENCE_S)
        ((status, answer),) = answers
        if where == "its input":
            assert (status, answer["outputs"][0]["data"]) == (200, ROW.reshape(-1).tolist())
        else:
            assert (status, answer["error"]) == (400, "the region 'r' was unregistered meanwhile")
            assert os.pread(number, 16, 0) == bytes(16)
            assert asked(server, "/v2/models/same/infer", request)[0] == 200
            assert os.pread(number, 16, 0) == ROW.tobytes()


def test_an_object_that_was_made_smaller_serves_again_as_its_error_says(tmp_path: Path) -> None:
    place = place_of(bundle_of(tmp_path, identity(tmp_path, sizes="4")), "same")
    with (
        ServerThread(place, shared_memory="hasten-test-.*") as server,
        shared("small", ROW.tobytes()) as (key, number),
    ):
        (spec,) = server.server.state.repository.find("same").inputs
        tensor = {"name": spec.name, "datatype": "FP32", "shape": [1, 4], "parameters": PLACE}
        request = {"inputs": [tensor]}
        register(server, "r", key)
        os.ftruncate(number, 0)
        status, answer = asked(server, "/v2/models/same/infer", request)
        assert (status, answer["error"].rpartition(": ")[2]) == (
            400,
            "unregister the region, and register it again",
        )
        os.pwrite(number, ROW.tobytes(), 0)
        assert asked(server, "/v2/models/same/infer", request)[0] == 200
        unregister(server, "r")
        register(server, "r", key)
        status, answer = asked(server, "/v2/models/same/infer", request)
        assert (status, answer["outputs"][0]["data"]) == (200, ROW.reshape(-1).tolist())
