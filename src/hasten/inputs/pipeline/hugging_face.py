"""Pipelines of a folder of Hugging Face: preprocessor_config.json, tokenizer.json and beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hasten.errors import InputError, visible
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.image import (
    CenterCrop,
    Decode,
    Normalize,
    Resize,
    ToLayout,
    check_size,
)
from hasten.inputs.pipeline.standardize import Standardize
from hasten.inputs.pipeline.strips import Interpolation
from hasten.inputs.pipeline.text import MAX_LENGTH, Tokenize
from hasten.inputs.pipeline.written import read_json, read_text

IMAGES, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters in the order of Pillow's numbers, which `resample` holds."""


@dataclass(frozen=True)
class _Processor:
    """Settings of a processor where its file doesn't state them.

    Attributes:
        crops: Whether it crops the center.
        shorter: Whether a size of one number is that of the shorter side; otherwise that of a square.
        smaller_crop: Share of the resized picture's shorter side that is left after the crop, if `size` is what is
            left; None where `size` is what is resized to.
    """

    crops: bool = False
    shorter: bool = False
    smaller_crop: float | None = None


_SQUARE, _CROPPED = _Processor(), _Processor(crops=True, shorter=True)
_PROCESSORS = {
    "BeitImageProcessor": _SQUARE,
    "BitImageProcessor": _CROPPED,
    "CLIPImageProcessor": _CROPPED,
    "ChineseCLIPImageProcessor": _CROPPED,
    "ConvNextImageProcessor": _Processor(shorter=True, smaller_crop=224 / 256),
    "DPTImageProcessor": _SQUARE,
    "DeiTImageProcessor": _Processor(crops=True),
    "EfficientNetImageProcessor": _SQUARE,
    "LevitImageProcessor": _Processor(crops=True, shorter=True, smaller_crop=224 / 256),
    "MobileNetV1ImageProcessor": _CROPPED,
    "MobileNetV2ImageProcessor": _CROPPED,
    "MobileViTImageProcessor": _CROPPED,
    "PoolFormerImageProcessor": _Processor(crops=True, shorter=True, smaller_crop=0.9),
    "PvtImageProcessor": _SQUARE,
    "SegformerImageProcessor": _SQUARE,
    "SiglipImageProcessor": _SQUARE,
    "ViTImageProcessor": _SQUARE,
}
_HARMLESS = frozenset(
    (
        *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
        *("do_flip_channel_order", "do_reduce_labels"),
    )
)
"""Switches that are followed, or that change no picture: the last is about the masks of training data."""
_MOST = 1 << 26
"""Largest whole number of a processor's settings; products of much larger ones have too many digits to be shown."""
_LEAST_SHARE = 0.001
"""Least part of a picture's side that a crop may keep."""
_WARPED_FROM = 384
"""Side from which on ConvNeXt's processor makes a square of the whole picture and crops nothing."""


def from_hugging_face(folder: Path) -> Pipeline:
    """Build the pipeline of a model's folder, from its processor of pictures or sounds, or its tokenizer.

    A tokenizer's texts are as long as they are, up to the length that `tokenizer_config.json` and
    `config.json` allow; nothing fills them up. Pictures are turned upright as their EXIF data says.

    Args:
        folder: Folder with `preprocessor_config.json` or `tokenizer.json`, as `save_pretrained`
            writes it.

    Raises:
        InputError: the folder has neither or both, or a file holds what isn't known here; the
            message names it.
    """
    images, text = folder / IMAGES, folder / TOKENIZER
    if images.is_file() and text.is_file():
        raise InputError(
            f"{folder} has both {IMAGES} and {TOKENIZER}, for a model of pictures and texts: give a "
            "folder with the one that prepares this model's inputs"
        )
    if images.is_file():
        try:
            config = _json(images)
            return _sounds(config) or _pictures(config)
        except InputError as error:
            raise InputError(f"{images}: {error}") from error
    if text.is_file():
        return Pipeline((_tokenizer(folder),))
    raise InputError(f"{folder} has neither {IMAGES} nor {TOKENIZER}: state the pipeline yourself")


