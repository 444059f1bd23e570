"""The server of these sources beside that of another checkout: the same model, the same client, in turns.

    git worktree add --detach ../before COMMIT
    python benchmarks/servers_before.py ../before [--ways gRPC] [--starts N] [--rounds N] [--seconds S]

Each start has three servers, in random order: one of these sources, and two of the checkout, whose ratio shows
what a difference means. They serve 16 float32 that come back as they are. One server is asked at a time, for a
fraction of a second: JSON, tensors as bytes after JSON, and gRPC, each by one client and by 16. A ratio is of two
neighboring turns. Servers of the same code differ from start to start, so many starts say more than many rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from hasten.core.telemetry import OFF
from hasten.serving.protocol.messages import SERVICE, message

HERE = Path(__file__).resolve().parents[1]
NOW, BEFORE, AGAIN = "now", "before", "before again"
JSON, BYTES, GRPC = "JSON", "tensors as bytes", "gRPC"
WAYS = (JSON, BYTES, GRPC)
CLIENTS = (1, 16)
WARM_UP = 0.2
"""Share of a turn that isn't timed at its beginning."""
X = np.arange(16, dtype=np.float32).reshape(1, 16)
READY_S = 120.0
MAKE = """
import sys
from pathlib import Path
import onnx
from tests.support.servers import bundle_of, with_curve

folder = Path(sys.argv[1])
folder.mkdir()
text = '<ir_version: 10, opset_import: ["": 17]>'
text += "identity (float[batch, 16] x) => (float[batch, 16] y) { y = Identity(x) }"
onnx.save(onnx.parser.parse_model(text), folder / "identity.onnx")
bundle_of(folder, folder / "identity.onnx", extra=with_curve({1: 0.02, 16: 0.03, 32: 0.04}))
"""
"""A bundle is made by the sources that serve it: earlier ones can't read all that later ones write. It states
what batches take: by what a server measures at its start, batches run on the loop's thread in one start, and
elsewhere in the next."""
SERVE = "import sys; from hasten.cli import main; sys.exit(main())"

Ask = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Turn:
    """What one turn of a server came to.

    Attributes:
        p50_ns: Median latency.
        rate_per_s: Answers per second.
        processor_ns: Processor time of the server for each answer.
    """

    p50_ns: float
    rate_per_s: float
    processor_ns: float


@dataclass
class Running:
    """A server that is up.

    Attributes:
        name: Which server it is.
        http: Port of HTTP.
        grpc: Port of gRPC.
        process: Its process, which has the serving one as a child.
        asks: Way -> what its clients call, each on a connection of its own.
    """

    name: str
    http: int
    grpc: int
    process: subprocess.Popen[bytes]
    asks: dict[str, list[Ask]] = field(default_factory=dict)

    def processor_ns(self) -> int:
        """Return the processor time that its threads have had so far."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total = 0
        for one in (str(pid), *children):
            for thread in Path(f"/proc/{one}/task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((thread / "schedstat").read_text().split()[0])
        return total


class Http(asyncio.Protocol):
    """Client of HTTP that has one request at a time."""

    def __init__(self) -> None:
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Take a piece of the answer."""
        self._came += data
        head, _, body = self._came.partition(b"\r\n\r\n")
        size = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
        if size and len(body) >= int(size):
            self._came = b""
            if not head.startswith(b"HTTP/1.1 200"):
                self._answered.set_exception(RuntimeError(f"the server answers {body!r:.300}"))
            else:
                self._answered.set_result(body)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a request; return what will have the answer's body."""
        self._answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answered


