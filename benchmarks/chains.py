"""What a chain of a detector and a classifier takes from a picture's bytes to its decision, and its models alone.

    python benchmarks/chains.py [ROUNDS] [--calls 4] [--clients 1 16] [--triton PYTHON] [--before CHECKOUT]

In turns, in this process and over HTTP: the chain, each of its models alone, and the models one after another, called
by hand, by a client, or by a model of Triton's Python back end. Alone, the detector gets the picture's bytes, and the
classifier the crops that the detector's boxes cut out, in the batches in which it is asked in the chain, or in as
large requests as the server takes. A client keeps its connections, cuts the boxes itself, and sends them as
uncompressed files, so that it loses neither time nor pixels to an encoder.

Printed are the time per picture, the p50 and the p99 of the calls, and the chain's over the sum of
its models'. The aims: at least 90% of what the sum of the models' times allows, and a p99 that isn't above the
sum of the models' p99s.

Triton runs the code of the bundles by hand with one instance, in the chain's batches, on sessions that are opened as
hasten's server opens them. Its row needs an environment of its own, whose making `triton_chain/server.py` describes.

With `--before`, only the ways over HTTP are timed, and a second server, of another checkout's sources, is asked in the
same turns.

The classifier is EfficientNet-Lite0 with its trained weights; the detector has random weights, the work of a small
one, and nine boxes in every picture. Both run in float32 on ONNX Runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import tritonclient.http as triton
from chain_parts import by_hand, classified, cut
from onnx import numpy_helper, parser
from PIL import Image
from triton_chain import server as triton_server

import hasten
from hasten.bundle import Manifest, part, write
from hasten.cli.demos.photos import photo_files, pretrained
from hasten.cli.screen import aligned
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.onnx import load as load_onnx
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.measure.environment import environment
from hasten.testing.models import HEADER

HERE = Path(__file__).resolve().parents[1]
ROUNDS, CALLS, CLIENTS = 30, 4, (1, 16)
SIDE, GRID = 320, 3
Way = Callable[[int], Any]
"""Function of a picture's number."""


def detector(folder: Path) -> Path:
    """Write a network of six convolutions that gives a box for each place of a grid."""
    widths = (3, 16, 32, 64, 96, 128, 128)
    lines, weights, x = [], {}, "x"
    rng = np.random.default_rng(0)
    for n, (before, after) in enumerate(itertools.pairwise(widths)):
        attributes = "kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]"
        lines += [f"c{n} = Conv <{attributes}> ({x}, w{n})", f"r{n} = Relu(c{n})"]
        weights[f"w{n}"] = rng.standard_normal((after, before, 3, 3)) * (2 / 9 / before) ** 0.5
        x = f"r{n}"
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[:GRID, :GRID])
    corners = np.stack([columns, rows, columns + 1, rows + 1], axis=1) * (SIDE / GRID)
    weights["places"] = np.concatenate([corners, np.ones((GRID**2, 1)), rows[:, None] * 0], axis=1)
    text = f"""
        detector (float[batch, 3, {SIDE}, {SIDE}] x) => (float[batch, {GRID**2}, 6] rows)
            <float zero = {{0.0}}, int64[3] one = {{-1, 1, 1}}> {{
            {chr(10).join(lines)}
            all = ReduceMean <axes = [1, 2, 3], keepdims = 0> ({x})
            none = Mul(all, zero)
            shaped = Reshape(none, one)
            rows = Add(shaped, places)
        }}"""
    model = parser.parse_model(HEADER + text)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(array), name))
    onnx.save(model, folder / "detector.onnx")
    return folder / "detector.onnx"


def classifier(folder: Path) -> Path:
    """Write EfficientNet-Lite0 with an open batch."""
    path = folder / "classifier.onnx"
    axes = {"x": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        pretrained(),
        (torch.zeros(1, 3, 224, 224),),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
    )
    return path


def bundle(
    folder: Path, model: Path, size: int, after: Sequence[PostStep], **settings: Any
) -> Path:
    """Write a bundle of the exact model alone."""
    loaded = load_onnx(model)
    sample = {s.name: np.zeros([int(n) for n in s.shape[1:]], s.dtype) for s in loaded.inputs}
    place = folder / f"built-{model.stem}"
    place.mkdir()
    engine, host = OnnxRuntime(threads=Target.host().threads), Target.host()
    built = part("exact", (), engine, engine.build(loaded.settled_by(sample), host, place))
    steps = image_pipeline(size, (size, size), **settings).steps
    manifest = Manifest(
        status="exact",
        why="for a benchmark",
        winner=built,
        exact=built,
        metric=to_record(Top1()),
        certificate=None,
        source_sha256="0" * 64,
        sealed={"samples": 0},
        target=host,
        environment=environment(host),
        pipeline=Pipeline(steps, tuple(after)),
        created="2026-01-01T00:00:00+00:00",
    )
    write(folder / f"{model.stem}.hasten", manifest, {})
    return folder / f"{model.stem}.hasten"