def _sounds(config: Mapping[str, Any]) -> Pipeline | None:
    """Return the pipeline of an extractor of sounds; None for any other."""
    name = config.get("feature_extractor_type")
    if name not in ("Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor"):
        return None
    rate = _whole(config, "sampling_rate", 16000)
    steps: list[Step] = [DecodeAudio(rate)]
    if name == "WhisperFeatureExtractor":
        hop, window = _whole(config, "hop_length", 160), _whole(config, "n_fft", 400)
        mels = _whole(config, "feature_size", 80)
        seconds = _whole(config, "chunk_length", 30)
        steps += [FitLength(seconds * rate), LogMel(rate=rate, window=window, hop=hop, mels=mels)]
    elif config.get("do_normalize", True):
        steps.append(Standardize())
    return Pipeline(tuple(steps))


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    found = config.get(key, default)
    if type(found) is not int or not 1 <= found <= _MOST:
        raise InputError(f"{key}={found!r:.60}: give a whole number from 1 to {_MOST:,}")
    return found


def _pictures(config: Mapping[str, Any]) -> Pipeline:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    # The older extractors and the processors by torch do the same.
    plain = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if plain not in _PROCESSORS:
        raise InputError(
            f"the processor {visible(str(name)) or 'without a type'} isn't supported; the supported ones are "
            f"{', '.join(_PROCESSORS)}: state the pipeline yourself"
        )
    for key, value in config.items():
        if key.startswith("do_") and key not in _HARMLESS and value:
            raise InputError(f"{visible(key)} isn't supported: state the pipeline yourself")
    steps: list[Step] = [Decode(colors="BGR" if _flipped(config, plain) else "RGB")]
    size = None
    if config.get("do_resize", True):
        size, crop = _resizing(config, plain)
        steps.append(Resize(size, _filter(config.get("resample"))))
        if crop is not None:
            steps.append(CenterCrop(crop, "down"))
            size = crop
    if config.get("do_center_crop", _PROCESSORS[plain].crops):
        crop = _pair(_size(config, "crop_size", plain))
        least = None if size is None else _pair(size)
        if least is not None and (least[0] < crop[0] or least[1] < crop[1]):
            raise InputError(
                f"crop_size {crop[0]} x {crop[1]} is larger than size, which isn't supported"
            )
        steps.append(CenterCrop(crop, "down"))
    return Pipeline((*steps, _normalization(config, plain), ToLayout()))


def _flipped(config: Mapping[str, Any], processor: str) -> bool:
    """Whether a processor gives BGR."""
    return bool(config.get("do_flip_channel_order", processor == "MobileViTImageProcessor"))


def _resizing(
    config: Mapping[str, Any], processor: str
) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """Return what a processor resizes to, and what it crops at once to the size that the file states."""
    size, share = _size(config, "size", processor), _PROCESSORS[processor].smaller_crop
    if processor == "DPTImageProcessor":
        if config.get("keep_aspect_ratio"):
            raise InputError("keep_aspect_ratio isn't supported: state the pipeline yourself")
        multiple = _whole(config, "ensure_multiple_of", 1)
        height, width = (round(side / multiple) * multiple for side in _pair(size))
        return (height, width), None
    if share is None:
        return size, None
    if processor == "ConvNextImageProcessor" and not isinstance(size, int):
        raise InputError(f"size={list(size)} isn't supported: give shortest_edge")
    if processor != "LevitImageProcessor":
        share = _share(config, share)
    if isinstance(size, int):
        if processor != "ConvNextImageProcessor":
            # Levit multiplies by 256/224, and that isn't always what dividing by 224/256 gives.
            return int(256 / 224 * size if "Levit" in processor else size / share), None
        square = (size, size)
        return (square, None) if size >= _WARPED_FROM else (int(size / share), square)
    if processor == "LevitImageProcessor":
        return size, None
    scaled = int(size[0] / share), int(size[1] / share)
    return scaled[0] if size[0] == size[1] else scaled, None


