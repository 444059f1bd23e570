"""The fuzzers find what they are made to find, and find nothing in a few inputs for each surface."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz.__main__ as command
import pytest
from fuzz import crowd, isolated, sanitized_kernels, served
from fuzz.corpus import harmful
from fuzz.messages import fields, written
from fuzz.open_lengths import MODELS
from fuzz.served import Running, Served
from fuzz.surface import SURFACES, Fault, Surface, checked, input_of, surface_of
from fuzz.surfaces import http
from fuzz.surfaces.grpc_calls import Streams, apart, framed
from fuzz.surfaces.lengths import Lengths
from fuzz.surfaces.media import Media

from hasten.engines.compiled.source import Source, write
from hasten.errors import InputError

FEW = 25
VERY_FEW = {"pt2": 5, "tflite": 5}
"""Number of inputs where each takes much longer."""


class Planted(Surface):
    """What an input does is what it says."""

    name = "planted"
    most_mib = 24

    def seeds(self) -> list[bytes]:
        return [b"nothing"]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        return b"%d" % rng.randrange(1000)

    def check(self, data: bytes) -> str:
        match data:
            case b"crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"hang":
                signal.pause()
            case b"raise":
                raise InputError("this was not caught")
            case b"fault":
                raise Fault("an answer that is none")
            case b"memory":
                assert len(b"x" * (80 << 20))
        return "read"


def test_each_kind_of_harm_is_found_and_the_other_inputs_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [b"1", b"crash", b"2", b"raise", b"memory", b"3", b"fault"]

    outcome = isolated.attack(Planted(tmp_path), inputs)

    assert outcome.counts == {"read": 3, "FOUND": 4}
    found = {each.data: (each.kind, each.cause) for each in outcome.findings}
    assert found[b"crash"] == ("crash", "crash: the process died: signal 9")
    assert found[b"fault"] == ("fault", "fault: an answer that is none")
    assert found[b"memory"][0] == "memory"
    assert found[b"raise"][1].startswith("fault: InputError at test_fuzzers.py:")
    monkeypatch.setattr(isolated, "_PATIENCE_S", 0.2)
    (hang,) = isolated.attack(Planted(tmp_path), [b"hang"]).findings
    assert hang.kind == "hang"


def test_the_command_keeps_what_it_finds_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SURFACES, "planted", f"{__name__}:Planted")
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "planted-0"
    kept.write_bytes(b"fault")

    def ended(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fuzz", *words])
        monkeypatch.setattr(os, "nice", lambda by: 0)
        with pytest.raises(SystemExit) as end:
            command.main()
        return int(end.value.code or 0)

    assert ended("--only", "planted", "--count", "300") == 0
    assert capsys.readouterr().out.startswith("planted: 300 inputs in ")
    assert ended(str(kept)) == 1
    (file,) = tmp_path.glob("findings/planted-*[!t]")
    assert file.read_bytes() == b"fault"
    assert file.with_suffix(".txt").read_text() == "fault\nan answer that is none\n"


def test_an_input_follows_from_its_seed_and_number(tmp_path: Path) -> None:
    surface = Planted(tmp_path)
    twice = [[input_of(surface, [b""], 1, at) for at in range(9)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0] != [input_of(surface, [b""], 2, at) for at in range(9)]


def test_a_message_that_is_taken_apart_is_put_together_as_it_was(tmp_path: Path) -> None:
    calls = surface_of("grpc", tmp_path)
    found = [seed.partition(b"\n")[2] for seed in calls.seeds()]
    assert [written(fields(data) or []) for data in found] == found


class Harmful(Served):
    """Inputs that stop the server for a while, or make it take memory."""

    name = "harmful"

    def seeds(self) -> list[bytes]:
        return [b"nothing"]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        return seed

    def check(self, data: bytes) -> str:
        pid = self.running.server.serving_pid()
        match data:
            case b"wait":
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.6)
                os.kill(pid, signal.SIGCONT)
            case b"memory" | b"more":
                size = 40 << 20 if data == b"memory" else 62 << 20
                body = http.request("v2/models/tiny/infer", bytes(size))
                with socket.create_connection(("127.0.0.1", self.running.server.http_port)) as one:
                    one.sendall(body)
                    assert one.recv(100).startswith(b"HTTP/1.1 413 ")
            case b"crash":
                os.kill(pid, signal.SIGKILL)
        return "answered"


@pytest.mark.slow
def test_who_makes_others_wait_takes_memory_or_ends_the_server_is_found_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MOST_KIB", 16 << 10)
    monkeypatch.setattr(served, "MOST_WAIT_S", 0.5)  # a busy machine may take longer than 0.05 s
    bundles = served.bundles
    monkeypatch.setattr(served, "bundles", lambda folder: bundles(folder)[:1])  # it starts often
    with Running(tmp_path) as server:
        surface = Harmful(tmp_path)
        surface.running = server
        inputs = [b"1", b"wait", b"2", b"memory", b"3", b"crash", b"4"]
        found = served.attack(surface, inputs).findings
    assert {(each.kind, each.data) for each in found} >= {
        ("wait", b"wait"),
        ("memory", b"memory"),
        ("crash", b"crash"),
    }
    assert {each.data for each in found} <= {b"wait", b"memory", b"crash"}


class Owning(Harmful):
    """Inputs of which one takes what the models' own data does."""

    name = "owning"

    def own(self) -> list[bytes]:
        return [b"memory"]


