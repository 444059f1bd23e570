"""What packing makes of real weights: sizes beside the alternatives', cold starts, and a slow link.

    python benchmarks/packing.py [NETWORK ...] [--starts 15] [--rate 125] [--skip-times]

For each network a bundle in fp32 and one in int8 (NNCF, for OpenVINO, or for the compiled engine with
`--engine compiled`) is written and packed. Sizes are of the tensors alone: as they are, by their order-0
entropy (of each byte of an element apart), by zstd -19, by ZipNN where it is installed
(pip install --no-deps zipnn), and packed. The float32 tensors are also rounded to 16 bits and compared so.
Then, in turns: opening the int8 bundle from its folder and from the packed file, both in the page cache,
in processes of their own and in one that runs already; and over a web server of this machine that sends so many bytes per microsecond, from the
first byte to the first answer: the fp32 ONNX file in ONNX Runtime, the int8 bundle's own files, and the
packed file. Ratios are medians of pairs, with the range of the middle half.
"""

from __future__ import annotations

import argparse
import http.server
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import models
import numpy as np
import torch
from backports import zstd
from compiled import Renamed

import hasten
from hasten.bundle import Manifest, part, read, write
from hasten.bundle.manifest import Status
from hasten.bundle.packing.blocks import all_codecs
from hasten.bundle.packing.layout import Head, Piece
from hasten.bundle.packing.writer import (
    CODING_HELPS,
    Cut,
    PackedAs,
    cuts_of,
    order_of,
    pack,
    write_packed,
)
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.models.source import load_model
from hasten.measure.environment import environment
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import saturates

_NETWORKS = ("efficientnet_lite0", "mobilenet_v2", "yolov3_tiny", "minilm")
_CALIBRATION = 50


def bundle(path: Path, model: Any, engine: Engine, status: Status) -> Path:
    """Build a model for an engine and write a bundle of it, without an exact model."""
    built = path.with_suffix(".built")
    built.mkdir()
    artifact = engine.build(model, Target.host(), built)
    manifest = Manifest(
        status=status,
        why="made to be packed",
        winner=part("made to be packed", (), engine, artifact),
        exact=None,
        metric={"type": "agreement"},
        certificate=None,
        source_sha256=model.sha256,
        sealed={"samples": 0},
        target=Target.host(),
        environment=environment(Target.host()),
        pipeline=None,
        created="2026-01-01T00:00:00+00:00",
    )
    write(path, manifest, {})
    return path


def entropy(data: Array) -> float:
    """Return the order-0 bound of some bytes, in bytes."""
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum() * len(data) / 8)


def bound(cut: Cut) -> float:
    """Return the order-0 bound of a tensor, each byte of an element apart."""
    width = cut.item.width
    if width == 1:
        return entropy(cut.data)
    words = cut.data.view(f"<u{width}")
    turned = ((words << 1) | (words >> (8 * width - 1))).view(np.uint8).reshape(-1, width)
    apart = sum(entropy(np.ascontiguousarray(turned[:, at])) for at in range(width))
    return min(apart, sum(entropy(cut.data[at::width]) for at in range(width)))


def zipped(cuts: list[Cut], kind: str = "float32") -> str:
    """Return what ZipNN makes of all tensors of a type together; "-" where it isn't installed."""
    try:
        import zipnn
    except ImportError:
        return "-"
    floats = b"".join(cut.data.tobytes() for cut in cuts if cut.item.dtype == kind)
    rest = sum(len(cut.data) for cut in cuts if cut.item.dtype != kind)
    coder = zipnn.ZipNN(bytearray_dtype=kind, input_format="byte")
    return f"{len(coder.compress(bytearray(floats))) + rest:,}"


def sizes(name: str, folder: Path) -> Path:
    """Print a bundle's sizes; return the packed file."""
    made, cuts = pack(folder, folder.with_suffix(".hastenz")), tensors_of(folder)
    compared(name, cuts, made, zipped(cuts))
    return made.path


