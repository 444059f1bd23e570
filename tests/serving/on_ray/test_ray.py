"""Replicas on a local Ray cluster, behind HAProxy. `make test-ray` runs it, in its own environment."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from tests.support.models import identity, slow
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.watched import OTHER, SAME, certified

from hasten.serving.cluster.ingress import ReplicaEntry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray", reason="needs Ray, which has an environment of its own")
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'hasten[ray]'")

pytestmark = pytest.mark.filterwarnings("ignore")

PATIENCE_S = 150.0
SIZES = (1, 1, 1, 1, 32, 32)
"""Rows of clients' requests: of 4 kB, which HAProxy keeps to send again, and of 128 kB."""
DEPLOY = """
import sys
from hasten.errors import HastenError
from hasten.serving.logs import log_to_stderr
from hasten.serving.cluster.ray_cluster import deploy
from hasten.serving.options import Access, Monitoring, ServerLimits
from hasten.serving.run import settings_of

bundle, address, least, most, state, tokens = sys.argv[1:]
log_to_stderr(as_json=False)
watched = Monitoring(shadow=1.0, on_alarm="exact", monitor_state=state) if state else Monitoring()
settings = settings_of(
    [bundle],
    http=0,
    grpc=0,
    limits=ServerLimits(drain_s=5),
    monitoring=watched,
    access=Access(tokens=tokens or None),
)
try:
    code = deploy(
        settings,
        address=address or None,
        min_replicas=int(least),
        max_replicas=int(most),
        say=lambda text: print(text, flush=True),
    )
except HastenError as error:
    print(f"error: {error}", flush=True)
    code = 2
raise SystemExit(code)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster with room for two replicas of what two threads are for; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    threads = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=2 * threads,
        include_dashboard=False,
        log_to_driver=False,
        namespace="hasten",
        _node_ip_address="127.0.0.1",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class Deployed:
    """What `hasten serve --on ray` does, in a process of its own."""

    def __init__(
        self,
        bundle: Path,
        address: str,
        least: int,
        most: int,
        *,
        state: Path | str = "",
        tokens: Path | str = "",
    ) -> None:
        self.lines: list[str] = []
        self.http = self.grpc = 0
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", DEPLOY),
                *map(str, (bundle, address, least, most, state, tokens)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line.rstrip())
                for lead, name in (("listening on http://", "http"), ("listening on grpc", "grpc")):
                    if line.startswith(lead):
                        setattr(self, name, int(line.rsplit(":", 1)[1]))
                self._said.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until it says so."""
        with self._said:
            there = self._said.wait_for(
                lambda: text in self.lines or self.process.poll() is not None, PATIENCE_S
            )
        assert there, self.lines
        assert text in self.lines, self.lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE_S)
            assert self.process.stdout is not None
            self.process.stdout.close()


def replicas() -> dict[str, ReplicaEntry]:
    """The replicas that take requests, as the roster has them."""
    book = ray.get(ray.get_actor("hasten-roster", "hasten").book.remote())
    return {name: entry for name, entry in book.entries.items() if not entry.leaving}


def both() -> dict[str, ReplicaEntry]:
    """Wait until both replicas take requests."""
    found: dict[str, ReplicaEntry] = {}

    def there() -> bool:
        found.clear()
        found.update(replicas())
        return len(found) == 2

    eventually(there)
    return found


