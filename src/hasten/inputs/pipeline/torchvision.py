"""Pipelines of torchvision's transforms: the presets of its weights, and Compose of the usual ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.image import (
    CenterCrop,
    Decode,
    Normalize,
    Resize,
    ToLayout,
)
from hasten.inputs.pipeline.resample import OPENCV
from hasten.inputs.pipeline.strips import Colors, Interpolation

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_OURSELVES = "state the pipeline yourself"


def from_torchvision(transform: Any) -> Pipeline:
    """Build the pipeline of a transform of torchvision, as it treats a picture of Pillow.

    Known are the presets of the weights for classification, detection and segmentation, and
    `Compose` (of `transforms` and of `transforms.v2`) of Resize, CenterCrop, ToTensor, PILToTensor,
    ToImage, ConvertImageDtype, ToDtype, Normalize and Grayscale. Pictures are turned upright as their EXIF
    data says, which torchvision leaves to the caller.

    Args:
        transform: The transform, such as `weights.transforms()`.

    Raises:
        InputError: the transform, or one inside it, isn't known, or has a setting that the steps
            can't follow; the message names it.
    """
    name = type(transform).__name__
    if name == "ImageClassification":
        steps: list[Step] = [
            Resize(_size(transform.resize_size), _filter(transform.interpolation)),
            CenterCrop(_size(transform.crop_size)),
            Normalize(_channels(transform.mean, 3), _channels(transform.std, 3)),
        ]
    elif name == "SemanticSegmentation":
        if transform.resize_size != [None]:
            steps = [Resize(_size(transform.resize_size), _filter(transform.interpolation))]
        else:
            steps = []
        steps.append(Normalize(_channels(transform.mean, 3), _channels(transform.std, 3)))
    elif name == "ObjectDetection":
        steps = [Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))]
    elif name == "Compose":
        return _composed(transform.transforms)
    else:
        raise InputError(
            f"torchvision's transform {name} isn't supported; the supported ones are ImageClassification, "
            f"SemanticSegmentation, ObjectDetection and Compose: {_OURSELVES}"
        )
    return Pipeline((Decode(), *steps, ToLayout()))


class _Reader:
    """Steps of a `Compose`, and what its values are like so far.

    Attributes:
        steps: Steps so far, after the decoding.
        colors: Colors to decode to.
        channels: Number of channels of the values.
        tensor: Whether the value is a tensor by now.
        unit: Whether its values are floats in [0, 1] by now.
        normalized: Whether they were normalized.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.colors: Colors = "RGB"
        self.channels = 3
        self.tensor = self.unit = self.normalized = False

    def read(self, transform: Any) -> None:
        """Add the steps of one transform."""
        name = type(transform).__name__
        if name in ("Resize", "CenterCrop"):
            if self.unit or self.normalized:
                raise InputError(
                    f"torchvision's {name} comes after the values are scaled, which hasten's "
                    f"steps can't do: put it first, or {_OURSELVES}"
                )
            self.steps.append(
                self._resize(transform) if name == "Resize" else CenterCrop(_size(transform.size))
            )
        elif name == "Grayscale":
            self._to_gray(transform)
        elif name in ("ToTensor", "PILToTensor", "ToImage"):
            self.tensor, self.unit = True, self.unit or name == "ToTensor"
        elif name in ("ConvertImageDtype", "ToDtype"):
            self._to_dtype(transform, name)
        elif name == "Normalize":
            if not self.unit or self.normalized:
                raise InputError(
                    "torchvision's Normalize must come once, after the values are scaled to "
                    f"[0, 1]: {_OURSELVES}"
                )
            mean, std = (
                _channels(given, self.channels) for given in (transform.mean, transform.std)
            )
            self.steps.append(Normalize(mean, std))
            self.normalized = True
        elif name == "Compose":
            for inner in transform.transforms:
                self.read(inner)
        elif name not in ("Identity", "ToPureTensor"):
            raise InputError(
                f"torchvision's transform {name} isn't supported; the supported ones are Resize, "
                "CenterCrop, Grayscale, ToTensor, PILToTensor, ToImage, ConvertImageDtype, ToDtype and "
                f"Normalize: {_OURSELVES}"
            )

    def _to_gray(self, transform: Any) -> None:
        if self.tensor or any(isinstance(step, Resize) for step in self.steps):
            raise InputError(
                "torchvision's Grayscale comes after the picture is resized or made a tensor, but hasten's step "
                "decode makes it gray first, which rounds otherwise: put Grayscale first"
            )
        self.colors, self.channels = "gray", transform.num_output_channels

    def _resize(self, transform: Any) -> Step:
        if transform.max_size is not None:
            raise InputError(
                f"torchvision's Resize has max_size={transform.max_size}: leave it out"
            )
        if transform.size is None:
            raise InputError(f"torchvision's Resize has no size: {_OURSELVES}")
        if self.tensor and not transform.antialias:
            if _filter(transform.interpolation) != "bilinear":
                raise InputError(
                    "torchvision's Resize of a tensor has antialias=False, but hasten's step doesn't smooth only "
                    "if it is bilinear: set antialias=True, or resize before the tensor is made"
                )
            return Resize(_size(transform.size), OPENCV)
        return Resize(_size(transform.size), _filter(transform.interpolation))

    def _to_dtype(self, transform: Any, name: str) -> None:
        wanted = transform.dtype
        if isinstance(wanted, dict) or str(wanted) != "torch.float32":
            raise InputError(
                f"torchvision's {name} gives {wanted}; only torch.float32 is supported"
            )
        if not self.tensor or not getattr(transform, "scale", True):
            raise InputError(
                f"torchvision's {name} must scale a tensor to [0, 1]: set scale=True, or "
                f"{_OURSELVES}"
            )
        self.unit = True


def _composed(transforms: Iterable[Any]) -> Pipeline:
    reader = _Reader()
    for transform in transforms:
        reader.read(transform)
    if not reader.tensor:
        raise InputError(f"torchvision's Compose makes no tensor: add ToTensor, or {_OURSELVES}")
    steps = (Decode(colors=reader.colors), *reader.steps)
    if not reader.unit:
        if reader.colors == "gray" and reader.channels > 1:
            raise InputError(
                f"torchvision's Grayscale gives {reader.channels} channels of whole numbers; hasten's steps give 1: "
                f"scale the values to [0, 1], or {_OURSELVES}"
            )
        return Pipeline((*steps, ToLayout(dtype="uint8")))
    if not reader.normalized:
        steps = (*steps, Normalize((0.0,) * reader.channels, (1.0,) * reader.channels))
    return Pipeline((*steps, ToLayout()))


def _size(value: Any) -> int | tuple[int, int]:
    sides = [value] if isinstance(value, int) else list(value)
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _channels(value: Any, count: int) -> tuple[float, ...]:
    values = [float(number) for number in value]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise InputError(
            f"torchvision's Normalize is for {len(values)} channels; these pictures have {count}"
        )
    return tuple(values)


def _filter(mode: Any) -> Interpolation:
    name = str(getattr(mode, "value", mode))
    if name not in _FILTERS:
        raise InputError(
            f"torchvision's interpolation {name!r} isn't supported; the supported ones are "
            f"{', '.join(_FILTERS)}"
        )
    return cast(Interpolation, name)
