"""Time a newcomer's first minutes: from an empty environment to an exact answer and to a certified one.

    .venv/bin/python benchmarks/first_minutes.py --extra quick

makes an environment, installs hasten with one extra into it, and optimizes a small convolutional network
with 1,000 labelled samples by the installed command. It prints when each step ended. The wheel of hasten is
built beforehand, as a package index has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hasten.bundle import read
from hasten.bundle.manifest import unfinished
from hasten.core.records import from_record
from hasten.engines.base import Engine
from hasten.errors import HastenError
from hasten.passes.base import Pass
from hasten.testing import models

ROOT = Path(__file__).parents[1]
CLASSES = 10
SIDE = 96
WIDTHS = ((32, 2), (64, 6), (128, 6))
"""Channels and layers of each stage; each stage halves the picture's side."""
NOISE = 0.5
"""Deviation of a sample from its class, whose pictures have unit deviation."""
RIDGE = 1e-4
"""Share of the features' mean energy by which large weights of the last layer are held down."""
_POLL_S = 0.05


def subject(folder: Path, samples: int = 1000) -> tuple[Path, Path]:
    """Write a network of about 5 ms on one thread, and samples that it gets right for the most part.

    Its convolutions are random, and its last layer is fitted to other samples of the same classes.

    Args:
        folder: Folder to write to.
        samples: Number of samples that judge.

    Returns:
        The model's file and the data's.
    """
    rng = np.random.default_rng(1)
    kinds = rng.standard_normal((CLASSES, 3, SIDE // 8, SIDE // 8), np.float32)
    kinds = kinds.repeat(8, axis=2).repeat(8, axis=3)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, CLASSES, count)
        return kinds[labels] + NOISE * rng.standard_normal(
            (count, 3, SIDE, SIDE), np.float32
        ), labels

    model = _network(folder)
    _fit(model, *drawn(samples))
    x, labels = drawn(samples)
    np.savez(folder / "eval.npz", x=x, labels=labels)
    return model, folder / "eval.npz"


def _network(folder: Path) -> Path:
    """Write the network with random weights: x: float32[batch, 3, 96, 96] -> features and logits."""
    lines, weights, above, last = [], {}, 3, "x"
    for stage, (width, layers) in enumerate(WIDTHS):
        for layer in range(layers + 1):
            name, stride = f"{stage}_{layer}", 1 if layer else 2
            weights[f"w{name}"], weights[f"b{name}"] = (width, above, 3, 3), (width,)
            lines.append(
                f"c{name} = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
                f"strides = [{stride}, {stride}]> ({last}, w{name}, b{name})"
            )
            lines.append(f"r{name} = Relu(c{name})")
            above, last = width, f"r{name}"
    text = f"""
        first_minutes (float[batch, 3, {SIDE}, {SIDE}] x) => (float[batch, {CLASSES}] logits) {{
            {chr(10).join(lines)}
            pooled = GlobalAveragePool({last})
            features = Flatten <axis = 1> (pooled)
            logits = Gemm(features, weight, bias)
        }}"""
    weights |= {"weight": (above, CLASSES), "bias": (CLASSES,)}
    return models.write(folder / "model.onnx", text, weights)


def _fit(file: Path, x: np.ndarray, labels: np.ndarray) -> None:
    """Fit the last layer to samples, by least squares."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    inner = onnx.load(file)
    inner.graph.node[-1].output[0] = "unused"
    del inner.graph.output[:]
    inner.graph.output.append(helper.make_tensor_value_info("features", 1, None))
    session = onnxruntime.InferenceSession(inner.SerializeToString())
    features = np.concatenate([session.run(["features"], {"x": one[None]})[0] for one in x])
    wide = np.hstack([features, np.ones((len(x), 1), np.float32)])
    ridge = RIDGE * np.trace(wide.T @ wide) / len(wide.T) * np.eye(len(wide.T))
    solved = np.linalg.solve(wide.T @ wide + ridge, wide.T @ np.eye(CLASSES)[labels])
    fitted = {"weight": solved[:-1], "bias": solved[-1]}
    for tensor in model.graph.initializer:
        if tensor.name in fitted:
            found = fitted[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))
    onnx.save(model, file)


class Clock:
    """Marks by name, in seconds since the beginning; each is printed as it is made."""

    def __init__(self) -> None:
        self.began, self.marks = time.monotonic(), dict[str, float]()

    def mark(self, name: str) -> None:
        """Keep and print when something was done, unless it was done before."""
        if name not in self.marks:
            self.marks[name] = time.monotonic() - self.began
            print(f"{self.marks[name]:7.1f} s  {name}", flush=True)


def built(folder: Path) -> Path:
    """Build hasten's wheel from a copy of the repository, which stays as it is."""
    copy = folder / "repository"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, copy], check=True)
    return next(folder.glob("hasten-*.whl"))