def http_request(way: str) -> bytes:
    """Return a whole request of HTTP."""
    tensor: dict[str, Any] = {"name": "x", "shape": list(X.shape), "datatype": "FP32"}
    if way == JSON:
        body = json.dumps({"inputs": [{**tensor, "data": X[0].tolist()}]}).encode()
        headers = "Content-Type: application/json"
    else:
        asked = {
            "inputs": [{**tensor, "parameters": {"binary_data_size": X.nbytes}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
        head = json.dumps(asked).encode()
        body = head + X.tobytes()
        headers = f"Inference-Header-Content-Length: {len(head)}"
    lines = ("POST /v2/models/m/infer HTTP/1.1", "Host: 127.0.0.1", headers)
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def grpc_request() -> bytes:
    """Return a message of gRPC."""
    tensor = message("ModelInferRequest.InferInputTensor")(name="x", datatype="FP32", shape=X.shape)
    asked = message("ModelInferRequest")(
        model_name="m", inputs=[tensor], raw_input_contents=[X.tobytes()]
    )
    return bytes(asked.SerializeToString())


async def ask_of(running: Running, way: str) -> Ask:
    """Open a connection; return what asks on it."""
    if way == GRPC:
        alone = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc}", options=alone)
        call, data = channel.unary_unary(f"/{SERVICE}/ModelInfer"), grpc_request()
        return lambda: call(data)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Http, "127.0.0.1", running.http)
    request = http_request(way)
    return lambda: client.ask(request)


async def turn(running: Running, way: str, clients: int, seconds: float) -> Turn:
    """Let clients ask a server for a while, each again once it is answered."""
    asks = running.asks.setdefault(way, [])
    while len(asks) < clients:
        ask = await ask_of(running, way)
        if X.tobytes() not in await ask() and way != JSON:
            raise RuntimeError(f"the server {running.name!r} answers something else")
        asks.append(ask)

    async def ask_until(ask: Ask, end_ns: int) -> list[int]:
        spans_ns = []
        while (begin_ns := time.perf_counter_ns()) < end_ns or not spans_ns:
            await ask()
            spans_ns.append(time.perf_counter_ns() - begin_ns)
        return spans_ns

    async def block(block_s: float) -> list[int]:
        end_ns = time.perf_counter_ns() + round(1e9 * block_s)
        found = await asyncio.gather(*(ask_until(ask, end_ns) for ask in asks[:clients]))
        return [span_ns for each in found for span_ns in each]

    await block(WARM_UP * seconds)
    used_ns, begin_ns = running.processor_ns(), time.perf_counter_ns()
    spans_ns = await block(seconds)
    elapsed_ns = time.perf_counter_ns() - begin_ns
    used_ns = running.processor_ns() - used_ns
    count = len(spans_ns)
    return Turn(float(np.median(spans_ns)), 1e9 * count / elapsed_ns, used_ns / count)


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which a checkout's sources run."""
    return {**os.environ, **OFF, "PYTHONPATH": os.pathsep.join([f"{checkout}/src", str(checkout)])}


def bundle_by(checkout: Path, path: Path) -> Path:
    """Write the bundle with a checkout's sources, into a new folder; return it."""
    command = [sys.executable, "-c", MAKE, path]
    subprocess.run(command, cwd=checkout, env=environment(checkout), check=True)
    return path / "identity.hasten"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served(name: str, checkout: Path, bundle: Path, log: Path) -> Iterator[Running]:
    """Serve a bundle with a checkout's sources.

    Raises:
        RuntimeError: the server doesn't come up; the message has its output.
    """
    ports = free_port(), free_port()
    options = ["--http", str(ports[0]), "--grpc", str(ports[1])]
    command = [sys.executable, "-c", SERVE, "serve", f"m={bundle}", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment(checkout), stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + READY_S
        while not is_ready(ports[0]):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server {name!r} isn't ready: {log.read_text()[-1000:]}")
            time.sleep(0.1)
        yield Running(name, *ports, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def is_ready(port: int) -> bool:
    """Whether a server answers that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


async def start(
    checkout: Path, bundles: dict[Path, Path], lengths: argparse.Namespace, rng: random.Random
) -> dict[str, dict[str, list[Turn]]]:
    """Start the servers and let them take turns.

    Args:
        checkout: Folder with the other sources.
        bundles: Folder of sources -> the bundle that they made.
        lengths: Ways to ask, rounds and seconds, from the command line.
        rng: Random numbers for the order.

    Returns:
        Way to ask -> server -> its turns, by round.
    """
    found: dict[str, dict[str, list[Turn]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        wanted = [(NOW, HERE), (BEFORE, checkout), (AGAIN, checkout)]
        rng.shuffle(wanted)
        servers = [
            stack.enter_context(served(name, of, bundles[of], Path(folder) / f"{number}.txt"))
            for number, (name, of) in enumerate(wanted)
        ]
        for _ in range(lengths.rounds):
            for way in lengths.ways:
                for clients in CLIENTS:
                    rng.shuffle(servers)
                    for one in servers:
                        turns = found.setdefault(asked_by(way, clients), {})
                        one_turn = await turn(one, way, clients, lengths.seconds)
                        turns.setdefault(one.name, []).append(one_turn)
    return found


def asked_by(way: str, clients: int) -> str:
    """Return how a server is asked, in words."""
    return f"{way}, {clients} {'client' if clients == 1 else 'clients'}"


def ratios(starts: list[dict[str, list[Turn]]], of: str, attribute: str) -> list[float]:
    """Return the ratio of a server to the one before, of each start: the median of its rounds."""
    return [
        float(
            np.median(
                [
                    getattr(one, attribute) / getattr(other, attribute)
                    for one, other in zip(turns[of], turns[BEFORE], strict=True)
                ]
            )
        )
        for turns in starts
    ]


def in_words(found: list[float]) -> str:
    """Return the median of ratios, and their quartiles."""
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def report(starts: list[dict[str, dict[str, list[Turn]]]]) -> str:
    """Return a table of ratios to the server before; those of its own code are in the lines "before again"."""
    rows = [
        ["asked by", "server", "p50", "answers per second", "processor time per answer"],
        ["---"] * 5,
    ]
    for asked in starts[0]:
        for name in (NOW, AGAIN):
            of = [each[asked] for each in starts]
            columns = ("p50_ns", "rate_per_s", "processor_ns")
            rows.append([asked, name, *(in_words(ratios(of, name, each)) for each in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def measured(lengths: argparse.Namespace) -> list[dict[str, dict[str, list[Turn]]]]:
    """Measure as the command line says; tell at once when a start is measured."""
    rng, found, starts = random.Random(), [], lengths.starts
    checkout = lengths.checkout.resolve()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            of: bundle_by(of, Path(folder) / str(number))
            for number, of in enumerate((HERE, checkout))
        }
        for number in range(starts):
            found.append(await start(checkout, bundles, lengths, rng))
            print(f"start {number + 1} of {starts} is measured", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder with the other sources")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="ways of asking")
    parser.add_argument("--starts", type=int, default=10, help="number of times that all start")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each start")
    parser.add_argument("--seconds", type=float, default=0.15, help="length of each turn")
    parser.add_argument("--json", type=Path, help="file for the turns, as JSON")
    options = parser.parse_args()
    found = uvloop.run(measured(options))
    print(report(found))
    if options.json is not None:
        plain = [
            {
                asked: {name: [asdict(one) for one in turns] for name, turns in by_name.items()}
                for asked, by_name in each.items()
            }
            for each in found
        ]
        options.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