def as_file(crop: np.ndarray) -> bytes:
    """Return a crop as an uncompressed file."""
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "BMP")
    return file.getvalue()


class Client:
    """A client of a server; each of its threads keeps its connections.

    Args:
        address: The server's host and port.
    """

    def __init__(self, address: str) -> None:
        self._address, self._own = address, threading.local()
        with triton.InferenceServerClient(address) as client:
            self._most = client.get_model_config("chain.classifier")["max_batch_size"]

    def posted(self, model: str, data: bytes) -> Any:
        """Send a picture as a plain body, and return the decision."""
        if not hasattr(self._own, "plain"):
            self._own.plain = http.client.HTTPConnection(self._address, timeout=60)
            self._own.plain.connect()
            self._own.plain.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain = self._own.plain
        plain.request("POST", f"/v2/models/{model}/infer", data, {"Content-Type": "image/jpeg"})
        return json.loads(plain.getresponse().read())["decision"]

    def classified(self, files: Sequence[bytes]) -> list[Any]:
        """Ask the served classifier about crops, in as few requests as it takes."""
        if not hasattr(self._own, "tensors"):
            self._own.tensors = triton.InferenceServerClient(self._address)
        answers: list[bytes] = []
        while len(answers) < len(files):
            part = files[len(answers) : len(answers) + self._most]
            tensor = triton.InferInput("raw", [len(part)], "BYTES")
            tensor.set_data_from_numpy(np.array(part, object))
            found = self._own.tensors.infer("chain.classifier", [tensor])
            answers += found.as_numpy("decision").tolist()
        return [json.loads(answer) for answer in answers]

    def of_triton(self, address: str, data: bytes) -> list[Any]:
        """Ask Triton about a picture, by a connection of its own."""
        if not hasattr(self._own, "triton"):
            self._own.triton = triton.InferenceServerClient(address)
        tensor = triton.InferInput("raw", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([data], object))
        (decision,) = self._own.triton.infer(triton_server.NAME, [tensor]).as_numpy("decision")
        return json.loads(decision)  # type: ignore[no-any-return]

    def model_by_model(self, data: bytes) -> list[Any]:
        """Ask the served detector, cut the boxes, and ask the served classifier."""
        found: list[Any] = self.posted("chain.detector", data)
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        answers = self.classified([as_file(cut(picture, box)) for box in found])
        for box, answer in zip(found, answers, strict=True):
            box["classifier"] = answer
        return found


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def served(line: str, checkout: Path = HERE) -> Iterator[str]:
    """Run `hasten serve` of a checkout's sources on a chain, and yield its address."""
    program = Path(sys.executable).with_name("hasten")
    command = [program, "serve", f"chain={line}", "--http", "0", "--max-wait", "60s"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = ""
        assert process.stdout is not None
        for text in process.stdout:
            if found := re.search(r"127\.0\.0\.1:(\d+)", text):
                address = found[0]
            if text.strip() == "ready":
                break
        if not address:
            raise SystemExit("hasten serve didn't start")
        yield address
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True)
class Times:
    """Times of one way, by round.

    Attributes:
        picture_ms: Time per picture, in milliseconds; shape `(rounds,)`.
        calls_ms: Latencies of the calls, in milliseconds; shape `(rounds, calls)`.
    """

    picture_ms: np.ndarray
    calls_ms: np.ndarray


def timed(way: Way, pictures: int, clients: int, calls: int) -> tuple[float, list[float]]:
    """Let several clients call a way at once, each several times.

    Args:
        way: Function of a picture's number.
        pictures: Number of pictures.
        clients: Number of clients.
        calls: Number of calls of each.

    Returns:
        Time per picture and latency of each call, in milliseconds.
    """

    def called(number: int) -> float:
        begin = time.perf_counter()
        way(number % pictures)
        return 1e3 * (time.perf_counter() - begin)

    count = calls * clients
    begin = time.perf_counter()
    if clients == 1:
        latencies = [called(number) for number in range(count)]
    else:
        latencies = list(threads_of(clients).map(called, range(count)))
    return 1e3 * (time.perf_counter() - begin) / count, latencies


@functools.cache
def threads_of(clients: int) -> ThreadPoolExecutor:
    """Return the threads of so many clients, the same ones each time: they keep their connections."""
    return ThreadPoolExecutor(clients)


