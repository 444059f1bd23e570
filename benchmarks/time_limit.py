"""Whole commands against their time limit, with the time of each stage, on a quiet or a loaded machine.

    python benchmarks/time_limit.py [mlp|cnn|mobilenet ...] [--limits none,40,120] [--load 2] [--effort quick]

Each run is a process, `hasten optimize`, timed from its start to its end; `none` runs without a limit.
`--load` keeps so many processes busy meanwhile. A line each: the limit, what the command took, what it may
have taken (a tenth or 5 s more), what came of it, when that was decided, and the seconds by stage. Beginnings
of notes that name the time limit follow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SAMPLES = 1000


def mlp(folder: Path) -> Path:
    """Write a classifier of rows, of scikit-learn's usual size, with its samples."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Linear(30, 100), torch.nn.ReLU()),
        *(torch.nn.Linear(100, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)),
    )
    return _written(net, (30,), folder)


def cnn(folder: Path) -> Path:
    """Write four convolutions at 48 px, with samples."""
    import torch

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    before = 3
    for channels in (32, 64, 64, 128):
        layers += [
            torch.nn.Conv2d(before, channels, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]
        before = channels
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(128 * 9, 10))
    return _written(net, (3, 48, 48), folder)


def mobilenet(folder: Path) -> Path:
    """Write a MobileNetV3-large at 224 px with random weights, with samples."""
    import torch
    import torchvision

    torch.manual_seed(0)
    return _written(torchvision.models.mobilenet_v3_large(), (3, 224, 224), folder)


NETWORKS = {"mlp": mlp, "cnn": cnn, "mobilenet": mobilenet}


def _written(net, shape: tuple[int, ...], folder: Path) -> Path:  # type: ignore[no-untyped-def]
    import torch

    net.eval()
    path = folder / "model.onnx"
    torch.onnx.export(
        net,
        (torch.zeros(1, *shape),),
        str(path),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        dynamo=False,
    )
    x = np.random.default_rng(0).standard_normal((SAMPLES, *shape), dtype=np.float32)
    with torch.no_grad():
        labels = np.concatenate(
            [net(torch.from_numpy(x[i : i + 50])).argmax(1).numpy() for i in range(0, SAMPLES, 50)]
        )
    np.savez(folder / "data.npz", x=x, labels=labels)
    return path


@contextlib.contextmanager
def loaded(count: int) -> Iterator[None]:
    """Keep processes busy while the block runs."""
    busy = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for one in busy:
        one.start()
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.join()


def _spin() -> None:
    while True:
        np.linalg.svd(np.random.default_rng(0).standard_normal((200, 200)))


def timed(folder: Path, limit: str, effort: str, number: int) -> tuple[float, str]:
    """Run one command; return its seconds and a line that says what came of it."""
    out = folder / f"bundle-{number}"
    limited = [] if limit == "none" else ["--time-limit", f"{limit}s"]
    began = time.monotonic()
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from hasten.cli import main; main()"),
            *("optimize", str(folder / "model.onnx")),
            *("--data", str(folder / "data.npz"), "--out", str(out), "--effort", effort, *limited),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        assert run.stdout is not None
        stages: list[tuple[str, float]] = []
        line = ""
        for line in run.stderr:
            if line.rstrip().endswith("...") and not line.startswith(" "):
                stages.append((line.rstrip()[:-4], time.monotonic() - began))
        run.stdout.read()
    took_s = time.monotonic() - began
    ends = [*(at for _, at in stages[1:]), took_s]
    shown = ", ".join(
        f"{name} {end - at:.1f}" for (name, at), end in zip(stages, ends, strict=False)
    )
    said = f"failed: {line.strip()}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        result = json.loads((out / "evidence" / "result.json").read_text())
        decided = result.get("decided_s")
        when = "" if decided is None else f", decided after {decided:.1f}"
        notes = [note for note in result["notes"] if "time limit" in note]
        rows = {row["role"]: row["label"] for row in result["rows"]}
        said = f"{result['status']} {rows.get('winner', rows.get('fastest exact', '-'))}{when}; {shown}"
        said += "".join(f"\n    {note[:150]}" for note in notes)
    return took_s, said


def main() -> None:
    """Run each network with each limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["mlp", "cnn"])
    parser.add_argument("--limits", default="none,40,120")
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--effort", default="normal")
    given = parser.parse_args()
    for name in given.networks:
        with tempfile.TemporaryDirectory(prefix="hasten-limit-") as kept:
            folder = Path(kept)
            NETWORKS[name](folder)
            for number, limit in enumerate(given.limits.split(",")):
                with loaded(given.load):
                    took_s, said = timed(folder, limit, given.effort, number)
                may = (
                    ""
                    if limit == "none"
                    else f" (may: {max(1.1 * float(limit), float(limit) + 5):.0f})"
                )
                print(f"{name}, limit {limit}: {took_s:.1f} s{may}, {said}", flush=True)


if __name__ == "__main__":
    main()