def eventually(what: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait until it is so."""
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return bundle_of(folder, identity(folder), "identity")


@pytest.fixture(scope="class")
def two(cluster: str, bundle: Path) -> Iterator[Deployed]:
    """Two replicas of the identity."""
    with Deployed(bundle, cluster, 2, 2) as deployed:
        deployed.wait_for("ready")
        yield deployed
    assert deployed.process.returncode == 0, deployed.lines


def asked(port: int, path: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        text = answer.read()
        return answer.status, json.loads(text) if text else None


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(each) for each in text.split()]


def parent(pid: int) -> int:
    """The process that has started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Clients:
    """Clients that ask one after another, and note what becomes of each request."""

    def __init__(self, port: int, rows: Sequence[int], model: str = "identity") -> None:
        self.answers: Counter[int] = Counter()
        self.told_to_retry = 0
        self.broken: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(port, model, count)) for count in rows
        ]

    def _ask(self, port: int, model: str, rows: int) -> None:
        width = 1000 if model == "identity" else 4
        given = {
            "name": "x",
            "shape": [rows, width],
            "datatype": "FP32",
            "parameters": {"binary_data_size": 4 * rows * width},
        }
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        body = head + bytes(4 * rows * width)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        while not self._over.is_set():
            try:
                connection.request("POST", f"/v2/models/{model}/infer", body, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            with self._lock:
                self.answers[answer.status] += 1
                retry = answer.getheader("Retry-After") is not None and b"error" in text
                self.told_to_retry += answer.status == 503 and retry
            if answer.status == 503:
                time.sleep(0.05)
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def check(self) -> None:
        """Check that every request was answered, or was told to be tried again."""
        assert not self.broken
        assert set(self.answers) <= {200, 503}
        assert self.answers[503] == self.told_to_retry


class TestTwoReplicas:
    def test_clients_of_the_protocol_get_their_answers(self, two: Deployed) -> None:
        import tritonclient.http as triton

        array = np.random.default_rng(0).standard_normal((2, 1000), np.float32)
        with triton.InferenceServerClient(f"127.0.0.1:{two.http}") as client:
            assert client.is_server_ready()
            wanted = triton.InferInput("x", [2, 1000], "FP32")
            wanted.set_data_from_numpy(array)
            np.testing.assert_array_equal(client.infer("identity", [wanted]).as_numpy("y"), array)

    def test_clients_of_grpc_get_their_answers(self, two: Deployed) -> None:
        import tritonclient.grpc as triton

        array = np.random.default_rng(0).standard_normal((2, 1000), np.float32)
        with triton.InferenceServerClient(f"127.0.0.1:{two.grpc}") as client:
            wanted = triton.InferInput("x", [2, 1000], "FP32")
            wanted.set_data_from_numpy(array)
            np.testing.assert_array_equal(client.infer("identity", [wanted]).as_numpy("y"), array)

    def test_answers_are_those_of_a_server_that_stands_alone(
        self, two: Deployed, bundle: Path
    ) -> None:
        body = json.dumps(
            {
                "id": "7",
                "inputs": [
                    {"name": "x", "shape": [1, 1000], "datatype": "FP32", "data": [0.5] * 1000}
                ],
            }
        ).encode()
        with ServerThread(place_of(bundle)) as alone:
            for path, sent in (
                ("/v2", None),
                ("/v2/health/ready", None),
                ("/v2/models/identity", None),
                ("/v2/models/identity/infer", body),
            ):
                assert asked(two.http, path, sent) == asked(alone.http_port, path, sent)

    def test_the_metrics_are_every_replica_s(self, two: Deployed) -> None:
        url = f"http://127.0.0.1:{two.http}/metrics"

        def complete() -> bool:
            """Whether both replicas have answered; one that takes too long is left out."""
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
            lines = [line for line in text.splitlines() if line.startswith("nv_inference_count{")]
            names = list(replicas())
            return len(lines) == len(names) == 2 and all(
                any(f'replica="{name}"' in line for line in lines) for name in names
            )

        eventually(complete)

    def test_a_serving_process_that_is_killed_leaves_nobody_without_an_answer(
        self, two: Deployed
    ) -> None:
        before = both()
        supervisor = next(iter(before.values())).pid
        with Clients(two.http, SIZES) as clients:
            eventually(lambda: clients.answers[200] > 200)
            (served,) = children(supervisor)
            os.kill(served, signal.SIGKILL)
            eventually(lambda: bool(children(supervisor)) and children(supervisor) != [served])
            counted = clients.answers[200]
            eventually(lambda: clients.answers[200] > counted + 500)
        clients.check()
        eventually(lambda: replicas() == before)  # one that was busy may be forgotten for a while

    def test_a_replica_that_is_killed_leaves_nobody_without_an_answer(self, two: Deployed) -> None:
        before = both()
        actor = parent(next(iter(before.values())).pid)
        with Clients(two.http, SIZES) as clients:
            eventually(lambda: clients.answers[200] > 200)
            os.kill(actor, signal.SIGKILL)
            eventually(lambda: len(set(replicas()) - set(before)) == 1)
            counted = clients.answers[200]
            eventually(lambda: clients.answers[200] > counted + 500)
        clients.check()


def test_when_requests_queue_up_there_come_to_be_more_replicas(
    cluster: str, tmp_path: Path
) -> None:
    slow_bundle = bundle_of(tmp_path, slow(tmp_path), "slow")
    with Deployed(slow_bundle, cluster, 1, 2) as deployed:
        deployed.wait_for("ready")
        assert len(replicas()) == 1
        with Clients(deployed.http, [1] * 48, "slow") as clients:
            eventually(lambda: len(replicas()) == 2)
        clients.check()
    assert deployed.process.returncode == 0, deployed.lines


def monitor_of(port: int) -> dict[str, float]:
    """The evidence about changed answers, as the door's metrics tell it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("hasten_monitor_") and 'replica="all"' in line:
            found[line.partition("{")[0].removeprefix("hasten_monitor_")] = float(line.split()[-1])
    return found


def class_of(port: int, row: list[float]) -> int:
    """The class that the door answers for a row."""
    given = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}
    body = json.dumps({"inputs": [given]}).encode()
    _, answer = asked(port, "/v2/models/watched/infer", body)
    return int(np.argmax(answer["outputs"][0]["data"]))


def test_what_replicas_audit_adds_up_until_the_exact_model_answers_on_each(
    cluster: str, tmp_path: Path
) -> None:
    watched, state = certified(tmp_path / "bundle"), str(tmp_path / "state")
    with Deployed(watched, cluster, 2, 2, state=state) as deployed:
        deployed.wait_for("ready")
        both()
        right = class_of(deployed.http, SAME)
        for _ in range(20):
            assert class_of(deployed.http, SAME) == right
        eventually(lambda: monitor_of(deployed.http).get("audited", 0) == 21)
        assert monitor_of(deployed.http)["alarm"] == 0
        wrong = class_of(deployed.http, OTHER)

        def alarmed() -> bool:
            class_of(deployed.http, OTHER)
            return monitor_of(deployed.http)["alarm"] == 1

        eventually(alarmed)

        eventually(exact_answers(deployed.http, wrong))
        counted = monitor_of(deployed.http)["audited"]
    assert deployed.process.returncode == 0, deployed.lines
    with Deployed(watched, cluster, 2, 2, state=state) as again:  # what was seen survives the door
        again.wait_for("ready")
        eventually(exact_answers(again.http, wrong))
        assert monitor_of(again.http)["alarm"] == 1
        assert monitor_of(again.http)["audited"] >= counted
    assert again.process.returncode == 0, again.lines


def exact_answers(port: int, wrong: int) -> Callable[[], bool]:
    """Whether twenty answers in a row are not the fast model's."""
    return lambda: all(class_of(port, OTHER) != wrong for _ in range(20))


def test_clients_have_their_own_rights_and_new_ones_are_taken_up(
    cluster: str, bundle: Path, tmp_path: Path
) -> None:
    def write(name: str) -> None:
        beside = tmp_path / "new.toml"
        beside.write_text(f'[one]\nscopes = ["read"]\ntoken = "a-word-for-{name}"\n')
        beside.chmod(0o600)
        beside.rename(tmp_path / "tokens.toml")

    def status(path: str, name: str) -> int:
        headers = {"Authorization": f"Bearer a-word-for-{name}"}
        connection = http.client.HTTPConnection("127.0.0.1", deployed.http, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

    write("readers")
    with Deployed(bundle, cluster, 2, 2, tokens=tmp_path / "tokens.toml") as deployed:
        deployed.wait_for("ready")
        for path in ("/v2", "/metrics"):
            assert [status(path, name) for name in ("readers", "others")] == [200, 401]
        write("others")
        for path in ("/v2", "/metrics"):
            eventually(lambda path=path: {status(path, "others") for _ in range(8)} == {200})  # type: ignore[misc]
            assert {status(path, "readers") for _ in range(8)} == {401}
    assert deployed.process.returncode == 0, deployed.lines


def test_a_bundle_that_can_t_be_served_says_why(cluster: str, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.hasten"
    shutil.copytree(bundle, copy)
    (copy / "manifest.json").write_text("{}")
    with Deployed(copy, cluster, 1, 1) as deployed:
        deployed.process.wait(PATIENCE_S)
    assert deployed.process.returncode == 2
    assert [line for line in deployed.lines if line.startswith("error: ")]


def test_a_cluster_that_isn_t_there_is_said_in_one_line(bundle: Path) -> None:
    with Deployed(bundle, "127.0.0.1:1", 1, 1) as deployed:
        deployed.process.wait(PATIENCE_S)
    (line,) = [line for line in deployed.lines if line.startswith("error: ")]
    assert line == (
        "error: no Ray cluster answers at 127.0.0.1:1: [Errno 111] Connection refused; start one with "
        "`ray start --head`, and run this on one of its nodes"
    )
    assert deployed.process.returncode == 2