def _share(config: Mapping[str, Any], default: float) -> float:
    """Return `crop_pct`."""
    found = config.get("crop_pct")
    found = default if found is None else found
    if type(found) not in (int, float) or not _LEAST_SHARE <= found <= 1:
        raise InputError(
            f"crop_pct={found!r}: give a number of at least {_LEAST_SHARE}, and at most 1"
        )
    return float(found)


def _normalization(config: Mapping[str, Any], processor: str) -> Normalize:
    """Return the step that scales and normalizes."""
    if not config.get("do_rescale", True):
        raise InputError("do_rescale=false isn't supported: state the pipeline yourself")
    scale = config.get("rescale_factor", 1 / 255)
    if not _is_number(scale) or scale <= 0:
        raise InputError(f"rescale_factor={scale!r}: give a number above 0")
    if config.get("do_normalize", processor != "MobileViTImageProcessor"):
        mean, std = _channels(config, "image_mean"), _channels(config, "image_std")
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor == "EfficientNetImageProcessor":
        if config.get("rescale_offset", False):
            mean = (mean[0] + 1.0, mean[1] + 1.0, mean[2] + 1.0)
        if config.get("include_top", True):  # divides by the deviations once more
            further = _channels(config, "image_std")
            std = (std[0] * further[0], std[1] * further[1], std[2] * further[2])
    return Normalize(mean, std, float(scale))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, NaN and the infinite ones aside."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _size(config: Mapping[str, Any], key: str, processor: str) -> int | tuple[int, int]:
    """Return a size: one side means the shorter one for those that crop, else both."""
    size = _stated_size(config, key, processor)
    check_size(key, size)
    return size


def _stated_size(config: Mapping[str, Any], key: str, processor: str) -> int | tuple[int, int]:
    found = config.get(key)
    if isinstance(found, Mapping):
        if set(found) == {"shortest_edge"} and type(found["shortest_edge"]) is int:
            return int(found["shortest_edge"])
        if set(found) == {"height", "width"} and {type(n) for n in found.values()} == {int}:
            return found["height"], found["width"]
    if type(found) is int:
        by_shorter = key == "size" and _PROCESSORS[processor].shorter
        return found if by_shorter else (found, found)
    raise InputError(
        f"{key}={found!r} isn't supported: give a number, shortest_edge, or height and width"
    )


def _filter(number: Any) -> Interpolation:
    if type(number) is not int or not 0 <= number < len(_FILTERS):
        raise InputError(f"resample={number!r} isn't supported: give 0 to {len(_FILTERS) - 1}")
    return cast(Interpolation, _FILTERS[number])


def _channels(config: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    found = config.get(key)
    numbers = found if isinstance(found, list) else []
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise InputError(f"{key}={found!r}: give one number for each of 3 channels")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _tokenizer(folder: Path) -> Tokenize:
    lengths: list[Any] = [MAX_LENGTH]
    token: Any = ""
    if (path := folder / "tokenizer_config.json").is_file():
        config = _json(path)
        lengths.append(config.get("model_max_length"))
        token = config.get("pad_token") or ""
        token = token.get("content", "") if isinstance(token, Mapping) else token
    if (path := folder / "config.json").is_file():
        lengths.append(_json(path).get("max_position_embeddings"))
    # A tokenizer without a limit states 10^30.
    length = min(n for n in lengths if isinstance(n, int) and n > 0)
    step = Tokenize(
        read_text(folder / TOKENIZER),
        length if length < MAX_LENGTH else 0,
        pad=False,
        pad_token=str(token),
    )
    if find_spec("tokenizers") is not None:
        try:
            step.vocabulary  # noqa: B018 - the library reads the tokenizer for it
        except InputError as error:
            raise InputError(
                f"{folder / TOKENIZER}: {error}; if the file is from a newer version of tokenizers, install that; else "
                "write it again with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            ) from error
    return step


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} contains no JSON object")
    return found