@pytest.mark.slow
def test_only_memory_beyond_what_the_models_own_data_takes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MOST_KIB", 16 << 10)
    monkeypatch.setattr(served, "MOST_WAIT_S", 5.0)
    bundles = served.bundles
    monkeypatch.setattr(served, "bundles", lambda folder: bundles(folder)[:1])
    with Running(tmp_path) as server:
        surface = Owning(tmp_path)
        surface.running = server
        found = served.attack(surface, [b"1", b"memory", b"more"]).findings
    assert [(each.kind, each.data) for each in found] == [("memory", b"more")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("served"), watched=False) as server:
        yield server


def found_by(surface: Surface, inputs: list[bytes]) -> list[str]:
    """Say what a few inputs do; how long others wait meanwhile is told by `make fuzz` alone."""
    if isinstance(surface, Served):
        told = [(checked(surface, data)[1], data) for data in inputs]
        return [f"{why}: {data!r:.300}" for why, data in told if why]
    ended = isolated.attack(surface, inputs).findings
    return [f"{each.why}: {each.data!r:.300}" for each in ended if each.kind in ("fault", "crash")]


@pytest.mark.parametrize("name", ["pictures", "sounds", "texts", "rows"])
def test_a_good_file_is_answered_in_each_way_in_which_a_client_may_send_it(
    name: str, tmp_path: Path, running: Running
) -> None:
    surface = surface_of(name, tmp_path)
    assert isinstance(surface, Media)
    surface.running = running
    first = {data.split()[0].decode(): data for data in reversed(surface.seeds())}
    words = {way: set(surface.check(data).split()) for way, data in first.items()}
    assert words.pop("grpc-gzip") == {"refused"}  # the server takes no message that gRPC compressed
    assert len(words) == 8
    for way, said in words.items():
        assert said == ({"200"} if way.startswith("http") else {"answered"}), way


def test_requests_of_the_data_of_open_lengths_are_answered_in_each_way(
    tmp_path: Path, running: Running
) -> None:
    surface = Lengths(tmp_path)
    surface.running = running
    assert {surface.check(data) for data in surface.seeds()} == {"200", "answered"}
    answered = {json.loads(data)["model"] for data in surface.own() if surface.check(data) == "200"}
    assert answered == {model.name for model in MODELS}


@pytest.mark.parametrize("name", SURFACES)
def test_a_few_inputs_do_no_harm(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    surface = surface_of(name, tmp_path)
    if isinstance(surface, Served):
        surface.running = request.getfixturevalue("running")
    seeds = surface.seeds()

    assert found_by(surface, seeds) == []
    once = harmful(surface)
    if name == "streams":  # a twentieth of 3 GB of answers; all of them in the next test
        once = [framed(apart(data)[:80]) for data in once]
    assert found_by(surface, once) == []
    assert (
        found_by(
            surface, [input_of(surface, seeds, 0, at) for at in range(VERY_FEW.get(name, FEW))]
        )
        == []
    )


@pytest.mark.seconds
def test_as_many_requests_as_a_stream_may_send_do_no_harm(tmp_path: Path, running: Running) -> None:
    surface = Streams(tmp_path)
    surface.running = running
    (whole,) = harmful(surface)
    assert len(apart(whole)) > 500
    assert found_by(surface, [whole]) == []


@pytest.mark.slow
def test_kernels_of_bytes_stay_within_their_memory_and_equal_integers() -> None:
    sound, damaged = sanitized_kernels.run(3, 1)
    assert (sound, damaged) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain C", "as it ships, before a page"])
def test_kernels_that_leave_their_memory_are_found(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def short(*given: Any) -> Source:
        nonlocal written
        written += 1
        source = write(*given)
        return replace(source, arena_bytes=0) if written == 1 + (way != "plain C") else source

    monkeypatch.setattr(sanitized_kernels, "write", short)
    with pytest.raises(SystemExit, match=f"{way}.*ended with"):
        sanitized_kernels.run(1, 2)


@pytest.mark.parametrize(
    ("status", "body", "place", "why"),
    [
        (200, b"right", 0, ""),
        (400, b'{"error": "no picture"}', -1, ""),
        (500, b'{"error": "x"}', -1, "status 500"),
        (200, b"wrong", 0, "a good request was answered by 200"),
        (400, b'{"error": "\\u001b[2J"}', -1, "a message that a terminal can't show"),
    ],
)
def test_a_crowds_answer_that_may_not_come_is_told(
    status: int, body: bytes, place: int, why: str
) -> None:
    found = crowd.fault(status, body, place, b"right")
    assert found.startswith(why)
    assert bool(found) == bool(why)


@pytest.mark.seconds
def test_a_crowd_of_changed_requests_finds_nothing() -> None:
    command = [sys.executable, "-m", "fuzz.crowd", "--requests", "300"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("300 requests in ")
    assert all(f"{kind}: " in ran.stdout for kind in ("colour", "squares", "text", "row"))
