"""`hasten serve` as a person starts it: its ports, its end, and what outlives a crash."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support import models
from tests.support.bundles import forge
from tests.support.pausing import Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, bundle_of, with_curve
from tests.support.signing import Signer
from tests.support.waiting import until

from hasten.cli import main
from hasten.core.records import to_record
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.repository import QUEUED
from hasten.serving.server import _GOODBYE_S
from hasten.serving.settings import ModelPlace
from hasten.serving.supervision.blame import without_blamed

pytestmark = pytest.mark.seconds

PATIENCE_S = 120.0
ROW = [1.0, 2.0, 3.0, 4.0]
HELD = [600_000.0, 2.0, 3.0, 4.0]
"""To a pausing engine, ten minutes, or until a test ends the pauses."""


@pytest.fixture(scope="module", autouse=True)
def pausing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pausing_installed(tmp_path_factory.mktemp("plug-in")):
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `solid`, and `slow`, which pauses; its exact model is another file."""
    folder = tmp_path_factory.mktemp("supervised")
    solid = models.solid(folder)
    bundle_of(folder, solid)
    # So slow by its curve that no batch runs on the loop's thread, however long a client was alone.
    curve = with_curve({1: 1000.0})
    exact = models.mirrored(folder)
    bundle_of(folder, solid, "slow", engine=Pausing(), exact=exact, extra=curve)
    return folder


@pytest.fixture
def pauses(tmp_path: Path) -> Pauses:
    folder = tmp_path / "pauses"
    folder.mkdir()
    return Pauses(folder)


def ask(
    port: int, model: str, row: Any = ROW, connection: http.client.HTTPConnection | None = None
) -> tuple[int, Any]:
    """Ask once; status and JSON."""
    client = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
    client.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
    response = client.getresponse()
    body = json.loads(response.read())
    if connection is None:
        client.close()
    return response.status, body


def get(port: int, path: str) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    client.request("GET", path)
    response = client.getresponse()
    body = response.read()
    client.close()
    return response.status, body


def waiting(server: ServerProcess, model: str = "slow") -> int:
    """How many samples wait for a model's engine, which is at another one then."""
    told = get(server.http_port, "/metrics")[1].decode()
    name = rf'nv_inference_pending_request_count{{[^}}]*model="{model}"[^}}]*}}'
    (count,) = re.findall(rf"^{name} (\S+)$", told, re.MULTILINE)
    return int(float(count))


def ready(server: ServerProcess) -> bool:
    try:
        return get(server.http_port, "/v2/health/ready")[0] == 200
    except OSError:
        return False


def test_it_says_where_it_listens_serves_rests_and_ends_when_asked_to(bundles: Path) -> None:
    """While nothing happens, neither process polls: its threads neither wake again and again nor run on.

    What the start leaves to be done may take a while, on a busy host.
    """
    with ServerProcess(bundles / "solid.hasten") as server:
        assert server.lines == [f"listening on http://127.0.0.1:{server.http_port}", "ready"]
        status, answer = ask(server.http_port, "solid")
        assert (status, answer["outputs"][0]["data"]) == (200, ROW)
        idle = socket.create_connection(("127.0.0.1", server.http_port))
        pids = (server.process.pid, server.serving_pid())

        def quiet() -> bool:
            before, before_s = woken(*pids), busy_s(*pids)
            time.sleep(1.0)
            # A thread that spins never goes to sleep, so it counts no waking.
            return woken(*pids) - before <= 12 and busy_s(*pids) - before_s <= 0.04

        until(quiet, 30.0)
        idle.close()
        assert server.end(signal.SIGTERM) == 0
        assert server.errors == "hasten: solid/1: ready (unsigned)\nhasten: draining\n"


def woken(*pids: int) -> int:
    """How many times threads of processes have gone to sleep, and woke up."""
    statuses = []
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):  # of a thread that has just ended
                statuses.append(path.read_text())
    return sum(
        int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", each, re.M)[0]) for each in statuses
    )