def halves(name: str, folder: Path) -> None:
    """Print the sizes of a bundle's float32 tensors once they are rounded to 16 bits."""
    for kind, type_ in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        cuts, size = list[Cut](), 0
        for cut in tensors_of(folder):
            if cut.item.dtype == "float32":
                data = cut.data.view(np.float32).astype(type_).view(np.uint8)
                item = replace(cut.item, dtype=kind, width=2, chunk=cut.item.chunk // 2)
                cuts.append(Cut(replace(item, pieces=(Piece(0, size, len(data)),), like=-1), data))
                size += len(data)
        head = Head((("tensors", size),), (), ())
        made = write_packed(folder.with_suffix(".halves"), head, iter(cuts), all_codecs())
        compared(f"{name} {kind}", cuts, made, zipped(cuts, kind))


def tensors_of(folder: Path) -> list[Cut]:
    """Return the tensors of a bundle's model."""
    manifest = read(folder)
    files = {*map(str, (manifest.winner.artifact.path, *manifest.winner.artifact.files))}
    names = order_of(manifest)
    return [
        cut
        for cut in cuts_of(folder, manifest, names)
        if names[cut.item.pieces[0].file] in files and "no tensor" not in cut.item.name
    ]


def compared(name: str, cuts: list[Cut], made: PackedAs, zipnn: str) -> None:
    """Print the size of packed tensors beside their alternatives'."""
    tensors = {cut.item.name for cut in cuts}
    packed = sum(one.packed_bytes for one in made.tensors if one.name in tensors)
    raw = sum(len(cut.data) for cut in cuts)
    least = sum(bound(cut) for cut in cuts)
    zstd19 = sum(len(zstd.compress(cut.data.tobytes(), 19)) for cut in cuts)
    print(
        f"{name:30} tensors {raw:>12,} B: order-0 {least:>13,.0f}, zstd -19 {zstd19:>11,}, "
        f"ZipNN {zipnn:>11}, packed {packed:>11,} ({100 * packed / least - 100:+.2f}% of order-0, "
        f"{100 * packed / zstd19 - 100:+.2f}% of zstd); whole file {made.packed_bytes:,}",
        flush=True,
    )


@contextmanager
def link(folder: Path, bytes_per_us: float) -> Iterator[str]:
    """Serve a folder's files as over a link that sends so many bytes per microsecond."""

    class Slow(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            begin, sent = time.perf_counter(), 0
            while part := source.read(1 << 16):
                sent += len(part)
                ahead = sent / bytes_per_us / 1e6 - (time.perf_counter() - begin)
                if ahead > 0:
                    time.sleep(ahead)
                outputfile.write(part)

    handler = partial(Slow, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def turns(ways: dict[str, Callable[[], float | None]], starts: int) -> dict[str, Array]:
    """Return seconds of each way, or those that it states, in turns; the first turn isn't counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    order, rng = list(ways), np.random.default_rng(0)
    for turn in range(starts + 1):
        rng.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            took = ways[name]()
            if turn:
                found[name].append(time.perf_counter() - begin if took is None else took)
    return {name: np.array(times) for name, times in found.items()}


def cold(path: Path) -> float:
    """Return the seconds that a new process takes to open a bundle, from its first line on."""
    code = (
        f"import time; t = time.perf_counter(); import warnings; warnings.simplefilter('ignore'); import hasten; \
loaded = hasten.load({str(path)!r}); print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def told(found: dict[str, Array], to: str) -> None:
    for name, times in found.items():
        low, middle, high = np.percentile(times / found[to], (25, 50, 75))
        print(
            f"  {name:34} {1e3 * np.median(times):8.1f} ms, {middle:.2f} ({low:.2f} to {high:.2f}) of {to}",
            flush=True,
        )


def times(folder: Path, fp32: Path, request: dict[str, Array], starts: int, rate: float) -> None:
    """Print how long opening takes, from the disk's cache and over a link."""

    def answer(path: Any) -> None:
        with hasten.load(path) as loaded:
            loaded(request)

    def fetched(address: str, files: list[str]) -> None:
        with tempfile.TemporaryDirectory() as place:
            for name in files:
                goal = Path(place, "b.hasten", name)
                goal.parent.mkdir(parents=True, exist_ok=True)
                with urllib.request.urlopen(f"{address}/{folder.name}/{name}") as reply:
                    goal.write_bytes(reply.read())
            answer(Path(place, "b.hasten"))

    def exact(address: str) -> None:
        import onnxruntime

        with urllib.request.urlopen(f"{address}/{fp32.name}") as reply:
            session = onnxruntime.InferenceSession(reply.read(), providers=["CPUExecutionProvider"])
        session.run(None, request)

    def only(path: Path) -> None:
        hasten.load(path).close()

    packed = folder.with_suffix(".hastenz")
    print("  a new process, from its first line to a ready session, from the page cache")
    told(
        turns({"folder": partial(cold, folder), "packed": partial(cold, packed)}, starts), "folder"
    )
    print("  opening in a process that runs, from the page cache")
    found = turns({"folder": partial(only, folder), "packed": partial(only, packed)}, starts)
    told(found, "folder")
    files = ["manifest.json", *read(folder).files]
    with link(folder.parent, rate) as address:
        print(f"  first answer over a link of {rate * 8 / 1000:g} Gbit/s")
        ways = {
            "fp32 ONNX, ONNX Runtime": partial(exact, address),
            "int8 bundle as it is": partial(fetched, address, files),
            "packed": partial(answer, f"{address}/{packed.name}"),
        }
        told(turns(ways, starts), "packed")


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Measure one network."""
    subject = models.MODELS[name]
    data = subject.data()
    given = data.inputs([0])
    sample = {key: array[0] for key, array in given.items()}
    (folder / "exported").mkdir()
    model = load_model(subject.module(models.CACHE), sample, folder / "exported")
    names = [spec.name for spec in model.inputs]
    request = dict(zip(names, given.values(), strict=True))
    model = model.settled_by(dict(zip(names, sample.values(), strict=True)))
    if names != list(given):
        data = Renamed(data, names[0])
    exact = bundle(folder / "fp32.hasten", model, OnnxRuntime(), "exact")
    sizes(f"{name} fp32", exact)
    halves(name, exact)
    (folder / "int8").mkdir()
    narrow, attends = saturates(Target.host()), name == "minilm"
    preset: Literal["mixed", "performance"] = "mixed" if attends else "performance"
    step = NncfQuantization(preset, reduce_range=narrow, transformer=attends, samples=_CALIBRATION)
    engine = CompiledC() if arguments.engine == "compiled" else OpenVino()
    try:
        quantized = step(model, data, folder / "int8")
    except CandidateError as error:
        print(f"{name}: no int8: {error}", flush=True)
        return
    small = bundle(folder / "int8.hasten", quantized, engine, "uncertified")
    sizes(f"{name} int8", small)
    if not arguments.skip_times:
        plain = folder / "fp32.onnx"
        plain.write_bytes(model.path.read_bytes())
        times(small, plain, request, arguments.starts, arguments.rate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(_NETWORKS))
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--rate", type=float, default=125.0, help="Bytes per microsecond.")
    parser.add_argument("--engine", choices=("openvino", "compiled"), default="openvino")
    parser.add_argument("--skip-times", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{Target.host().processor}, {' '.join(Target.host().isa)}")
    print(CODING_HELPS)
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "work"
            place.mkdir()
            compare(name, arguments, place)


if __name__ == "__main__":
    main()
