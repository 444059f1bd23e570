"""Triton's own load generator asks a model, and a chain of models, as it asks Triton."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support import chains
from tests.support.chains import png, squares
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.serving.run import settings_of
from hasten.testing import models

pytestmark = pytest.mark.seconds

pytest.importorskip("perf_analyzer", reason="needs it: pip install perf-analyzer")
COMMAND = Path(sys.executable).with_name("perf_analyzer")
ASKED = 20
TRIES = 3
"""It waits forever, now and then, for a request that its own thread, which has ended, didn't count."""
BOXES = {(0, 0): "red", (2, 5): "green", (7, 7): "blue"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder = tmp_path_factory.mktemp("asked")
    chain = f"{chains.detector(folder)}+crop+{chains.classifier(folder)}"
    plain = bundle_of(folder, models.linear_classifier(folder), "plain")
    places = (*settings_of([f"plates={chain}"]).models, place_of(plain))
    with ServerThread(*places, grpc=True) as running:
        yield running


def asked(server: ServerThread, protocol: str, *arguments: str) -> str:
    """Return what the load generator prints."""
    url = server.grpc_url if protocol == "grpc" else server.host
    command: list[str | Path] = [
        COMMAND,
        "-u",
        url,
        "-i",
        protocol,
        "--request-count",
        str(ASKED),
        "-v",
        *arguments,
    ]
    for _ in range(TRIES - 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _printed(command)
    return _printed(command)


def _printed(command: Sequence[str | Path]) -> str:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            printed, _ = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # the command starts the program that asks
            raise
    assert running.returncode == 0, printed
    assert "rror" not in printed, printed  # its exit code is 0 if it got no answer
    return printed


def counted(printed: str, what: str) -> list[int]:
    """Return what it counted: its own requests, or what the server did after its first ones."""
    return [int(count) for count in re.findall(rf"  {what}: (\d+)", printed)]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_finds_out_what_a_model_takes_and_counts_its_answers(
    server: ServerThread, protocol: str
) -> None:
    printed = asked(server, protocol, "-m", "plain", "-b", "2", "--shape", "x:16")
    (requests,), (rows,) = counted(printed, "Request count"), counted(printed, "Inference count")
    assert requests == ASKED
    assert 0 < rows <= 2 * ASKED


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_shows_each_model_of_a_chain(
    server: ServerThread, protocol: str, tmp_path: Path
) -> None:
    picture = png(squares(BOXES))
    raw = len(picture).to_bytes(4, "little") + picture
    one = {"raw": {"content": {"b64": base64.b64encode(raw).decode()}, "shape": [1]}}
    (tmp_path / "pictures.json").write_text(json.dumps({"data": [one]}))
    printed = asked(server, protocol, "-m", "plates", "--input-data", f"{tmp_path}/pictures.json")
    chain, _, parts = printed.partition("Composing models:")
    assert counted(chain, "Request count") == [ASKED]
    names = re.findall(r"^ *(\S+), version: 1$", parts, re.MULTILINE)
    assert sorted(names) == ["plates.colour", "plates.det"]
    colours, boxes = counted(parts, "Inference count")
    assert 0 < boxes <= ASKED
    assert boxes < colours <= len(BOXES) * ASKED
