"""Rows of a table through a small network: bound calls, rows in each form, batches, and JSON over HTTP.

    python benchmarks/rows.py [--rounds N] [--json results.json]

The network is a 30-64-32-1 of random weights on the engine `compiled`, behind the step `row` and before
`threshold`. Rows rotate, ways take turns in blocks, and ratios are of the same round, with the range of
half of the rounds. Over HTTP one client asks one process in turn, request by request: a row's JSON, hasten's own
smallest route, and two echoes of the same body on the same event loop: by hasten's own server, which receives and
checks it as it does every request but asks no model, and by bare httptools, which checks nothing. The last table has
the whole path of one row as JSON.
pandas is measured where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import onnx
import uvloop
from onnx import helper, numpy_helper
from unsearched import unsearched

import hasten
from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.onnx import load as load_onnx
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.serving.http.connection import Connection as HttpConnection
from hasten.serving.models.opening import ModelSettings
from hasten.serving.server import Server
from hasten.serving.settings import ModelPlace, ServerSettings

SIZES = (30, 64, 32, 1)
COLUMNS = tuple(f"column_{place}" for place in range(SIZES[0]))
ROWS, BLOCK, WARM, ASKED = 100, 100, 3000, 40
BATCHES = (64, 256, 1024, 4096, 16384)
ROW, SMALLEST = "a row's JSON", "hasten's smallest route"
OWN_ECHO, ECHO = "hasten's server without a model, an echo", "bare echo"


def network(path: Path) -> Path:
    """Write dense layers of random weights."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for place, (wide, narrow) in enumerate(itertools.pairwise(SIZES)):
        matrix = rng.standard_normal((wide, narrow), np.float32) / wide**0.5
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{place}"))
        weights.append(
            numpy_helper.from_array(rng.standard_normal(narrow, np.float32), f"b{place}")
        )
        nodes.append(helper.make_node("Gemm", [last, f"w{place}", f"b{place}"], [f"g{place}"]))
        final = place == len(SIZES) - 2
        last = "y" if final else f"r{place}"
        nodes.append(helper.make_node("Sigmoid" if final else "Relu", [f"g{place}"], [last]))
    ends = [
        [helper.make_tensor_value_info(name, 1, ["n", size])]
        for name, size in (("x", SIZES[0]), ("y", SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "network", *ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def bundle(folder: Path) -> Path:
    """Write a bundle of the network on the engine `compiled`, without a search."""
    target = Target.host()
    model = load_onnx(network(folder / "network.onnx"))
    (folder / "built").mkdir()
    settled = model.settled_by({"x": np.zeros(SIZES[0], np.float32)})
    artifact = CompiledC().build(settled, target, folder / "built")
    pipeline = Pipeline((Row(COLUMNS),), (Threshold(labels=("good", "bad")),))
    return unsearched(folder / "rows.hasten", CompiledC(), artifact, target, pipeline=pipeline)


# -- in this process


def ways(fast: hasten.Loaded, rows: Any) -> dict[str, tuple[Callable[[Any], Any], list[Any]]]:
    """Return each way to ask, with its rows."""
    row, out = np.zeros((1, SIZES[0]), np.float32), np.zeros((1, 1), np.float32)
    call, decide = fast.bind(row, out), fast.bind_row()
    named = [dict(zip(COLUMNS, map(float, each), strict=True)) for each in rows]
    texts = [json.dumps(each).encode() for each in named]

    def filled(values: Any) -> None:
        row[0] = values
        call()

    found: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "bind: the call alone": (lambda _: call(), list(rows)),
        "bind: row[0] = array; call()": (filled, list(rows)),
        "load(...)(array)": (fast, [each[None] for each in rows]),
        "bind_row: dict": (decide, named),
        "bind_row: tuple": (decide, [tuple(each.values()) for each in named]),
        "bind_row: numpy": (decide, list(rows)),
        "bind_row: JSON": (decide, texts),
        "decide: dict": (fast.decide, named),
        "decide: JSON": (fast.decide, texts),
        "the step row alone: dict": (Row(COLUMNS), named),
        "the step row alone: JSON": (Row(COLUMNS), texts),
    }
    if importlib.util.find_spec("pandas"):
        import pandas

        frame = pandas.DataFrame(rows, columns=list(COLUMNS))
        found["bind_row: Series of pandas"] = (decide, [frame.iloc[n] for n in range(len(frame))])
        found["decide_rows: DataFrame, a row's share"] = (
            _shared(fast.decide_rows),
            [frame] * BLOCK,
        )
    if importlib.util.find_spec("pyarrow"):
        import pyarrow

        structs = pyarrow.Table.from_pylist(named).to_struct_array().combine_chunks()
        found["bind_row: struct of Arrow"] = (decide, [structs[n] for n in range(len(structs))])
    found["decide_rows: dicts, a row's share"] = (_shared(fast.decide_rows), [named] * BLOCK)
    return found


def _shared(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what asks for many rows once in so many calls."""
    asked = 0

    def sometimes(rows: Any) -> None:
        nonlocal asked
        asked += 1
        if asked % len(rows) == 0:
            ask(rows)

    return sometimes


def in_process(fast: hasten.Loaded, rounds: int) -> dict[str, list[float]]:
    """Return each way's microseconds a row, one for each round."""
    rows = np.random.default_rng(0).standard_normal((ROWS, SIZES[0]), np.float32)
    asked = ways(fast, rows)
    times: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(rounds + 2):
        for name, (ask, values) in asked.items():
            began_ns = time.perf_counter_ns()
            for value in values:
                ask(value)
            if turn > 1:
                times[name].append((time.perf_counter_ns() - began_ns) / len(values) / 1e3)
    return times


def batches(path: Path, rounds: int, cache: Path) -> dict[str, list[float]]:
    """Return microseconds of batches in one thread, and shared out as `load` does by itself."""
    times: dict[str, list[float]] = {}
    with (
        hasten.load(path, sessions=1, cache=cache) as one,
        hasten.load(path, cache=cache) as several,
    ):
        for size in BATCHES:
            x = np.random.default_rng(0).standard_normal((size, SIZES[0]), np.float32)
            for turn in range(rounds + 5):
                for name, fast in (("one thread", one), ("as loaded", several)):
                    began_ns = time.perf_counter_ns()
                    fast(x)
                    if turn >= 5:
                        spent = (time.perf_counter_ns() - began_ns) / 1e3
                        times.setdefault(f"{size:,} rows, {name}", []).append(spent)
    return times


# -- over HTTP


class Echo(asyncio.Protocol):
    """The least that a server in Python does: parse by httptools, and send the body back."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._parser = transport, httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._pieces: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        body = b"".join(self._pieces)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


class OwnEcho(HttpConnection):
    """hasten's own server, where the answer to a row is its body."""

    def _answered_row(self, body: bytes) -> bool:
        self.state.bodies.give(self.client, self._reserved)
        self._reserved = 0
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        return True


def serve(path: Path, cache: Path, ports: Connection) -> None:
    """Serve a bundle and the echoes on one loop, until this process is ended."""

    async def work() -> None:
        place = ModelPlace("rows", "1", path, ModelSettings(compiled=str(cache)))
        server = Server(ServerSettings((place,), http=0, grpc=None))
        port = await server.listen("127.0.0.1", 0)
        await server.load()
        loop = asyncio.get_running_loop()
        echoes = [
            await loop.create_server(lambda: OwnEcho(server.state, server.routes), "127.0.0.1", 0),
            await loop.create_server(Echo, "127.0.0.1", 0),
        ]
        ports.send((port, *(one.sockets[0].getsockname()[1] for one in echoes)))
        await asyncio.Event().wait()

    uvloop.run(work())


def over_http(path: Path, rounds: int, cache: Path) -> dict[str, list[float]]:
    """Return microseconds of each request to each route."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(path, cache, theirs), daemon=True
    )
    process.start()
    port, own_port, echo_port = ours.recv()
    rows = np.random.default_rng(0).standard_normal((ROWS, SIZES[0]), np.float32)
    bodies = [json.dumps(dict(zip(COLUMNS, map(float, row), strict=True))).encode() for row in rows]
    head = (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b"
    )
    asked = {
        ROW: [head % (b"/v2/models/rows/infer", len(body), body) for body in bodies],
        SMALLEST: [b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"] * ROWS,
        OWN_ECHO: [head % (b"/v2/models/rows/infer", len(body), body) for body in bodies],
        ECHO: [head % (b"/", len(body), body) for body in bodies],
    }
    there_is = {ROW: port, SMALLEST: port, OWN_ECHO: own_port, ECHO: echo_port}
    times: dict[str, list[float]] = {name: [] for name in asked}
    with contextlib.ExitStack() as stack:
        connected = {
            to: stack.enter_context(socket.create_connection(("127.0.0.1", to)))
            for to in set(there_is.values())
        }
        for one in connected.values():
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for turn in range(WARM + rounds * ASKED):
            for name, requests in asked.items():
                there = connected[there_is[name]]
                began_ns = time.perf_counter_ns()
                there.sendall(requests[turn % ROWS])
                answer = there.recv(1 << 16)
                spent = (time.perf_counter_ns() - began_ns) / 1e3
                assert answer.startswith(b"HTTP/1.1 200"), answer
                if turn >= WARM:
                    times[name].append(spent)
    process.terminate()
    process.join()
    return times


def whole_path(
    inside: dict[str, list[float]], asked: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Return the times of each part of one row's path, from the model's call to the answer over HTTP."""
    return {
        "the model's own call": inside["bind: the call alone"],
        "reading the JSON, call, decision: bind_row": inside["bind_row: JSON"],
        "the same by decide": inside["decide: JSON"],
        "over HTTP, bare httptools, an echo": asked[ECHO],
        "over HTTP, hasten's server, an echo": asked[OWN_ECHO],
        "over HTTP, the row's JSON": asked[ROW],
    }


def table(times: dict[str, list[float]], to: str = "", blocks: int = 20) -> None:
    """Print medians and 99th percentiles, and ratios to one of them by blocks of the same turns."""
    for name, spent in times.items():
        p50, p99 = np.quantile(spent, [0.5, 0.99])
        line = f"{name:42} {p50:9.2f} {p99:9.2f}"
        if to:
            ratios = [
                _middle(spent, n, blocks) / _middle(times[to], n, blocks) for n in range(blocks)
            ]
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            line += f"   {middle:5.2f}x ({low:.2f} to {high:.2f})"
        print(line)


def _middle(spent: Sequence[float], block: int, blocks: int) -> float:
    begin, end = (len(spent) * place // blocks for place in (block, block + 1))
    return float(np.median(spent[begin:end]))


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path, help="file for the times, in microseconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = bundle(folder)
        with hasten.load(path, cache=folder) as fast:
            inside = in_process(fast, options.rounds)
        print(f"{'one row in this process, us':42} {'p50':>9} {'p99':>9}   to bind's call")
        table(inside, "bind: the call alone", min(20, options.rounds))
        shared = batches(path, max(1, options.rounds // 5), folder)
        print(f"\n{'batches, us':42} {'p50':>9} {'p99':>9}")
        table(shared)
        asked = over_http(path, options.rounds, folder)
        for to in (OWN_ECHO, ECHO):
            print(f"\n{'over HTTP, us':42} {'p50':>9} {'p99':>9}   to: {to}")
            table(asked, to)
        print(f"\n{'the whole path of one row as JSON, us':42} {'p50':>9} {'p99':>9}")
        table(whole_path(inside, asked))
    if options.json is not None:
        record = {"in process": inside, "batches": shared, "over HTTP": asked}
        options.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
