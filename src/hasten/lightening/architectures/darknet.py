"""Read networks from Darknet's .cfg files, and read and write their .weights files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hasten.errors import InputError

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "linear": nn.Identity,
}
_LOADED_EPSILON = 1e-12
"""Epsilon of loaded normalizations: small, since the variances include Darknet's own, and above 0,
since a constant channel would be divided by 0 in training."""


class Section(NamedTuple):
    """Layer of a .cfg file."""

    kind: str
    settings: dict[str, str]

    def number(self, name: str, default: int = 0) -> int:
        """Return a setting that is a whole number.

        Raises:
            InputError: the setting is something else.
        """
        found, *more = self._whole(name, str(default))
        if more:
            raise InputError(f"{name}= in [{self.kind}] of a .cfg file must be one whole number")
        return found

    def numbers(self, name: str) -> list[int]:
        """Return a setting that is a list of whole numbers.

        Raises:
            InputError: the setting is missing, or something else.
        """
        if name not in self.settings:
            raise InputError(f"[{self.kind}] in a .cfg file needs {name}=, which is missing")
        return self._whole(name, "")

    def _whole(self, name: str, default: str) -> list[int]:
        text = self.settings.get(name, default)
        try:
            return [int(part) for part in text.split(",")]
        except ValueError as error:
            raise InputError(
                f"{name}={text} in [{self.kind}] of a .cfg file isn't a whole number"
            ) from error


def read_sections(text: str) -> list[Section]:
    """Read the sections of a .cfg file; several sections may have the same name.

    Raises:
        InputError: the file doesn't begin with a section, or a line is no setting.
    """
    found: list[Section] = []
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        if line.startswith("["):
            found.append(Section(line.strip("[]"), {}))
        elif line:
            name, equals, value = line.partition("=")
            if not found or not equals:
                raise InputError(f"a .cfg file has sections with lines name=value: got {line!r}")
            found[-1].settings[name.strip()] = value.strip()
    return found


class Darknet(nn.Module):
    """Network of a .cfg file: its layers in order, with a head at each [yolo].

    Args:
        text: Content of the file.

    Raises:
        InputError: a layer or a setting isn't supported.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        sections = read_sections(text)
        if not sections or sections[0].kind not in ("net", "network"):
            raise InputError("a .cfg file must begin with [net]")
        net, *self.sections = sections
        self.layers = nn.ModuleList()
        given = [net.number("channels", 3)]  # output channels of each layer, after the image's
        for position, section in enumerate(self.sections):
            layer, channels = _layer(section, given[-1])
            if section.kind == "route":
                groups = section.number("groups", 1)
                channels = sum(given[i + 1] // groups for i in _routes(section, position))
            self.layers.append(layer)
            given.append(channels)

    def heads(self, x: torch.Tensor) -> list[tuple[Section, torch.Tensor]]:
        """Return each [yolo] layer and its input.

        Args:
            x: Images in [0, 1] of dtype float32 and shape `(n, channels, height, width)`.

        Returns:
            Each layer's section of the file, and its input of dtype float32 and shape
            `(n, boxes * (5 + classes), height, width)`.
        """
        found: list[tuple[Section, torch.Tensor]] = []
        given: list[torch.Tensor] = []
        for position, (section, layer) in enumerate(zip(self.sections, self.layers, strict=True)):
            if section.kind == "route":
                x = _routed([given[i] for i in _routes(section, position)], section)
            elif section.kind == "yolo":
                found.append((section, x))
            else:
                x = layer(x)
            given.append(x)
        return found

    def candidates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all boxes and their scores.

        Args:
            x: Images in [0, 1] of dtype float32 and shape `(n, channels, height, width)`.

        Returns:
            Corners of the boxes in pixels of `x`, of shape `(n, k, 4)`, and scores of shape
            `(n, k, classes)`.
        """
        size = (x.shape[2], x.shape[3])
        decoded = [decoded_head(section, head, size) for section, head in self.heads(x)]
        boxes, scores = zip(*decoded, strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    @property
    def numbers(self) -> int:
        """Number of floats in the network's .weights file."""
        statistics = [
            2 * part.num_features for part in self.modules() if isinstance(part, nn.BatchNorm2d)
        ]
        return sum(p.numel() for p in self.parameters()) + sum(statistics)

    def load(self, file: Path) -> None:
        """Load the weights of a .weights file.

        Args:
            file: Path of the file.

        Raises:
            InputError: the file can't be read, or its number of weights isn't the network's.
        """
        weights = _read(file)
        if self.numbers != len(weights):
            raise InputError(
                f"{file} holds {len(weights)} numbers, but its .cfg needs {self.numbers}"
            )
        left = torch.from_numpy(weights)
        with torch.no_grad():
            for tensor, variance in self._stored():
                taken, left = left[: tensor.numel()].view_as(tensor), left[tensor.numel() :]
                # Darknet divides by sqrt(variance) + 1e-6, torch by sqrt(variance + eps).
                tensor.copy_((taken.double().sqrt() + 1e-6) ** 2 if variance else taken)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = _LOADED_EPSILON

    def save(self, file: Path) -> None:
        """Write a .weights file of version 0.2, which `load` and Darknet can read.

        Variances may differ from the loaded ones in the last digit of a float.

        Args:
            file: Path of the file.

        Raises:
            InputError: the file can't be written.
        """
        parts = [np.array([0, 2, 0], np.int32).tobytes(), np.array([0], np.int64).tobytes()]
        epsilon = next((m.eps for m in self.modules() if isinstance(m, nn.BatchNorm2d)), 0.0)
        for tensor, variance in self._stored():
            values = tensor.detach().double().cpu()
            if variance:
                values = ((values + epsilon).sqrt() - 1e-6).clamp(min=0) ** 2
            parts.append(values.float().numpy().tobytes())
        try:
            file.write_bytes(b"".join(parts))
        except OSError as error:
            raise InputError(f"can't write {file}: {error.strerror or error}") from error

    def _stored(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the tensors in a file's order, and whether each is a normalization's variance."""
        for section, layer in zip(self.sections, self.layers, strict=True):
            if section.kind == "convolutional":
                yield from _stored_of(layer)


def _read(file: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read the floats after a file's header, which holds the version and the number of images."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {file}: {error.strerror or error}") from error
    if len(data) < 12:
        raise InputError(f"{file} isn't a .weights file: it has only {len(data)} bytes")
    major, minor, _ = np.frombuffer(data, np.int32, 3).tolist()
    body = data[12 + (8 if major * 10 + minor >= 2 else 4) :]
    if len(body) % 4:
        raise InputError(f"{file} is cut off: {len(body)} bytes aren't a whole number of floats")
    return np.frombuffer(body, np.float32).copy()


def _stored_of(layer: Any) -> Iterator[tuple[torch.Tensor, bool]]:
    convolution, norm = layer[0], layer[1]
    if isinstance(norm, nn.BatchNorm2d):
        yield norm.bias, False
        yield norm.weight, False
        yield norm.running_mean, False  # type: ignore[misc]
        yield norm.running_var, True  # type: ignore[misc]
    else:
        yield convolution.bias, False
    yield convolution.weight, False


def _routes(section: Section, position: int) -> list[int]:
    """Return the layers that a [route] reads; negative numbers count back from the route."""
    found = [i if i >= 0 else position + i for i in section.numbers("layers")]
    if not all(0 <= i < position for i in found):
        raise InputError(
            f"layers={section.settings['layers']} in [route] of a .cfg file names layers that "
            "don't come before it"
        )
    return found


def _routed(given: list[torch.Tensor], section: Section) -> torch.Tensor:
    """Concatenate layers' outputs, or one of the equal groups of each output's channels."""
    groups, group = section.number("groups", 1), section.number("group_id")
    if groups > 1:
        given = [one.chunk(groups, 1)[group] for one in given]
    return torch.cat(given, 1) if len(given) > 1 else given[0]


def _layer(section: Section, channels: int) -> tuple[nn.Module, int]:
    """Return a layer, with its weights not yet loaded, and its number of output channels."""
    if section.kind == "convolutional":
        return _convolution(section, channels)
    if section.kind == "maxpool":
        return _pool(section), channels
    if section.kind == "upsample":
        return nn.Upsample(scale_factor=section.number("stride")), channels
    if section.kind == "yolo" and section.number("new_coords"):
        raise InputError("a .cfg file with new_coords=1 in [yolo] isn't supported")
    if section.kind in ("route", "yolo"):
        return nn.Identity(), channels
    raise InputError(f"a .cfg file with a layer [{section.kind}] isn't supported")


def _convolution(section: Section, channels: int) -> tuple[nn.Module, int]:
    size, filters = section.number("size", 1), section.number("filters", 1)
    normalized = bool(section.number("batch_normalize"))
    padding = size // 2 if section.number("pad") else section.number("padding")
    name = section.settings.get("activation", "logistic")
    if name not in _ACTIVATIONS:
        raise InputError(
            f"a .cfg file with activation={name} isn't supported; the supported ones are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    convolution = nn.Conv2d(
        channels,
        filters,
        size,
        section.number("stride", 1),
        padding,
        groups=section.number("groups", 1),
        bias=not normalized,
    )
    norm = nn.BatchNorm2d(filters) if normalized else nn.Identity()
    return nn.Sequential(convolution, norm, _ACTIVATIONS[name]()), filters


def _pool(section: Section) -> nn.Module:
    stride = section.number("stride", 1)
    size = section.number("size", stride)
    if section.number("padding", size - 1) != size - 1:
        raise InputError("a .cfg file with padding= in [maxpool] isn't supported")
    if size % 2:
        return nn.MaxPool2d(size, stride, padding=size // 2)
    if size == stride == 2:
        return nn.MaxPool2d(2, 2, ceil_mode=True)
    if size == 2 and stride == 1:
        return _EvenPool()
    raise InputError(f"a .cfg file with [maxpool] size={size} stride={stride} isn't supported")


class _EvenPool(nn.Module):
    """Pool 2 x 2 windows at every position like Darknet, which pads only below and to the right."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, 1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(x)[:, :, 1:, 1:]
        return pooled


def decoded_head(
    section: Section, head: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a head's boxes `(n, k, 4)`, as corners in pixels, and scores `(n, k, classes)`.

    Args:
        section: Section of the [yolo] layer.
        head: Input of the [yolo] layer.
        size: Height and width of the image, in pixels.

    Source: Redmon and Farhadi, YOLOv3, arXiv:1804.02767, section 2.1; `scale_x_y`, Bochkovskiy et
    al., YOLOv4, arXiv:2004.10934, section 3.4, "eliminate grid sensitivity".
    """
    every = torch.tensor(section.numbers("anchors"), dtype=head.dtype, device=head.device)
    anchors = every.view(-1, 2)[section.numbers("mask")]
    height, width = head.shape[2:]
    n, classes = head.shape[0], section.number("classes")
    head = head.view(n, len(anchors), 5 + classes, height, width).permute(0, 1, 3, 4, 2)
    rows, columns = torch.meshgrid(
        torch.arange(height, device=head.device),
        torch.arange(width, device=head.device),
        indexing="ij",
    )
    cells = torch.stack([columns, rows], 2).to(head.dtype)
    reach = float(section.settings.get("scale_x_y", 1))
    steps = torch.tensor([size[1] / width, size[0] / height], dtype=head.dtype, device=head.device)
    centres = (head[..., 0:2].sigmoid() * reach - (reach - 1) / 2 + cells) * steps
    halves = head[..., 2:4].exp() * anchors[:, None, None] / 2
    boxes = torch.cat([centres - halves, centres + halves], 4)
    scores = head[..., 4:5].sigmoid() * head[..., 5:].sigmoid()
    return boxes.reshape(n, -1, 4), scores.reshape(n, -1, classes)