def installed(folder: Path, wheel: Path, extra: str, clock: Clock) -> Path:
    """Make an environment and install hasten into it; return its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    clock.mark("an environment is there")
    programs = folder / "env" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, f"{wheel}[{extra}]" if extra else wheel], check=True, env=_alone())
    clock.mark(f"hasten[{extra}] is installed")
    size = sum(f.lstat().st_size for f in (folder / "env").rglob("*") if not f.is_symlink())
    print(f"{'':9}  {size / 1e6:,.0f} MB on disk")
    return programs


def _alone() -> dict[str, str]:
    """Return this environment without what would let Python find packages elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(
    programs: Path, model: Path, data: Path, out: Path, options: Sequence[str], clock: Clock
) -> None:
    """Optimize by the installed command, and mark each answer as soon as it is a bundle on disk."""
    command = [programs / "hasten", "optimize", model, "--data", data, "--out", out, *options]
    folder = out.parent
    alone = _alone()
    alone |= {"HASTEN_LEDGER": str(folder / "ledger"), "HASTEN_CACHE": str(folder / "cache")}
    log = (folder / "log.txt").open("w", buffering=1)
    with subprocess.Popen(
        command, env=alone, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        threads = [
            threading.Thread(target=_told, args=(stream, clock, log.write))
            for stream in (process.stderr, process.stdout)
        ]
        for thread in threads:
            thread.start()
        while process.poll() is None:
            _look(out, clock)
            time.sleep(_POLL_S)
        for thread in threads:
            thread.join()
    _look(out, clock)
    log.close()
    clock.mark(f"the command ended with {process.returncode}")


def _told(stream: object, clock: Clock, write: Callable[[str], object]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        clock.mark("the first line is on the screen")
        write(f"{time.monotonic() - clock.began:7.1f}  {line}")


def _look(out: Path, clock: Clock) -> None:
    """Mark what the bundle has to offer, if there is one yet, and it is faster than the original."""
    with suppress(HastenError, OSError):
        manifest = read(out)
        winner = manifest.winner
        if manifest.status == "certified":
            clock.mark(f"certified: {winner.label}")
            if not unfinished(manifest.why):
                clock.mark("it is timed again, and ships")
            return
        steps = [from_record(Pass, step) for step in winner.passes]
        exact = from_record(Engine, winner.engine).exact and all(step.exact for step in steps)
        if exact and manifest.exact is not None and winner.label != manifest.exact.label:
            clock.mark(f"exact and faster: {winner.label}")


def main() -> None:
    """Measure once, and print the marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extra", default="quick", help="extra of hasten to install")
    parser.add_argument("--env", type=Path, help="environment that is there already, to reuse")
    parser.add_argument("--keep", type=Path, help="folder that keeps all that was made")
    parser.add_argument("options", nargs="*", help="further options of hasten optimize, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, data = subject(folder)
        wheel = None if given.env else built(folder)
        clock = Clock()
        programs = (
            given.env / "bin" if wheel is None else installed(folder, wheel, given.extra, clock)
        )
        run(programs, model, data, folder / "model.hasten", given.options, clock)
        print((folder / "log.txt").read_text())


if __name__ == "__main__":
    main()
