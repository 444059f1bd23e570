"""Convolutional networks in int8: the compiled engine against the runtimes' own int8, in turns within one run.

    python benchmarks/compiled.py [NETWORK ...] [--threads 1 2] [--rounds 9] [--crops 300] [--busy 2]
    python benchmarks/compiled.py --coverage [NETWORK ...]

Each runtime gets the int8 that suits it best: OpenVINO NNCF's, ONNX Runtime and LiteRT their own
quantizers', with 7-bit weights where the processor would saturate. The compiled engine gets the same files.
ONNX Runtime's fp32 runs with its defaults. Each line: p50, ratio to the fastest of our own rows of the
same number of threads (median of the rounds, with their range), share of crops that get the float
network's class, time to build and to open the first and the second time, and the memory that opening took.
Of our own rows it also says the most memory that the first and the second opening with a call took, each in a
process of its own and without the C compiler, as a multiple of the plan's weights and its two largest tensors.
With --busy, so many other processes compute all the time while the calls are timed.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import byte_coverage
import models
import numpy as np
import torch
import yolov3_tiny
from openings import peaks

from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine, Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.models.source import load_model
from hasten.passes.base import Pass
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import saturates
from hasten.passes.static_quantization import StaticQuantization

_TURN_S = 0.15
"""Seconds of calls of each contender in each round."""
_CALIBRATION = 100


@dataclass(frozen=True)
class Network:
    """Network with data, and whether its weights are trained."""

    module: Callable[[], Any]
    data: Callable[[], Dataset]
    real: bool


class Renamed(Dataset):
    """Data set whose only input has another name.

    Args:
        data: The data set.
        name: Name of its input.
    """

    labels = groups = None

    def __init__(self, data: Dataset, name: str) -> None:
        self._data, self.names = data, (name,)

    def __len__(self) -> int:
        return len(self._data)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {self.names[0]: next(iter(self._data.inputs(indices).values()))}

    def content_hash(self, index: int) -> bytes:
        return self._data.content_hash(index)

    def has_former_hashes(self) -> bool:
        return self._data.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self._data.former_hash(index)


def _subject(name: str) -> Network:
    subject = models.MODELS[name]
    return Network(lambda: subject.module(models.CACHE), subject.data, subject.real)


def _random(name: str) -> Network:
    return Network(partial(models._timm, name), models._IMAGENET, False)


NETWORKS = {
    "efficientnet_lite0": _subject("efficientnet_lite0"),
    "mobilenet_v2": _subject("mobilenet_v2"),
    "efficientnet_b0": _random("efficientnet_b0"),
    "mobilenetv3_large": _random("mobilenetv3_large_100"),
    "resnet18": _random("resnet18"),
    "resnet50": _random("resnet50"),
    "unet": Network(partial(byte_coverage.UNetLike, True), models._IMAGENET, False),
    "yolov3_tiny": Network(
        yolov3_tiny.pretrained, partial(yolov3_tiny.LetterboxedCrops, models.LATENCY_SAMPLES), False
    ),
}


@dataclass
class Contender:
    """An open session, and what was measured of it."""

    name: str
    threads: int
    ours: bool
    call: Callable[[], None]
    session: Session
    request: dict[str, Array]
    facts: str
    rounds: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    agreed: float = float("nan")


def quantizers() -> dict[str, Pass]:
    """Return how the files are made."""
    narrow = saturates(Target.host())
    return {
        "nncf": NncfQuantization("performance", reduce_range=narrow, samples=_CALIBRATION),
        "static": StaticQuantization(reduce_range=narrow, samples=_CALIBRATION),
        "static-8bit": StaticQuantization(samples=_CALIBRATION),
        "litert": LitertQuantization(samples=_CALIBRATION),
    }


ROWS: tuple[tuple[str, str, type[Engine]], ...] = (
    ("hasten compiled", "nncf", CompiledC),
    ("hasten compiled", "static-8bit", CompiledC),
    ("OpenVINO", "nncf", OpenVino),
    ("OpenVINO", "static", OpenVino),
    ("ONNX Runtime", "static", OnnxRuntime),
    ("LiteRT", "litert", LiteRt),
    ("ONNX Runtime fp32", "", OnnxRuntime),
)


def _memory() -> int:
    """Return this process' own memory in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes busy while the block runs."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@contextlib.contextmanager
def opened(
    name: str, kind: type[Engine], model: Any, threads: int, request: dict[str, Array], folder: Path
) -> Iterator[Contender]:
    """Yield a contender whose arrays are bound."""
    target = Target.host().with_threads(threads)
    engine = next(iter(kind.variants(target))).on_threads(threads)
    folder.mkdir()
    (folder / "cache").mkdir()
    (folder / "built").mkdir()
    begin = time.perf_counter()
    artifact = engine.build(model, target, folder / "built")
    built = time.perf_counter() - begin
    cache = CompileCache(CacheFolder(folder / "cache", 1 << 30))
    begin = time.perf_counter()
    with engine.open_cached(artifact, target, cache):
        first = time.perf_counter() - begin
    before, begin = _memory(), time.perf_counter()
    with engine.open_cached(artifact, target, cache) as session:
        second = time.perf_counter() - begin
        outputs = {key: np.empty_like(array) for key, array in session.run(request).items()}
        given = {spec.name: request[spec.name].copy() for spec in session.inputs}
        call = session.bind(given, outputs)
        call()
        taken = (_memory() - before) / 1e6
        facts = (
            f"build {built:.1f} s, open {first:.2f} s, again {1e3 * second:.0f} ms, {taken:.0f} MB"
        )
        if kind is CompiledC:
            (folder / "cold").mkdir()
            facts += ", " + peaks(engine, artifact, target, folder / "cold", request)
        yield Contender(name, threads, kind is CompiledC, call, session, request, facts)


