"""What the servers serve: a bundle, requests to it, and what they must be answered with."""

from __future__ import annotations

import http.client
import json
import os
import sys
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests' own pieces

from catalogue import Server, Way
from formats import FLOAT32, FORMATS, Ask, Names
from tally import EXPECTED, REQUESTS
from tests.support.bundles import built, stated

import hasten
from hasten.bundle import read, write
from hasten.engines.onnxruntime.engine import OnnxRuntime

NUMBERS = 1000
REQUESTS_EACH = 8
"""Different ones, asked in turn: an answer to another request must be told from the right one."""
_IDENTITY = f"""
<ir_version: 10, opset_import: ["": 17]>
identity (float[batch, {NUMBERS}] x) => (float[batch, {NUMBERS}] y) {{ y = Identity(x) }}"""
_COARSE = 4
"""Cells along an image's edge, each of a colour: noise alone looks the same to a network."""


def identity_bundle(path: Path) -> Path:
    """Write a bundle that gives back its 1,000 float32: what is left of a request is the server's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "identity.onnx"
        onnx.save(onnx.parser.parse_model(_IDENTITY), file)
        winner = built(Path(folder), file, OnnxRuntime(threads=1))
        write(path, stated(winner, winner, status="exact"), {}, {})
    return path


class Subject:
    """A model and what it is asked.

    Args:
        name: Name of the model on the servers.
        bundle: Folder of a bundle with one float32 input; only its first output is read, float32
            too.
        tolerance: Error that an answer may have, as a share of its largest number.

    Attributes:
        alone: Function that asks the model in this process; takes the index of the request.
    """

    def __init__(self, name: str, bundle: Path, tolerance: float) -> None:
        self.name, self.bundle, self.tolerance = name, bundle, tolerance
        artifact = read(bundle).winner.artifact
        (spec,) = artifact.request
        rng = np.random.default_rng(0)
        self._arrays = [_drawn(spec.sizes, rng) for _ in range(REQUESTS_EACH)]
        self._fast = hasten.load(bundle)
        output = artifact.outputs[0].name
        answer_bytes = self._fast(self._arrays[0])[output].nbytes
        each = self._arrays[0].nbytes
        label = f"hasten-benchmark-{os.getpid()}-{name}"
        self._memory = SharedMemory(label, create=True, size=each * REQUESTS_EACH)
        for turn, array in enumerate(self._arrays):
            self._memory.buf[turn * each : (turn + 1) * each] = array.tobytes()
        self._names = Names(name, spec.name, output, answer_bytes, label)
        self._expected = np.stack([self._answer(turn).reshape(-1) for turn in range(REQUESTS_EACH)])
        check_distinct(self._expected, tolerance)
        self.alone: Callable[[int], object] = self._answer

    def _answer(self, turn: int) -> np.ndarray:
        found: np.ndarray = self._fast(self._arrays[turn % REQUESTS_EACH])[self._names.output]
        return found

    def request(self, server: Server, way: Way, turn: int = 0, timeout_us: int = 0) -> bytes:
        """Return a whole request; with 0 microseconds it has no deadline."""
        ask = Ask(self._names, self._arrays[turn], turn, timeout_us)
        return FORMATS[way.format].request(way.path, ask)

    def register(self, port: int) -> None:
        """Tell a server on 127.0.0.1 where the inputs lie in shared memory.

        Raises:
            RuntimeError: the server refuses the shared memory.
        """
        client = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"key": f"/{self._names.region}", "byte_size": self._memory.size})
        path = f"/v2/systemsharedmemory/region/{self._names.region}/register"
        client.request("POST", path, body)
        response = client.getresponse()
        if response.status != HTTPStatus.OK:
            raise RuntimeError(f"no shared memory: {response.read()!r}")
        client.close()

    def lay_out(self, server: Server, way: Way, folder: Path, timeout_us: int = 0) -> Path:
        """Write the requests, and what they must be answered with, into a new folder; return it."""
        folder.mkdir(parents=True)
        for turn in range(REQUESTS_EACH):
            request = self.request(server, way, turn, timeout_us)
            (folder / REQUESTS.format(turn)).write_bytes(request)
        numbers = self._names.answer_bytes // FLOAT32.itemsize
        echoed = np.stack([array.reshape(-1)[:numbers] for array in self._arrays])
        np.save(folder / EXPECTED, self._expected if server.serves else echoed)
        return folder

    def close(self) -> None:
        """Free the model and the memory."""
        self._fast.close()
        self._memory.close()
        self._memory.unlink()


def check_distinct(expected: np.ndarray, tolerance: float) -> None:
    """Check that no answer would pass for that to another request.

    Raises:
        ValueError: two are too alike.
    """
    for turn, one in enumerate(expected):
        others = np.delete(expected, turn, axis=0)
        if (np.abs(others - one) <= tolerance * np.abs(one).max()).all(axis=1).any():
            raise ValueError(
                f"the answer to request {turn} is too like another's to be told from it"
            )


def _drawn(sizes: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_normal(sizes, np.float32)
    if len(sizes) == 4:
        down, across = (np.arange(size) * _COARSE // size for size in sizes[2:])
        cells = rng.standard_normal((*sizes[:2], _COARSE, _COARSE), np.float32)
        drawn = 0.1 * drawn + cells[:, :, down][:, :, :, across]
    return np.ascontiguousarray(drawn, np.float32)
