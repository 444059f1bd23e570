"""The comparison of servers runs once, untimed, with the floor alone; and its client is held to its word."""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from tests.support.waiting import until

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], Any]

for _needed in ("httptools", "uvicorn", "uvloop"):
    pytest.importorskip(_needed)


@pytest.mark.parametrize("file", ["servers/peers/model.txt", "triton_chain/requirements.txt"])
def test_environments_beside_hastens_have_all_that_it_needs(file: str) -> None:
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    lines = (BENCHMARKS / file).read_text().splitlines()
    given = {Requirement(line.partition("#")[0]).name for line in lines if line[0] != "#"}
    assert {Requirement(one).name for one in project["dependencies"]} <= given


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Import one of the benchmark's modules by name; no server has an environment of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "servers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    catalogue = importlib.import_module("catalogue")
    monkeypatch.setattr(catalogue, "ENVIRONMENTS", tmp_path / "environments")
    return importlib.import_module


@pytest.fixture
def subject(load: Load, tmp_path: Path) -> Iterator[Any]:
    subjects = load("subjects")
    bundle = subjects.identity_bundle(tmp_path / "identity.hasten")
    subject = subjects.Subject("identity", bundle, 0.0)
    yield subject
    subject.close()


@pytest.fixture
def floor(load: Load, subject: Any, tmp_path: Path) -> Iterator[Any]:
    """The floor, up."""
    processes, server = load("processes"), load("catalogue").SERVERS["floor"]
    folder = tmp_path / "servers"
    folder.mkdir()

    def first(server: Any) -> bytes:
        request: bytes = subject.request(server, server.ways[0])
        return request

    with processes.started([server], "identity", subject.bundle, folder, first) as (running, out):
        assert not out
        yield running["floor"]


@pytest.fixture
def client(load: Load) -> Iterator[Any]:
    client = load("turns").Client()
    yield client
    client.close()