def turn(contender: Contender) -> None:
    """Call for some time, and note the median."""
    found: list[float] = []
    until = time.perf_counter() + _TURN_S
    while time.perf_counter() < until or len(found) < 5:
        begin = time.perf_counter()
        contender.call()
        found.append(1e3 * (time.perf_counter() - begin))
    contender.rounds.append(float(np.median(found)))
    contender.times += found


def agreement(contender: Contender, data: Dataset, wanted: list[int], crops: int) -> float:
    """Return the share of samples of which the class is the float network's."""
    name = contender.session.inputs[0].name
    same = 0
    for index in range(crops):
        request = {name: np.ascontiguousarray(next(iter(data.inputs([index]).values())))}
        answer = next(iter(contender.session.run(request).values()))
        same += int(answer.argmax()) == wanted[index]
    return same / crops


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print the lines of one network."""
    network = NETWORKS[name]
    data = network.data()
    request = {"": np.ascontiguousarray(next(iter(data.inputs([1]).values())))}

    def sample(_: Any) -> dict[str, Any]:
        return {key: array[0] for key, array in data.inputs([0]).items()}

    (folder / "exported").mkdir(parents=True)
    model = load_model(network.module(), sample, folder / "exported")
    name_of = model.inputs[0].name
    request = {name_of: request[""]}
    model = model.settled_by(request)
    data = Renamed(data, name_of)
    files = {"": model}
    for label, step in quantizers().items():
        (folder / label).mkdir()
        try:
            files[label] = step(model, data, folder / label)
        except CandidateError as error:
            print(f"{name}: {label}: {error}", flush=True)
    with contextlib.ExitStack() as stack:
        contenders: list[Contender] = []
        for threads in arguments.threads:
            for runtime, label, kind in ROWS:
                if label not in files or (not label and threads != max(arguments.threads)):
                    continue
                title = f"{runtime} {label}".strip()
                place = folder / f"{len(contenders)}-{threads}-{label}-{kind.__name__}"
                try:
                    contenders.append(
                        stack.enter_context(
                            opened(title, kind, files[label], threads, request, place)
                        )
                    )
                except CandidateError as error:
                    print(f"{name}: {title}: {error}", flush=True)
        with busy(arguments.busy):
            for _ in range(arguments.rounds):
                for one in contenders:
                    turn(one)
        if network.real and arguments.crops:
            float_one = next(one for one in contenders if "fp32" in one.name)
            key = float_one.session.inputs[0].name
            wanted = [
                int(
                    next(
                        iter(
                            float_one.session.run(
                                {key: next(iter(data.inputs([i]).values()))}
                            ).values()
                        )
                    ).argmax()
                )
                for i in range(arguments.crops)
            ]
            for one in contenders:
                one.agreed = agreement(one, data, wanted, arguments.crops)
        report(name, contenders)


def report(name: str, contenders: list[Contender]) -> None:
    """Print what was measured."""
    print(f"\n{name}")
    for threads in sorted({one.threads for one in contenders}):
        own = [one for one in contenders if one.threads == threads]
        mine = [one for one in own if one.ours]
        best = min(mine, key=lambda one: float(np.median(one.times)), default=None)
        for one in own:
            ratios = (
                [0.0]
                if best is None
                else [a / b for a, b in zip(one.rounds, best.rounds, strict=True)]
            )
            print(
                f"  {threads} thread(s) {one.name:28} p50 {np.median(one.times):7.2f} ms, "
                f"{np.median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), "
                f"agrees {100 * one.agreed:5.1f}%, {one.facts}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--crops", type=int, default=300, help="Crops whose class is compared.")
    parser.add_argument(
        "--busy", type=int, default=0, help="Other processes that compute while calls are timed."
    )
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="Time nothing: print which steps of many networks would calculate with bytes.",
    )
    arguments = parser.parse_args()
    known = list(byte_coverage.NETWORKS if arguments.coverage else NETWORKS)
    if unknown := set(arguments.networks) - set(known):
        parser.error(
            f"no such networks: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    torch.set_num_threads(1)
    if arguments.coverage:
        with tempfile.TemporaryDirectory() as folder:
            byte_coverage.print_coverage(arguments.networks or known, Path(folder))
        return
    print(f"{Target.host().processor}, {' '.join(Target.host().isa)}")
    for name in arguments.networks or known:
        with tempfile.TemporaryDirectory() as folder:
            try:
                compare(name, arguments, Path(folder) / "work")
            except Exception:  # the others are still worth their time
                traceback.print_exc()


if __name__ == "__main__":
    main()
