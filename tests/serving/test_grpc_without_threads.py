"""What a server does whose gRPC library can't have the threads that it wants."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from tests.support import models
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import until

from hasten.serving.grpc import trial

pytestmark = pytest.mark.seconds

PATIENCE_S = 120.0
STUCK_S = 8.0
"""Time after which a start is given up: the library may also wait for its thread, and a supervisor ends that."""
STARTING = """
import asyncio, os, resource, sys
import grpc, google.protobuf.json_format
from hasten.errors import InputError
from hasten.serving.grpc import trial
from hasten.serving.server import Server
from hasten.serving.settings import ServerSettings

trial.ANSWER_S = 2.0

async def main():
    server = Server(ServerSettings((), grpc=0))
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]), hard))
    try:
        port = await server.listen_grpc("127.0.0.1", 0)
    except InputError as error:
        print(error, flush=True)
        os._exit(2)
    print(port, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
SAID = (
    "gRPC's library didn't answer a call of this process within {} s, perhaps because memory or "
    "threads are limited (ulimit -v, -u): raise the limits, or serve without gRPC"
)


def test_a_library_that_answers_is_no_matter() -> None:
    asyncio.run(trial.check_that_it_answers())


IMPATIENT_ONCE = """
import os, sys
flag = os.environ.get("IMPATIENT_ONCE", "")
if "hasten.serving.supervision.process" in sys.orig_argv and os.path.exists(flag):
    os.remove(flag)
    from hasten.serving.grpc import trial
    trial.ANSWER_S = 0.0
"""
"""Module that Python imports at its start: for one process no answer of the library comes in time."""


def test_a_process_whose_grpc_library_does_not_answer_is_replaced(tmp_path: Path) -> None:
    bundle, flag = bundle_of(tmp_path, models.solid(tmp_path)), tmp_path / "impatient"
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT_ONCE)
    places = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": places, "IMPATIENT_ONCE": str(flag)}
    with ServerProcess(bundle, "--grpc", "0", env=env) as server:
        flag.touch()
        os.kill(server.serving_pid(), signal.SIGKILL)
        until(lambda: "it starts again in 0.5 s" in server.errors)
        until(lambda: SAID.format(0) in server.errors)
        until(lambda: "the serving process died of exit code 2" in server.errors)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=PATIENCE_S, wait_for_ready=True)


@pytest.mark.slow
def test_no_port_of_grpc_is_told_that_answers_no_call() -> None:
    """Memory ends while the library starts its threads, and is there again a moment later."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = 8 << 20 if stack == resource.RLIM_INFINITY else stack
    refused = 0
    for number, quarters in enumerate((13, 17, 13, 17, 13, 17)):
        if refused and number > 1:
            break  # others are for a busy host, on which memory may be there again too soon
        command = [sys.executable, "-c", STARTING, str(stack * quarters // 4)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            select.select([process.stderr, process.stdout], [], [], PATIENCE_S)
            resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            told, _, _ = select.select([process.stdout], [], [], STUCK_S)
            said = process.stdout.readline() if told else ""
            if said.strip().isdigit():
                with grpc.insecure_channel(f"127.0.0.1:{said.strip()}") as channel:
                    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                    live(b"", timeout=PATIENCE_S)
            elif said:
                assert said == SAID.format(2) + "\n"
                refused += 1
            process.kill()
    assert refused