def in_turns(
    ways: Mapping[str, Way], pictures: int, clients: int, calls: int, rounds: int
) -> dict[str, Times]:
    """Time ways in random order, round by round; the first round warms up."""
    taken: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in ways}
    rng = np.random.default_rng(clients)
    for turn in range(rounds + 1):
        for name in rng.permutation(list(ways)).tolist():
            found = timed(ways[name], pictures, clients, calls)
            if turn:
                taken[name].append(found)
    return {
        name: Times(np.array([one for one, _ in each]), np.array([calls for _, calls in each]))
        for name, each in taken.items()
    }


Statistic = Callable[[Times, np.ndarray], float]
"""Function of a way's times and of the rounds that count, which may come several times."""
STATISTICS: dict[str, Statistic] = {
    "per picture": lambda times, rounds: float(np.median(times.picture_ms[rounds])),
    "p50": lambda times, rounds: float(np.median(times.calls_ms[rounds])),
    "p99": lambda times, rounds: float(np.quantile(times.calls_ms[rounds], 0.99)),
}


def interval(
    statistic: Statistic, of: Times, over: Sequence[Times] = ()
) -> tuple[float, float, float]:
    """Return a statistic of a way, over the sum of others', with a bootstrap's 95% interval.

    All are drawn by the same rounds, since what slows a whole round slows all of them.

    Args:
        statistic: The statistic.
        of: The way's times.
        over: Times of the ways whose statistics are added up; none for the statistic itself.
    """

    def value(rounds: np.ndarray) -> float:
        below = sum(statistic(times, rounds) for times in over) if over else 1.0
        return statistic(of, rounds) / below

    count = len(of.picture_ms)
    draws = np.random.default_rng(0).integers(count, size=(2000, count))
    low, high = np.quantile([value(rounds) for rounds in draws], [0.025, 0.975])
    return value(np.arange(count)), float(low), float(high)


def in_words(found: tuple[float, float, float]) -> str:
    """Return a figure with its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)


def told(times: Mapping[str, Times], sums: Mapping[str, Sequence[str]]) -> str:
    """Return the table of all ways, and each chain's figures over the sum of its models'.

    Args:
        times: Times by the ways' names.
        sums: Name of a chain, or of calls one after another -> names of its models alone.
    """
    lines = [("ms", *STATISTICS)]
    for name, one in times.items():
        lines.append((name, *(in_words(interval(how, one)) for how in STATISTICS.values())))
    lines.append(("", *("" for _ in STATISTICS)))
    lines.append(("over the sum of its models alone", *STATISTICS))
    for name, members in sums.items():
        over = [times[member] for member in members]
        cells = (interval(how, times[name], over) for how in STATISTICS.values())
        lines.append((name, *map(in_words, cells)))
    found = [aligned(lines)]
    for name, members in sums.items():
        over = [times[member] for member in members]
        ratio, low, high = interval(STATISTICS["per picture"], times[name], over)
        found.append(
            f"{name}: {100 / ratio:.0f}% ({100 / high:.0f} to {100 / low:.0f}%) of what its models' times allow"
        )
    return "\n".join(found)


def photos() -> list[bytes]:
    """Return photographs as JPEG files."""
    files = []
    for path in photo_files()[-6:]:
        file = io.BytesIO()
        Image.open(path).convert("RGB").save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@dataclass(frozen=True)
class Parts:
    """A chain and its two models, opened in this process and served, with the pictures that they are asked about.

    Attributes:
        line: The chain, as `hasten serve` takes it.
        chain: The open chain.
        detect: Folder of the detector's bundle.
        classify: Folder of the classifier's bundle.
        one: The open detector.
        two: The open classifier.
        client: Client of the server of this checkout.
        pictures: Pictures as JPEG files.
        crops: Parts of each picture that the detector's boxes cut out.
        files: The crops as uncompressed files.
    """

    line: str
    chain: Any
    detect: Path
    classify: Path
    one: Any
    two: Any
    client: Client
    pictures: list[bytes]
    crops: list[list[np.ndarray]]
    files: list[list[bytes]]

    @classmethod
    def opened(cls, stack: contextlib.ExitStack) -> Parts:
        """Write the bundles, open them, and serve the chain, until the stack is closed."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        detect = bundle(folder, detector(folder), SIDE, [GivenBoxes(labels=("thing",))])
        mean, std = [127 / 255] * 3, [128 / 255] * 3
        classify = bundle(folder, classifier(folder), 224, [TopK()], mean=mean, std=std)
        line = f"{detect}+crop+{classify}"
        chain = stack.enter_context(hasten.chain(line))
        one, two = (stack.enter_context(hasten.load(path)) for path in (detect, classify))
        client = Client(stack.enter_context(served(line)))
        pictures = photos()
        decided = [chain.decide(data) for data in pictures]
        decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
        crops = [
            [cut(picture, box) for box in boxes]
            for picture, boxes in zip(decoded, decided, strict=True)
        ]
        files = [[as_file(crop) for crop in each] for each in crops]
        return cls(line, chain, detect, classify, one, two, client, pictures, crops, files)

    @property
    def sizes(self) -> Sequence[int]:
        """Batches in which the classifier is asked in the chain."""
        return self.chain.batch_sizes["classifier"]  # type: ignore[no-any-return]