def job(subject: Any, floor: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    way = floor.server.ways[0]
    requests = subject.lay_out(floor.server, way, folder)
    return {
        "port": floor.place.port,
        "format": way.format,
        "folder": str(requests),
        "warmup_s": 0.01,
        "duration_s": 0.1,
        "grace_s": 60.0,
        **settings,
    }


def test_the_floor_fills_the_table_and_who_has_no_environment_is_left_out_aloud(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    servers = load("servers")
    monkeypatch.setattr(servers, "SETTLE_S", 0.0)
    monkeypatch.setattr(servers, "IDLE_S", 0.05)
    out = tmp_path / "out.json"
    few = ("--rounds", "2", "--seconds", "0.05", "--json", str(out))
    monkeypatch.setattr(sys, "argv", ["servers.py", "floor", "litserve", *few])
    servers.main()
    printed = capsys.readouterr()
    assert printed.err == (
        "litserve is left out: it has no environment: servers.py --setup litserve makes it\n"
    )
    _, title, _, head, _, row, _, versions, client = printed.out.splitlines()
    assert title == "## identity"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["floor", "raw bytes"]
    assert cells[3] == "1.00x (1.00 to 1.00)"
    assert cells[6] == "100%"
    assert head.count("|") == row.count("|")
    assert versions.startswith("uvicorn ")
    assert client.startswith("The client used at most ")
    found = json.loads(out.read_text())["subjects"]["identity"]
    (rounds,) = found["rounds"].values()
    assert rounds["one"]["0"]["right"] > 0
    assert rounds["many"]["1"]["statuses"] == {"200": rounds["many"]["1"]["right"]}
    assert list(found["left_out"]) == ["litserve"]


def test_a_wrong_answer_is_told_from_a_right_one(
    load: Load, subject: Any, floor: Any, client: Any, tmp_path: Path
) -> None:
    asked = job(subject, floor, tmp_path / "requests", rate_per_s=1000.0)  # all 100 are asked
    file = tmp_path / "requests" / "expected.npy"
    expected = np.load(file)
    expected[3, 7] += 1
    np.save(file, expected)
    found = client.run(**asked)
    assert found["wrong"] > 0
    assert found["right"] > found["wrong"]
    assert found["right"] + found["wrong"] == found["asked"] == 100
    assert "wrong answers" in load("turns").Block.of(found).failed


def unread_bytes(port: int) -> int:
    """Bytes of requests that came to a port here and that its owner hasn't read. Source: proc(5), /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(row[4].split(":")[1], 16)
        for row in rows
        if row[1].endswith(f":{port:04X}") and row[3] == "01"  # established: no FIN, no listener
    )


@contextlib.contextmanager
def standing_still(floor: Any) -> Iterator[None]:
    """Stop the floor until it was asked, and 0.3 s more."""
    (pid,) = floor.processes()

    def go_on() -> None:
        try:
            until(lambda: unread_bytes(floor.place.port) > 0)
            time.sleep(0.3)
        finally:
            os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    went_on = threading.Thread(target=go_on)
    went_on.start()
    try:
        yield
    finally:
        went_on.join()


def test_a_block_of_a_closed_loop_has_an_answer_though_the_server_stands_still(
    subject: Any, floor: Any, client: Any, tmp_path: Path
) -> None:
    client.run(**job(subject, floor, tmp_path / "before"))  # it has its imports behind it then
    for turn in range(
        50
    ):  # a client that is held up may see the floor go on before its time is over
        with standing_still(floor):
            found = client.run(**job(subject, floor, tmp_path / f"requests-{turn}"))
        if found["elapsed_s"] > 0.1:
            break
    assert found["right"] > 0
    assert found["elapsed_s"] > 0.1
    assert found["unanswered"] == found["wrong"] == 0


def test_at_a_fixed_rate_what_is_due_while_a_server_stands_still_counts_as_late(
    subject: Any, floor: Any, client: Any, tmp_path: Path
) -> None:
    client.run(**job(subject, floor, tmp_path / "before"))  # it has its imports behind it then
    settings = {"rate_per_s": 200.0, "duration_s": 0.5, "clients": 2, "most_connections": 2}
    with standing_still(floor):
        found = client.run(**job(subject, floor, tmp_path / "requests", **settings))
    assert found["asked"] == found["right"] == len(found["latency_ns"]) == 100
    assert found["unanswered"] == found["wrong"] == 0
    assert sum(ns > 100_000_000 for ns in found["latency_ns"]) > 10  # 2 are under way


def test_nobody_there_is_an_error_and_no_hang(
    load: Load, subject: Any, floor: Any, client: Any, tmp_path: Path
) -> None:
    asked = job(subject, floor, tmp_path / "requests", clients=2)
    found = client.run(**{**asked, "port": load("handed").free_port()})
    assert found["error"].startswith("ConnectionRefusedError: ")


@pytest.mark.parametrize("name", ["raw", "json", "form", "open-json", "open-binary"])
def test_a_format_carries_every_float32_as_it_is(load: Load, name: str) -> None:
    formats = load("formats")
    array = np.random.default_rng(0).standard_normal((1, 5), np.float32)
    names = formats.Names("model", "x", "y", array.nbytes)
    request = formats.FORMATS[name].request("/{model}", formats.Ask(names, array))
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /model HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    answers = {
        "json": lambda: json.dumps({"data": array[0].tolist()}).encode(),
        "open-json": lambda: json.dumps({"outputs": [{"data": array[0].tolist()}]}).encode(),
        "open-binary": lambda: b'{"outputs": []}' + array.tobytes(),
    }
    answer = answers.get(name, array.tobytes)()
    assert (formats.FORMATS[name].numbers(answer, 5) == array[0]).all()
    assert array.tobytes() in body or json.dumps(array[0].tolist()).encode() in body


def test_answers_too_alike_to_be_told_apart_are_refused(load: Load) -> None:
    expected = np.array([[1.0, 2.0], [3.0, 4.0], [1.01, 2.0]])
    with pytest.raises(ValueError) as refusal:
        load("subjects").check_distinct(expected, 0.02)
    assert str(refusal.value) == (
        "the answer to request 0 is too like another's to be told from it"
    )


def test_who_answers_wrong_once_is_asked_no_more(load: Load) -> None:
    turns = load("turns")
    good = turns.Block(1e6, 2e6, 1000.0, 10)
    asked: list[int] = []

    def fails(clients: int) -> Any:
        asked.append(clients)
        return turns.Block(failed="3 wrong answers")

    said: list[str] = []
    found = turns.take_turns({"a": lambda _: good, "b": fails}, 5, 16, said.append)
    assert asked == [1]
    assert said == ["b falls out: 3 wrong answers"]
    assert found["a"].p50_over(found["a"]).estimate == pytest.approx(1.0)
    assert found["a"].rate.estimate == pytest.approx(1000.0)