def busy_s(*pids: int) -> float:
    """How long processes have run on a processor, threads that ended included."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def drained(server: ServerProcess, pauses: Pauses) -> int:
    """Ask a server to end, and end the pauses once its serving process drains; its exit code."""
    probe = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)

    def drains() -> bool:
        probe.request("GET", "/v2/health/ready")
        response = probe.getresponse()
        response.read()
        return response.status == 503

    assert not drains()
    server.process.send_signal(signal.SIGTERM)
    until(drains)
    probe.close()
    pauses.end()
    return server.process.wait(PATIENCE_S)


def test_what_is_under_way_at_the_end_is_answered(bundles: Path, pauses: Pauses) -> None:
    """A signal to the serving process ends nothing: what it means, the supervisor says.

    systemd sends it to all processes of a service.
    """
    with ServerProcess(
        bundles / "slow.hasten", "--max-batch", "1", "--max-wait", "60s", env=pauses.env
    ) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(ask, server.http_port, "slow", HELD) for _ in range(4)]
            until(lambda: waiting(server) == 3)
            os.kill(server.serving_pid(), signal.SIGTERM)
            assert drained(server, pauses) == 0
            assert [call.result()[0] for call in calls] == [200] * 4


def test_no_request_is_lost_when_it_ends_under_load(bundles: Path) -> None:
    """Clients with open connections are told to close them, and ask nothing more there."""
    with ServerProcess(bundles / "solid.hasten") as server:
        ended: list[str] = []
        counts = [0] * 4

        def ask_on(number: int) -> None:
            client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
            while True:
                try:
                    client.connect()
                except ConnectionRefusedError:
                    return
                before_s = time.monotonic()
                while True:
                    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW}
                    asked_s = time.monotonic()
                    try:
                        client.request(
                            "POST", "/v2/models/solid/infer", json.dumps({"inputs": [tensor]})
                        )
                        response = client.getresponse()
                    except ConnectionError:
                        if time.monotonic() - before_s < _GOODBYE_S:
                            raise
                        ended.append("paused")  # for longer than a server that ends waits
                        break
                    before_s = asked_s
                    assert response.status == 200, response.read()
                    response.read()
                    counts[number] += 1
                    if response.getheader("connection") == "close":
                        ended.append("told")
                        break
                client.close()

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(ask_on, number) for number in range(4)]
            until(lambda: min(counts) > 10 or any(call.done() for call in calls))
            assert server.end(signal.SIGTERM) == 0
            for call in calls:
                call.result()  # none raised
        assert len(ended) >= 4


TOLD = (503, {"error": "the server is starting again: retry"})


def answering(server: ServerProcess, model: str) -> str:
    """Which of a bundle's models answers."""
    config = json.loads(get(server.http_port, f"/v2/models/{model}/config")[1])
    return str(config["parameters"]["answers"]["string_value"])


def crashed(server: ServerProcess, number: int, pauses: Pauses, *names: str) -> None:
    """End the serving process by a signal while engines run and requests wait; await the next one."""
    pid = server.serving_pid()
    rows = {name: [HELD[0] + 10 * number + at, *HELD[1:]] for at, name in enumerate(names)}
    with concurrent.futures.ThreadPoolExecutor(3 * len(names)) as threads:
        calls = [threads.submit(ask, server.http_port, name, rows[name]) for name in names * 3]
        until(lambda: all(pauses.begun(row[0]) for row in rows.values()))
        until(lambda: all(waiting(server, name) == 2 for name in names))
        os.kill(pid, number)
        assert [call.result() for call in calls] == [TOLD] * len(calls)
    until(lambda: ready(server))
    assert server.serving_pid() != pid
    until(lambda: f"died of signal {signal.Signals(number).name}" in server.errors)