def ways_of(parts: Parts) -> tuple[dict[str, Way], dict[str, Sequence[str]]]:
    """Return the ways to a picture's decision, and of each chain the names of its models alone."""
    chain, one, two, client, sizes = parts.chain, parts.one, parts.two, parts.client, parts.sizes
    pictures, crops, files = parts.pictures, parts.crops, parts.files
    ways: dict[str, Way] = {
        "hasten.chain": lambda n: chain.decide(pictures[n]),
        "the detector alone": lambda n: one.decide(pictures[n]),
        "the classifier alone": lambda n: classified(two, sizes, crops[n]),
        "the bundles by hand": lambda n: by_hand(one, two, pictures[n]),
        "the chain over HTTP": lambda n: client.posted("chain", pictures[n]),
        "the detector over HTTP": lambda n: client.posted("chain.detector", pictures[n]),
        "the classifier over HTTP": lambda n: client.classified(files[n]),
        "a client, model by model": lambda n: client.model_by_model(pictures[n]),
    }
    here, there = list(ways)[1:3], list(ways)[5:7]
    sums: dict[str, Sequence[str]] = {
        "hasten.chain": here,
        "the bundles by hand": here,
        "the chain over HTTP": there,
        "a client, model by model": there,
    }
    return ways, sums


def by_triton(parts: Parts, python: Path | None, stack: contextlib.ExitStack) -> dict[str, Way]:
    """Return the way by Triton's Python back end, which runs until the stack is closed; none without a Python."""
    if python is None:
        print("Triton isn't timed: give --triton PYTHON, of an environment with nvidia-pytriton")
        return {}
    kept = triton_server.Environment.of(python)
    print("Triton runs with", ", ".join(map(" ".join, kept.versions.items())))
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    running = triton_server.served(
        kept, place, parts.detect, parts.classify, parts.sizes, free_port()
    )
    address = stack.enter_context(running)
    client, pictures = parts.client, parts.pictures
    return {"Triton's Python back end": lambda n: client.of_triton(address, pictures[n])}


def before(parts: Parts, checkout: Path | None, stack: contextlib.ExitStack) -> dict[str, Way]:
    """Return the way by a server of another checkout, which runs until the stack is closed; none without one."""
    if checkout is None:
        return {}
    client = Client(stack.enter_context(served(parts.line, checkout)))
    return {"the chain before": lambda n: client.posted("chain", parts.pictures[n])}


def agreeing(parts: Parts, ways: Mapping[str, Way], sums: Collection[str]) -> str:
    """Return in words how many classes of each chain are those of the chain in this process."""

    def classes(way: Way) -> list[int]:
        found = (box for n in range(len(parts.pictures)) for box in way(n))
        return [box["classifier"][0]["class"] for box in found]

    own = classes(lambda n: parts.chain.decide(parts.pictures[n]))
    same = {
        name: sum(a == b for a, b in zip(own, classes(ways[name]), strict=True)) for name in sums
    }
    return f"classes that agree with the chain's, of {len(own)}: {same}"


def main() -> None:
    """Parse the command line, time and print."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("rounds", type=int, nargs="?", default=ROUNDS)
    arguments.add_argument(
        "--calls", type=int, default=CALLS, help="calls of each client in a round"
    )
    arguments.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    arguments.add_argument("--triton", type=Path, help="Python of an environment with Triton")
    arguments.add_argument("--before", type=Path, help="checkout whose server is asked too")
    options = arguments.parse_args()
    with contextlib.ExitStack() as stack:
        parts = Parts.opened(stack)
        ways, sums = ways_of(parts)
        there = sums["the chain over HTTP"]
        for more in (by_triton(parts, options.triton, stack), before(parts, options.before, stack)):
            ways |= more
            sums |= dict.fromkeys(more, there)
        if options.before is not None:
            ways = {name: way for name, way in ways.items() if "HTTP" in name or "before" in name}
            sums = {name: over for name, over in sums.items() if name in ways}
        sizes = parts.chain.batch_sizes
        print(f"{os.cpu_count()} processors; {len(parts.crops[0])} boxes; batches {sizes}")
        print(agreeing(parts, ways, sums))
        for clients in options.clients:
            times = in_turns(ways, len(parts.pictures), clients, options.calls, options.rounds)
            rounds = f"{options.rounds} rounds of {options.calls} calls by each"
            print(f"\n{clients} client(s), {rounds}")
            print(told(times, sums))


if __name__ == "__main__":
    main()
