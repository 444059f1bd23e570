"""Image pipelines built from settings: flags, a YAML file, or timm's pretrained_cfg."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.core.yaml_files import read_yaml
from hasten.errors import InputError, visible
from hasten.inputs.pipeline.base import Pipeline, PostStep, Step
from hasten.inputs.pipeline.hugging_face import from_hugging_face
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout, check_size
from hasten.inputs.pipeline.ultralytics import from_ultralytics
from hasten.inputs.pipeline.written import steps_of

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "opencv_linear")
LAYOUTS = ("CHW", "HWC")
DTYPES = ("float32", "float16", "uint8")
COLORS = ("RGB", "BGR", "gray")
SETTINGS = (
    *("size", "resize", "interpolation", "mean", "std", "scale", "layout", "dtype"),
    "colors",
)
_MOST_BYTES = 1 << 20
TIMM_CROP_PCT = 0.875
"""Default of timm, its DEFAULT_CROP_PCT."""


def image_pipeline(
    size: int | Sequence[int],
    resize: int | Sequence[int] | None = None,
    interpolation: str = "bicubic",
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    scale: float = 1 / 255,
    layout: str = "CHW",
    dtype: str = "float32",
    colors: str = "RGB",
) -> Pipeline:
    """Build the customary pipeline: decode, resize, crop the center, normalize, order the axes.

    Args:
        size: Size of the model's input: one side of a square, or (height, width).
        resize: Length of the shorter side before the crop, or (height, width); by default `size`,
            so that only what exceeds a square is cropped.
        interpolation: Filter of Pillow, "bicubic", "bilinear", ..., or "opencv_linear".
        mean: Mean of the scaled values, per channel or one for all; 0 where only `std` is given.
            Without mean and std, float values are only scaled.
        std: Standard deviation of the scaled values, per channel or one for all; 1 where only
            `mean` is given.
        scale: Factor that pixel values are multiplied by first; 1 where mean and std are in [0,
            255].
        layout: Order of the axes, "CHW" or "HWC".
        dtype: Element type: "float32", "float16", or "uint8", which leaves pixel values as they
            are.
        colors: Colors that the model takes: "RGB", "BGR", or "gray", which is one channel unless there are
            three means or deviations.

    Raises:
        InputError: a setting can't be used; the message names it.
    """
    crop = _size("size", size)
    steps: list[Step] = [
        Decode(colors=_one_of("colors", colors, COLORS)),
        Resize(
            _size("resize", crop if resize is None else resize),
            _one_of("interpolation", interpolation, INTERPOLATIONS),
        ),
        CenterCrop(crop),
    ]
    _one_of("dtype", dtype, DTYPES)
    if dtype != "uint8":
        three = any(isinstance(given, Sequence) and len(given) == 3 for given in (mean, std))
        count = 1 if colors == "gray" and not three else 3
        means = _channels("mean", 0.0 if mean is None else mean, count)
        deviations = _channels("std", 1.0 if std is None else std, count)
        if any(value <= 0 for value in deviations):
            raise InputError(f"std={std!r:.200}: give deviations above 0")
        if not _number(scale) or scale <= 0:
            raise InputError(
                f"scale={scale!r:.200}: give a number above 0, such as 1/255 = 0.00392157"
            )
        steps.append(Normalize(means, deviations, float(scale)))
    elif mean is not None or std is not None:
        raise InputError("dtype=uint8 leaves pixel values as they are: leave out mean and std")
    return Pipeline(
        (*steps, ToLayout(_one_of("layout", layout, LAYOUTS), _one_of("dtype", dtype, DTYPES)))
    )


def from_path(path: Path) -> Pipeline:
    """Read a pipeline from a YAML file, a folder of Hugging Face, or an ONNX file of Ultralytics.

    Raises:
        InputError: there is no such file, or it holds what isn't known here.
    """
    if path.is_dir():
        return from_hugging_face(path)
    if path.suffix == ".onnx":
        return from_ultralytics(path)
    return from_yaml(path)


def from_yaml(path: Path) -> Pipeline:
    """Read a pipeline from a YAML file: the arguments of `image_pipeline`, or each step.

        size: 224                           before:
        resize: 256                           - decode
        mean: [0.485, 0.456, 0.406]           - letterbox: 640
        std: [0.229, 0.224, 0.225]            - normalize: {mean: [0, 0, 0], std: [1, 1, 1]}
        after:                                - to_layout
          - top_k: {count: 5, labels: names.txt}

    A file with only `after` is for a model that brings its own steps before. Each entry of `before`
    and `after` is a step's name, `name: settings`, or `name: value` for its first setting. A path,
    such as that of a file with one label per line, is relative to the YAML file.

    Raises:
        InputError: there is no such file, it isn't YAML, or a step or a setting is unknown or can't
            be used.
    """
    given = read_yaml(path, _MOST_BYTES, "a pipeline")
    alone = isinstance(given, dict) and given.keys() == {"after"} and given["after"] != []
    if not isinstance(given, dict) or not (alone or "size" in given or "before" in given):
        raise InputError(
            f"{path}: give at least the size of the model's input, as in `size: 224`, or the "
            "steps `before` the model; or only the steps `after` it, if the model brings its own "
            "steps before"
        )
    known = ("before", "after") if "before" in given else (*SETTINGS, "after")
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise InputError(
            f"{path}: there is no setting {visible(', '.join(unknown)):.200}; there are {', '.join(known)}"
        )
    try:
        after = steps_of(PostStep, given.pop("after", []), path.parent)
        if alone or "before" in given:
            return Pipeline(steps_of(Step, given.get("before", []), path.parent), after)
        return Pipeline(image_pipeline(**given).steps, after)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_pretrained_cfg(cfg: Mapping[str, Any]) -> Pipeline:
    """Build the pipeline of timm's evaluation transform from a model's `pretrained_cfg`.

    It differs from timm's in one point: images are turned upright as their EXIF data says.

    Args:
        cfg: Settings with input_size (channels, height, width), mean and std; crop_pct, crop_mode and
            interpolation are optional. One channel is gray.

    Raises:
        InputError: a setting is missing or isn't supported.
    """
    missing = [key for key in ("input_size", "mean", "std") if cfg.get(key) is None]
    if missing:
        raise InputError(f"pretrained_cfg has no {', '.join(missing)}: state the pipeline yourself")
    channels, height, width = cfg["input_size"]
    if channels not in (1, 3):
        raise InputError(f"pretrained_cfg has {channels} channels; image pipelines give 1 or 3")
    if any(len(cfg[key]) != channels for key in ("mean", "std")):
        raise InputError(
            f"pretrained_cfg has {channels} channel{'s'[: channels > 1]}, but mean={cfg['mean']} and "
            f"std={cfg['std']}: state the pipeline yourself"
        )
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise InputError(
            f"pretrained_cfg has crop_mode {mode!r}; the supported ones are center, squash"
        )
    pct = float(cfg.get("crop_pct") or TIMM_CROP_PCT)
    scaled = (math.floor(height / pct), math.floor(width / pct))
    if mode == "center" and height != width:
        raise InputError(
            f"pretrained_cfg crops {height} x {width} from the center, which is supported only "
            "for squares: state the pipeline yourself"
        )
    return image_pipeline(
        size=(height, width),
        resize=scaled[0] if mode == "center" else scaled,
        interpolation=str(cfg.get("interpolation") or "bilinear"),
        mean=cfg["mean"],
        std=cfg["std"],
        colors="gray" if channels == 1 else "RGB",
    )


def from_module(module: Any) -> Pipeline | None:
    """Build the pipeline that a timm model states; None for a model that states none.

    A model that was made with another number of channels, as by `in_chans=1`, still states its weights' three
    means. They say nothing about its own channels, unless they are equal and it has one.
    """
    found = getattr(module, "pretrained_cfg", None)
    if found is None:
        return None
    cfg = dict(found if isinstance(found, Mapping) else vars(found))
    taken = _channels_taken(module, cfg.get("first_conv"))
    stated = cfg.get("input_size")
    if stated is None or taken in (None, stated[0]):
        return from_pretrained_cfg(cfg)
    if taken != 1 or any(len(set(cfg.get(key) or ())) != 1 for key in ("mean", "std")):
        return None
    own = {"input_size": (1, *stated[1:]), "mean": cfg["mean"][:1], "std": cfg["std"][:1]}
    return from_pretrained_cfg({**cfg, **own})


def _channels_taken(module: Any, name: Any) -> int | None:
    """Return the number of channels that a module's first convolution takes; None where it isn't known."""
    if not isinstance(name, str):
        return None
    for part in name.split("."):
        module = getattr(module, part, None)
    channels = getattr(module, "in_channels", None)
    return channels if isinstance(channels, int) else None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _size(name: str, value: Any) -> int | tuple[int, int]:
    sides = [value] if isinstance(value, int) else list(value) if _listed(value) else []
    good = all(isinstance(n, int) and not isinstance(n, bool) for n in sides)
    if not good or len(sides) not in (1, 2):
        raise InputError(f"{name}={value!r:.200}: give one side in pixels, or height and width")
    size = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    check_size(name, size)
    return size


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _channels(name: str, value: Any, count: int) -> tuple[float, ...]:
    values = [value] * count if _number(value) else list(value) if _listed(value) else []
    if len(values) != count or not all(_number(v) for v in values):
        raise InputError(f"{name}={value!r:.200}: give one number, or one for each of 3 channels")
    return tuple(map(float, values))


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise InputError(f"{name}={value!r:.200}: give one of {', '.join(known)}")
    return value
