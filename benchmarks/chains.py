"""What a chain of a detector and a classifier takes from a picture's bytes to its decision, in turns.

    python benchmarks/chains.py [ROUNDS]

Compared are `hasten.chain`, the same bundles called one after another by hand, the chain behind
`hasten serve`, and a client that asks the served detector, cuts the boxes itself and asks the served
classifier about as many of them in one request as it takes. The classifier is EfficientNet-Lite0 with its trained
weights; the detector has random weights, the work of a small one, and nine boxes in every picture.
Both run in float32 on ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import tritonclient.http as triton
from onnx import numpy_helper, parser
from PIL import Image

import hasten
from hasten.bundle import Loaded, Manifest, part, write
from hasten.cli.demos.photos import photo_files, pretrained
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

ROUNDS, CALLS, CLIENTS = 30, 4, (1, 16)
SIDE, GRID = 320, 3
Way = Callable[[bytes], Any]


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


def by_hand(detect: Loaded, classify: Loaded, data: bytes) -> list[Any]:
    """Decide with the two bundles one after another, a crop at a time."""
    found = detect.decide(data)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for box in found:
        x1, y1, x2, y2 = (round(corner) for corner in box["box"])
        box["classifier"] = classify.decide(np.ascontiguousarray(picture[y1:y2, x1:x2]))
    return found  # type: ignore[no-any-return]


def posted(address: str, model: str, data: bytes) -> Any:
    """Send a picture as a plain body, and return the decision."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", f"/v2/models/{model}/infer", data, {"Content-Type": "image/jpeg"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["decision"]


def by_client(address: str, data: bytes) -> list[Any]:
    """Ask the served detector, cut and encode the boxes, and ask the served classifier once."""
    found = posted(address, "chain.detector", data)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    crops = []
    for box in found:
        file = io.BytesIO()
        picture.crop([round(corner) for corner in box["box"]]).save(file, "JPEG", quality=95)
        crops.append(file.getvalue())
    client = triton.InferenceServerClient(address)
    most = client.get_model_config("chain.classifier")["max_batch_size"]
    answers: list[bytes] = []
    while len(answers) < len(crops):
        part = crops[len(answers) : len(answers) + most]
        tensor = triton.InferInput("raw", [len(part)], "BYTES")
        tensor.set_data_from_numpy(np.array(part, object))
        answers += client.infer("chain.classifier", [tensor]).as_numpy("decision").tolist()
    client.close()
    for box, answer in zip(found, answers, strict=True):
        box["classifier"] = json.loads(answer)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def served(line: str) -> Iterator[str]:
    """Run `hasten serve` on a chain, and yield its address."""
    program = Path(sys.executable).with_name("hasten")
    command = [program, "serve", f"chain={line}", "--http", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def timed_ms(way: Way, photos: Sequence[bytes], clients: int) -> float:
    """Return the time per picture, in milliseconds, of several clients that ask at once."""
    asked = [photos[n % len(photos)] for n in range(max(CALLS, clients))]
    begin = time.perf_counter()
    if clients == 1:
        for photo in asked:
            way(photo)
    else:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(way, asked))
    return 1e3 * (time.perf_counter() - begin) / len(asked)


def interval(values: np.ndarray) -> str:
    """Return the median with the 95% interval that a bootstrap over the rounds gives."""
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return f"{np.median(values):.2f} ({low:.2f} to {high:.2f})"


def photos() -> list[bytes]:
    """Return photographs as JPEG files."""
    files = []
    for path in photo_files()[-6:]:
        file = io.BytesIO()
        Image.open(path).convert("RGB").save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        detect = bundle(folder, detector(folder), SIDE, [GivenBoxes(labels=("thing",))])
        mean, std = [127 / 255] * 3, [128 / 255] * 3
        classify = bundle(folder, classifier(folder), 224, [TopK()], mean=mean, std=std)
        line = f"{detect}+crop+{classify}"
        chain = stack.enter_context(hasten.chain(line))
        one, two = (stack.enter_context(hasten.load(path)) for path in (detect, classify))
        address = stack.enter_context(served(line))
        ways: dict[str, Way] = {
            "hasten.chain": chain.decide,
            "the bundles by hand": functools.partial(by_hand, one, two),
            "the chain over HTTP": functools.partial(posted, address, "chain"),
            "a client over HTTP, model by model": functools.partial(by_client, address),
        }
        pictures = photos()
        labels = [
            [box["classifier"][0]["class"] for box in way(pictures[0])] for way in ways.values()
        ]
        print(f"{os.cpu_count()} processors; {len(labels[0])} boxes; batches {chain.batch_sizes}")
        agreeing = [sum(a == b for a, b in zip(labels[0], other, strict=True)) for other in labels]
        print("classes that agree with the chain's:", dict(zip(ways, agreeing, strict=True)))
        for clients in CLIENTS:
            times: dict[str, list[float]] = {name: [] for name in ways}
            rng = np.random.default_rng(clients)
            for turn in range(rounds + 1):
                for name in rng.permutation(list(ways)):
                    took_ms = timed_ms(ways[name], pictures, clients)
                    if turn:  # the first warms up
                        times[name].append(took_ms)
            base = np.array(times["hasten.chain"])
            print(
                f"\n{clients} client(s), {rounds} rounds: ms per picture, and as a multiple of the chain"
            )
            for name, taken in times.items():
                values = np.array(taken)
                print(f"  {name:36}{interval(values):28}{interval(values / base)}")


if __name__ == "__main__":
    main()