def test_who_waits_when_the_engine_crashes_is_told_and_another_process_goes_on(
    tmp_path: Path, pauses: Pauses
) -> None:
    """SIGSEGV is what an engine that breaks dies of; SIGKILL is no engine's doing.

    After SIGSEGV the exact model answers, if there is one, until the bundle is mended.
    """
    solid, exact = models.solid(tmp_path), models.mirrored(tmp_path)
    curve = with_curve({1: 1000.0})  # as that of `slow`
    slow = bundle_of(tmp_path, solid, "slow", engine=Pausing(), exact=exact, extra=curve)
    bare = bundle_of(tmp_path, solid, "bare", engine=Pausing(), keep_exact=False, extra=curve)
    plain = bundle_of(tmp_path, solid, "plain")
    with ServerProcess(
        *(slow, bare, plain, "--max-batch", "1", "--max-wait", "60s"), env=pauses.env
    ) as server:
        idle, longer_idle = (
            http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
            for _ in range(2)
        )
        for connection in (idle, longer_idle):
            assert ask(0, "plain", connection=connection)[0] == 200
        time.sleep(2.2)  # from then on they count as idle
        crashed(server, signal.SIGSEGV, pauses, "slow", "bare")
        taken_over = "slow/1: its engine was running: the exact model answers from now on"
        until(lambda: taken_over in server.errors)
        assert ask(0, "plain", connection=idle)[0] == 200  # its connection was kept
        idle.close()
        assert [answering(server, model) for model in ("slow", "plain")] == ["exact", "winner"]
        for model, row in (("slow", ROW[::-1]), ("bare", ROW), ("plain", ROW)):
            status, body = ask(server.http_port, model)
            assert (status, body["outputs"][0]["data"]) == (200, row)

        bundle_of(tmp_path, solid, "slow", engine=Pausing(), extra=curve)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: answering(server, "slow") == "winner")
        crashed(server, signal.SIGKILL, pauses, "slow")
        assert ask(0, "plain", connection=longer_idle)[0] == 200  # kept at both crashes
        longer_idle.close()
        assert [answering(server, model) for model in ("slow", "plain")] == ["winner", "winner"]
        assert ask(server.http_port, "slow")[1]["outputs"][0]["data"] == ROW
        assert server.errors.count(taken_over) == 1
        assert "plain/1: its engine was running" not in server.errors


@pytest.mark.parametrize("breaks", ["winner", "exact"])
def test_an_engine_that_broke_beside_another_is_found_by_the_next_crash(breaks: str) -> None:
    """Both of a model's engines run when one breaks; from then on, only that one breaks again."""
    place = ModelPlace("model", "1", Path("model.hasten"), ModelSettings(shadow=0.01))
    models = without_blamed([place], {(0, False), (0, True)})
    for _ in range(2):
        settings = models[0].settings
        answers, beside = settings.which, settings.which == "winner" and not settings.alone
        if breaks == answers:
            models = without_blamed(models, {(0, False)})
        elif beside:
            models = without_blamed(models, {(0, True)})
    assert models[0].settings.which == ("exact" if breaks == "winner" else "winner")


LOSING = [-2000.0, 2.0, 3.0, 4.0]
"""To a pausing engine, the loss of its device."""


def test_where_a_device_is_lost_a_standby_on_the_host_answers_or_else_another_process(
    bundles: Path, tmp_path: Path
) -> None:
    """Another process answers where the exact model is on the same device, or there is none."""
    solid = models.solid(tmp_path)
    kept = bundle_of(tmp_path, solid, "kept", engine=Pausing(), exact=models.mirrored(tmp_path))
    forge(kept, lambda record: record["exact"].update(engine=to_record(Pausing())))
    bare = bundle_of(tmp_path, solid, "bare", engine=Pausing(), keep_exact=False)
    lost = "the GPU no longer works in this process"
    with ServerProcess(bundles / "slow.hasten", kept, bare) as server:
        pid = server.serving_pid()
        status, body = ask(server.http_port, "slow", LOSING)
        assert (status, body["outputs"][0]["data"]) == (200, LOSING[::-1])  # the exact model's
        assert ask(server.http_port, "slow")[0] == 200
        assert server.serving_pid() == pid
        until(lambda: server.errors.count(lost) == 1)
        another_answers(server, "kept", ROW[::-1])
        another_answers(server, "bare", ROW)
        until(lambda: server.errors.count(lost) == 3)
        until(lambda: server.errors.count("died of signal SIGABRT; it starts again") == 2)


def another_answers(server: ServerProcess, model: str, row: list[float]) -> None:
    """Lose the device of a model, whose requests another process answers."""
    pid = server.serving_pid()
    assert ask(server.http_port, model, LOSING) == TOLD
    until(lambda: ready(server))
    assert server.serving_pid() != pid
    status, body = ask(server.http_port, model)
    assert (status, body["outputs"][0]["data"]) == (200, row)


HURRIED = """
from hasten.cli import main
from hasten.serving.supervision import supervisor
supervisor._PAUSES_S = (*(pause_s / 4 for pause_s in supervisor._PAUSES_S[:3]), 60.0)
main()
"""
"""`hasten` whose process starts again four times as soon, and after the fourth crash only much later."""


def test_who_crashes_again_and_again_is_started_later_and_says_so(bundles: Path) -> None:
    """Clients are told: those that come as it starts again, and those that were still sending.

    After each pause a process serves again; in the last one the server ends without a process.
    """
    head = (
        b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    )
    with ServerProcess(bundles / "solid.hasten", code=HURRIED) as server:
        statuses: list[int] = []

        def answered() -> bool:
            statuses.append(ask(server.http_port, "solid")[0])
            return statuses[-1] == 200

        for sent in (b"POST /v2/mod", head + bytes(1000), b"POST /v2/mod", b"POST /v2/mod"):
            until(answered)
            until(lambda: ready(server))
            # Whoever asks as the process dies is told at once when the next one starts.
            waiter = begun(server, sent)
            os.kill(server.serving_pid(), signal.SIGKILL)
            told_to_wait = waiter.recv(1000)
            waiter.close()
            assert told_to_wait.startswith(b"HTTP/1.1 503")
        assert set(statuses) <= {200, 503}
        assert re.search(rb"\r\nRetry-After: (60|[1-5]\d)\r\n", told_to_wait)  # less what it took
        assert server.end(signal.SIGTERM) == 0
        assert "draining" not in server.errors  # as there was no process
        died = "hasten: error: the serving process died of signal SIGKILL; it starts again"
        told = [line for line in server.errors.splitlines() if line.startswith(died)]
        pauses = ["", " in 0.125 s", " in 0.5 s", " in 60 s"]
        assert told == [died + pause for pause in pauses]


def begun(server: ServerProcess, sent: bytes) -> socket.socket:
    """Ask once on a connection, and then begin to send a request."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S)
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.sendall(sent)
    # The server has read what was sent before it answers a connection that came later.
    assert get(server.http_port, "/v2/health/live")[0] == 200
    return connection


def test_one_damaged_bundle_doesnt_hold_up_the_others_and_a_hangup_loads_what_was_replaced(
    tmp_path: Path,
) -> None:
    """Nor does an unsigned one; and the trusted keys are read again when their file changes."""
    solid, mirrored = models.solid(tmp_path), models.mirrored(tmp_path)
    old, new = Signer.new(tmp_path, "old"), Signer.new(tmp_path, "new")
    good, bad = (old.sign(bundle_of(tmp_path, solid, name)) for name in ("good", "bad"))
    unsigned = bundle_of(tmp_path, solid, "unsigned")
    (bad / "model" / "solid.onnx").write_bytes(b"no model")
    trusted = old.public.rename(tmp_path / "keys.pub")
    with ServerProcess(good, bad, unsigned, "--trusted", trusted) as server:
        assert ready(server)
        assert ask(server.http_port, "good")[1]["outputs"][0]["data"] == ROW
        status, answer = ask(server.http_port, "bad")
        assert status == 503
        assert answer["error"].startswith("the model 'bad' isn't ready: ")
        assert "has 8 bytes, " in answer["error"]
        status, answer = ask(server.http_port, "unsigned")
        assert status == 503
        assert answer["error"].startswith("the model 'unsigned' isn't ready: ")
        assert "isn't signed" in answer["error"]
        new.public.rename(trusted)
        until(lambda: "the trusted keys changed: read again" in server.errors)
        new.sign(bundle_of(tmp_path, mirrored, "good"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: ask(server.http_port, "good")[1]["outputs"][0]["data"] == ROW[::-1])


def test_health_is_told_before_the_models_are_loaded(tmp_path: Path, pauses: Pauses) -> None:
    """A process that is still loading lives, and isn't ready; it says so to whoever asks."""
    request = {"x": np.array([HELD], np.float32)}  # the warm-up asks for it
    path = bundle_of(tmp_path, models.solid(tmp_path), "slow", engine=Pausing(), requests=[request])
    server = ServerProcess(path, env=pauses.env)
    try:
        until(lambda: server.http_port != 0)
        assert get(server.http_port, "/v2/health/live")[0] == 200
        status, body = get(server.http_port, "/v2/health/ready")
        assert (status, json.loads(body)) == (503, {"error": "models are still loading"})
        status, answer = ask(server.http_port, "slow")
        why = answer["error"].removeprefix("the model 'slow' isn't ready: ")
        assert status == 503
        assert why in (QUEUED, "loading")
    finally:
        pauses.end()
    with server:
        assert ready(server)


def asked_on(connection: socket.socket) -> None:
    """Ask on a connection, which is answered."""
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_more_connections_than_are_allowed_are_turned_away_and_those_that_rest_make_room(
    bundles: Path,
) -> None:
    with ServerProcess(bundles / "solid.hasten", "--max-connections", "4") as server:
        held = [
            socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) for _ in range(4)
        ]
        for one in held:
            asked_on(one)
        assert get(server.http_port, "/v2")[0] == 503
        assert get(server.http_port, "/v2/health/live")[0] == 200  # health has places of its own
        held[0].close()
        until(lambda: get(server.http_port, "/v2")[0] == 200)
        # Nothing is asked on this one, so it makes room within seconds, too soon to look at much before.
        held[0] = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S)

        def there_is_room() -> bool:
            for one in held[1:]:
                asked_on(one)
            time.sleep(0.05)
            return get(server.http_port, "/v2")[0] == 200

        until(there_is_room)
        assert held[0].recv(100) == b""
        for one in held:
            one.close()


@pytest.mark.parametrize(
    ("files", "ends", "said"),
    [
        (200, False, "at most 8 connections can be open: the system allows 200 open files"),
        (100, True, "a server needs 192 open files and one for each connection; the system allows"),
    ],
)
def test_where_few_files_may_be_open_fewer_connections_are_taken(
    bundles: Path, files: int, ends: bool, said: str
) -> None:
    code = "from hasten.cli import main; main()"
    command = f"ulimit -n {files}; exec {sys.executable} -c '{code}' serve {bundles}/solid.hasten"
    process = subprocess.Popen(
        ["sh", "-c", f"{command} --http 0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if not ends:
        process.stdout.readline()
        assert process.stdout.readline() == "ready\n"
        process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (2 if ends else 0)
    assert said in errors


FEW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from hasten.cli import main
main()
"""
"""Allows 208 connections."""


def descriptors(server: ServerProcess) -> set[int]:
    """Return the supervisor's open files."""
    return {int(each.name) for each in Path(f"/proc/{server.process.pid}/fd").iterdir()}


def test_a_flood_on_a_full_server_leaves_the_supervisor_files_to_open(bundles: Path) -> None:
    with (
        ServerProcess(bundles / "solid.hasten", code=FEW) as server,
        contextlib.ExitStack() as held,
    ):
        most = 0
        for _ in range(600):
            client = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S)
            held.enter_context(client)
            most = max(most, len(descriptors(server)))
        assert most < 400
        assert server.end() == 0


CROWD = 600
"""More connections than the channel between the two processes takes messages."""


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    """Closes many connections at the end, for which this process may open files enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    try:
        with contextlib.ExitStack() as stack:
            yield stack
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def crowding(
    server: ServerProcess, crowd: contextlib.ExitStack
) -> list[http.client.HTTPConnection]:
    """Connect many clients, each of which has sent a request."""
    clients = []
    for _ in range(CROWD):
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
        crowd.callback(client.close)
        client.request("GET", "/v2/health/live")
        clients.append(client)
    return clients


def statuses(clients: list[http.client.HTTPConnection]) -> list[int]:
    found = []
    for client in clients:
        response = client.getresponse()
        response.read()
        found.append(response.status)
    return found


@pytest.mark.parametrize("ends", [False, True])
def test_no_client_is_refused_while_the_process_takes_no_further_connections(
    bundles: Path, crowd: contextlib.ExitStack, ends: bool
) -> None:
    with ServerProcess(bundles / "solid.hasten") as server:
        rested, pid = len(descriptors(server)), server.serving_pid()
        os.kill(pid, signal.SIGSTOP)
        clients = crowding(server, crowd)
        until(lambda: len(descriptors(server)) > rested + 200)
        if ends:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "draining" in server.errors)
        os.kill(pid, signal.SIGCONT)
        assert statuses(clients) == [200] * CROWD
        crowd.close()
        if ends:
            assert server.process.wait(PATIENCE_S) == 0
        else:
            until(lambda: len(descriptors(server)) < rested + 10)  # the places are given back


def test_requests_are_answered_while_the_supervisor_hears_nothing(
    bundles: Path, crowd: contextlib.ExitStack
) -> None:
    with ServerProcess(bundles / "solid.hasten") as server:
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
        assert ask(server.http_port, "solid", connection=client)[0] == 200
        rested = len(descriptors(server))
        assert statuses(crowding(server, crowd)) == [200] * CROWD
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            crowd.close()  # the process has more to say of them than the supervisor may leave unheard
            assert [ask(server.http_port, "solid", connection=client)[0] for _ in range(9)] == [
                200
            ] * 9
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        until(lambda: len(descriptors(server)) == rested)
        client.close()


def test_it_drains_though_no_further_file_can_be_opened(bundles: Path) -> None:
    with ServerProcess(bundles / "solid.hasten") as server:
        pid, opened = server.process.pid, descriptors(server)
        lowest = min(set(range(len(opened) + 1)) - opened)
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
        with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S):
            # The supervisor looks at the connection before it passes on the signal.
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "nothing to load" in server.errors)
            assert server.end() == 0, server.errors
        assert "Traceback" not in server.errors


def test_encrypted_requests_are_answered(bundles: Path, certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    with ServerProcess(
        bundles / "solid.hasten", "--tls-cert", certificate, "--tls-key", key
    ) as server:
        trusting = ssl.create_default_context(cafile=str(certificate))
        client = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=trusting)
        rows = np.tile(np.array(ROW, np.float32), (32, 1)).tobytes()
        for _ in range(3):
            client.request(
                "POST",
                "/v2/models/solid/infer",
                rows,
                {"Inference-Header-Content-Length": "0"},
            )
            response = client.getresponse()
            assert response.status == 200
            assert response.read().endswith(rows)
        client.close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nothing.hasten"], "no bundle at nothing.hasten: no such file or folder"),
        (["{solid}", "--max-batch", "0"], "--max-batch must be from 1 to 64; got 0"),
        (["{solid}", "--tls-cert", "x.pem"], "TLS needs both a certificate and its key: give --tls-cert and --tls-key"),
        (["{solid}", "--token-file", "none"], "can't read the token in none: No such file or directory"),
        (["a:0={solid}"], "'a:0={solid}': write NAME=PATH or NAME:VERSION=PATH; got the version '0', which must be a whole number of at least 1"),
        (["={solid}"], "'={solid}': there is no name before the equals sign; write NAME=PATH"),
        (["a:1={solid}", "a:1={solid}"], "version 1 of 'a' is given twice"),
        (["{solid}", "--shared-memory", "("], "--shared-memory is not a regular expression: missing ), unterminated subpattern at position 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_the_exit_code_2(
    bundles: Path, arguments: list[str], error: str
) -> None:
    solid = str(bundles / "solid.hasten")
    words = [argument.replace("{solid}", solid) for argument in arguments]
    refused = CliRunner().invoke(main, ["serve", *words, "--http", "0"], prog_name="hasten")
    assert refused.stderr == f"hasten: {error.replace('{solid}', solid)}\n"
    assert refused.exit_code == 2


def test_a_port_that_is_taken_is_one_line(bundles: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["serve", str(bundles / "solid.hasten"), "--http", str(port)]
        refused = CliRunner().invoke(main, words, prog_name="hasten")
    assert refused.stderr == f"hasten: can't listen on 127.0.0.1:{port}: Address already in use\n"
    assert refused.exit_code == 2


def test_a_crash_of_the_exact_model_leaves_the_fast_one_answering_and_says_who_is_blind(
    tmp_path: Path, pauses: Pauses
) -> None:
    """The exact model is at work on an answer of the fast one when the process dies."""
    solid = models.solid(tmp_path)
    path = bundle_of(tmp_path, models.mirrored(tmp_path), "shadowed", exact=solid)
    judgement = {"guard": "changed", "max_drop": 0.5}
    forge(
        path,
        lambda record: (
            record["exact"].update(engine=to_record(Pausing())),
            record.update(certificate={"judgement": judgement}),
        ),
    )
    state = tmp_path / "state"
    with ServerProcess(
        path, "--shadow", "100%", "--monitor-state", state, env=pauses.env
    ) as server:
        assert ask(server.http_port, "shadowed", HELD)[0] == 200
        until(lambda: pauses.begun(HELD[0]))  # by the exact model
        died(server, signal.SIGSEGV)
        status, answer = ask(server.http_port, "shadowed")
        assert (status, answer["outputs"][0]["data"]) == (200, ROW[::-1])
        known = json.loads(get(server.http_port, "/v2/models/shadowed/monitor")[1])
        assert known["blind"] == "the exact model's engine crashed the process"
        assert known["limits"][0]["n"] == 0
        until(
            lambda: (
                "the monitor is blind: the exact model's engine crashed the process"
                in server.errors
            )
        )


def died(server: ServerProcess, number: int) -> None:
    """End the serving process by a signal; await the next one."""
    pid = server.serving_pid()
    os.kill(pid, number)
    until(
        lambda: not Path(f"/proc/{pid}").exists()
    )  # else the dying one might say that it is ready
    until(lambda: ready(server))


@pytest.mark.parametrize("has_exact", [True, False], ids=["with one", "without one"])
def test_a_bundle_in_place_of_one_whose_exact_model_crashed_is_watched_as_if_none_had(
    tmp_path: Path, pauses: Pauses, has_exact: bool
) -> None:
    solid, mirrored = models.solid(tmp_path), models.mirrored(tmp_path)
    path, state = bundle_of(tmp_path, mirrored, "shadowed", exact=solid), tmp_path / "state"
    forge(path, lambda record: record["exact"].update(engine=to_record(Pausing())))

    def known() -> Any:
        return json.loads(get(server.http_port, "/v2/models/shadowed/monitor")[1])

    def watched() -> bool:
        """Whether the exact model looks at answers; without one, whether there is no monitor."""
        return (
            known().get("blind") == "" if has_exact else "isn't watched" in known().get("error", "")
        )

    with ServerProcess(
        path, "--shadow", "100%", "--monitor-state", state, env=pauses.env
    ) as server:
        assert ask(server.http_port, "shadowed", HELD)[0] == 200
        until(lambda: pauses.begun(HELD[0]))  # by the exact model
        died(server, signal.SIGSEGV)
        assert known()["blind"]
        bundle_of(tmp_path, mirrored, "shadowed", exact=solid, keep_exact=has_exact)
        server.process.send_signal(signal.SIGHUP)
        until(watched)
        assert ask(server.http_port, "shadowed")[0] == 200
        until(lambda: not has_exact or known()["audited"] > 0)
        died(server, signal.SIGKILL)  # the next process watches it likewise
        assert watched()
        assert server.errors.count("the monitor is blind") == 1
