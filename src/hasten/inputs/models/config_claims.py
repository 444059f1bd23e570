"""Claims of a folder's `config.json`, checked against what is there before transformers or timm act on them.

Source: transformers 5.24, configuration_utils.py, modeling_utils.py, backbone_utils.py, integrations/peft.py and
models/timm_wrapper; timm 1.0.31, models/_factory.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.whole_process import while_any_runs
from hasten.errors import InputError, visible
from hasten.inputs.data.made_up import LARGEST_BYTES, check_bytes
from hasten.inputs.models.foreign import check_no_device
from hasten.inputs.pipeline.written import read_json

CONFIG = "config.json"
NO_ARGUMENTS = frozenset(
    (
        *("cache_dir", "checkpoint_path", "model_name", "pretrained", "pretrained_cfg"),
        *("pretrained_cfg_overlay", "pretrained_model_args"),
    )
)
"""Arguments of timm.create_model that a folder may not set: they name files and addresses."""
_ELSEWHERE = ("configuration_files", "transformers_weights")
"""Settings that name another configuration or other weights than those that are checked."""
_NAMES = ("architecture", "backbone")
"""Settings that name a model of timm, or else a folder or a repository with one."""
_KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
"""Settings that name a function of transformers, or else a repository with the code of one."""
_PLACE = re.compile(r"[:/\\]")
_ADAPTER = "adapter_config.json"
_PARTS = re.compile(
    r"(?!(.*_)?(max|min)_depth)(.*_)?(blocks?|depths?|groups|layers?|repeats?|stages)|attention_types|first_k_dense_replace"
)
"""Settings that say how many objects of Python a network or its configuration consists of. The largest and the least
depth are distances in pictures."""
_EXPERTS = re.compile(r"(.*_)?experts")
"""Settings that say how many experts a network has, which may be rows of one tensor each."""
_LABELS = re.compile(r"(.*_)?(classes|labels)")
"""Settings that say how many labels a network has; transformers makes up a name for each."""
_MOST_PARTS, _MOST_LABELS = 1_000, 1 << 16
_MOST_IN_A_LIST = 1 << 16
"""Sum of such a setting's list, which may also be of the numbers of layers: those of 300 layers are 45,000 together."""
_MOST_BUILT, _MOST_FOR_EACH = 1 << 15, 8
"""Modules and parameters of a network, and those for each tensor of its weights; known networks have 2,500 or 3."""
_MOST_TIMES = 8
"""Bytes of memory that each byte of a file of weights may claim: weights of 8 bits are float32 in memory, and
tied ones count twice."""
_SHOWN = 100
"""Characters of a setting's place that a message shows."""

_CLASSES = frozenset({"id2label", "label2id"})
_OF_TIMM = frozenset(
    (
        *("conditional_detr", "dab-detr", "deformable_detr", "detr", "maskformer"),
        *("omdet-turbo", "table-transformer"),
    )
)
"""Types of models whose backbone is timm's unless the configuration says otherwise."""


def check_places(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that loading a folder opens no other files and asks no network.

    Args:
        folder: The folder.
        config: Content of its `config.json`.

    Raises:
        InputError: its files name files or repositories to load; the message names one.
    """
    found = next(_places(config), None)
    if found is not None:
        raise _refused(folder / CONFIG, *found)
    if (folder / _ADAPTER).is_file():
        raise InputError(
            f"{folder} has an adapter of PEFT ({_ADAPTER}), which may name other files: merge it into the model "
            "(merge_and_unload) and save that with save_pretrained, or add trust_code=True"
        )
    for path in sorted(folder.glob("*.index.json")):
        index = read_json(path)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        for shard in shards.values() if isinstance(shards, dict) else ():
            if not isinstance(shard, str) or re.search(r"[\\/:]", shard) or shard == "..":
                raise _refused(path, "weight_map", shard)


def check_alone(folder: Path, kind: Any) -> None:
    """Check that a folder has no other file of which transformers would make the model's configuration.

    Args:
        folder: The folder.
        kind: Class of the configuration; None where it isn't known.

    Raises:
        InputError: it has one; what that claims isn't checked.
    """
    for name in getattr(kind, "extra_config_files", ()):
        if (folder / name).exists():
            raise InputError(
                f"{folder} has {name}, of which transformers makes another configuration than {CONFIG}: save the model "
                "with save_pretrained, or if you trust it, add trust_code=True"
            )


def check_links(root: Path, folders: Iterable[Path]) -> None:
    """Check that no file or folder of a model is a link to one elsewhere, except in Hugging Face's own cache.

    Args:
        root: The model's folder.
        folders: Folders with its files: this one, and others in it.

    Raises:
        InputError: one is, or a file is a pipe or a device.
    """
    real = Path(os.path.realpath(root))  # `Path.resolve` would raise on circular links
    caches = [
        one.parent
        for one in real.parents
        if one.name == "snapshots" and one.parent.name.startswith("models--")
    ]
    allowed = [real, *(one / "blobs" for one in caches)]
    for folder in sorted(folders):
        for one in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            check_no_device(one)
            led = Path(os.path.realpath(one))
            if not any(led.is_relative_to(each) for each in allowed):
                raise InputError(
                    f"{one} is a link to {led}; the files of a model must lie in its folder: if you trust it, copy "
                    "the file there, or add trust_code=True"
                )


def _refused(path: Path, where: str, value: object) -> InputError:
    shown = repr(visible(value[:60])) if isinstance(value, str) else f"a {type(value).__name__}"
    return InputError(
        f"{path} has {shown} in {visible(where)[:_SHOWN]}, so loading it could open other files or ask the network: if "
        "you trust it, add trust_code=True, or load it in a my.py and give my.py:model"
    )


def _places(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield each setting that names a place, with its value; settings may be nested."""
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        where, value = left.pop()
        if isinstance(value, list):
            left += [(where, one) for one in value]
        if not isinstance(value, Mapping):
            continue
        for key, one in value.items():
            named = _place(where, key)
            left.append((named, one))
            if (one is not None and _is_place(key, one, value)) or (one and key == "auto_map"):
                yield named, one
            elif one and key == "model_args":
                if not isinstance(one, Mapping):
                    yield named, one
                    continue
                for argument in sorted(NO_ARGUMENTS & {*one}):
                    yield f"{named}.{argument}", one[argument]


def _place(where: str, key: str) -> str:
    """Return the place of a setting, as far as a message shows it: a key may be long, and have many below it."""
    return (f"{where}.{key}" if where else key)[:_SHOWN]


def _is_place(key: str, value: object, beside: Mapping[str, Any]) -> bool:
    """Whether a setting names a file or a repository."""
    if key in _ELSEWHERE:
        return True
    if _KERNELS.fullmatch(key):
        names = value.values() if isinstance(value, Mapping) else (value,)
        return any(isinstance(name, str) and bool(_PLACE.search(name)) for name in names)
    if key not in _NAMES or not isinstance(value, str):
        return False
    if _PLACE.search(value):
        return True
    # By a plain name alone, transformers asks the Hub whether a repository is called so.
    is_timms = beside.get("model_type") == "timm_backbone" or beside.get(
        "use_timm_backbone", beside.get("model_type") in _OF_TIMM
    )
    return key == "backbone" and not is_timms and not beside.get("backbone_config")


@dataclass(frozen=True)
class Stored:
    """Sizes of the weights that a folder has.

    Attributes:
        tensors: Number of tensors that hold any number.
        longest: Largest dimension of one of them.
        size_bytes: Size of the files.
    """

    tensors: int
    longest: int
    size_bytes: int

    @classmethod
    def of(cls, shapes: Iterator[tuple[int, ...]], size_bytes: int) -> Stored:
        """Return the sizes of tensors of some shapes."""
        every = [shape for shape in shapes if 0 not in shape]
        return cls(len(every), max((max(one, default=1) for one in every), default=1), size_bytes)


def stored(folder: Path) -> Stored:
    """Return the sizes of the safetensors in a folder, of which only the headers are read; links count once."""
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])
    facts = ((file, file.stat()) for file in found if file.is_file())
    files = {(each.st_dev, each.st_ino): (file, each.st_size) for file, each in facts}
    return Stored.of(
        (shape for file, _ in files.values() for shape in _shapes(file)),
        sum(size for _, size in files.values()),
    )


def _shapes(file: Path) -> Iterator[tuple[int, ...]]:
    from safetensors import safe_open

    with contextlib.suppress(Exception):  # of a damaged file, which is said where it is loaded
        with safe_open(file, "numpy") as tensors:
            yield from [
                tuple(tensors.get_slice(name).get_shape()) for name in [*tensors.keys()]
            ]  # it is no dict


def check_counts(folder: Path, config: Mapping[str, Any], weights: Stored) -> None:
    """Check that a configuration claims no more layers and labels than the weights can have.

    Raises:
        InputError: it does; the message names the setting.
    """
    parts = max(_MOST_PARTS, weights.tensors)
    limits = (
        (_PARTS, parts),
        (_EXPERTS, max(parts, weights.longest)),
        (_LABELS, max(_MOST_LABELS, weights.longest)),
    )
    left: list[tuple[str, str, Any]] = [("", "", config)]
    while left:
        where, key, value = left.pop()
        if isinstance(value, list):
            every = [*_flat(value)]
            left += [(where, key, one) for one in every]
            most = max(_MOST_IN_A_LIST, parts)
            # Larger ones are refused by themselves.
            total = sum(one for one in every if type(one) in (int, float) and 0 < one <= parts)
            if total > most and _PARTS.fullmatch(key):
                raise _too_many(folder, where, total, most)
        elif isinstance(value, Mapping):
            left += [
                (_place(where, own), own, one)
                for own, one in value.items()
                if own not in _CLASSES  # whose names are no settings
            ]
        elif type(value) in (int, float):
            for pattern, most in limits:
                if value > most and pattern.fullmatch(key):
                    raise _too_many(folder, where, value, most)


def _flat(value: list[Any]) -> Iterator[Any]:
    """Yield what lists contain that are within each other."""
    left = [value]
    while left:
        for one in left.pop():
            if isinstance(one, list):
                left.append(one)
            else:
                yield one


def _too_many(folder: Path, where: str, value: float, most: int) -> InputError:
    return InputError(
        f"{folder / CONFIG} claims {_shown(value)} in {visible(where)[:_SHOWN]}, and the folder's weights are "
        f"for {most:,} at most: if you trust it, add trust_code=True"
    )


@contextlib.contextmanager
def few_parts(folder: Path, weights: Stored) -> Iterator[None]:
    """End the building of a module that would have far more parts than the weights have tensors.

    A configuration has numbers of layers under many names, and some are multiplied.

    Args:
        folder: The folder.
        weights: Sizes of its weights.

    Raises:
        InputError: this thread's block builds such a module.
    """
    from torch.nn.modules import module as registered

    most, own, count = max(_MOST_BUILT, _MOST_FOR_EACH * weights.tensors), threading.get_ident(), 0

    def counted(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == own
        if count > most:
            raise InputError(
                f"{folder / CONFIG} claims a model of more than {most:,} modules and parameters, and the folder's weights "
                f"have {weights.tensors:,} tensors: if you trust it, add trust_code=True"
            )

    with contextlib.ExitStack() as stack:
        for register in (
            registered.register_module_module_registration_hook,
            registered.register_module_parameter_registration_hook,
        ):
            stack.callback(register(counted).remove)
        yield


def _shown(value: float) -> str:
    return f"{value:,}" if value < 1e15 else "1e15 or more"


def check_memory(folder: Path, module: Any, weights: Stored) -> None:
    """Check that a module on the meta device would take no more memory than the weights allow.

    Raises:
        InputError: it would.
    """
    claimed_bytes = sum(
        one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers())
    )
    most_bytes = LARGEST_BYTES + _MOST_TIMES * weights.size_bytes
    if claimed_bytes > most_bytes:
        raise InputError(
            f"{folder / CONFIG} claims a model of {claimed_bytes:,} bytes, and the folder's weights of "
            f"{weights.size_bytes:,} bytes are for {most_bytes:,} at most: if you trust it, add trust_code=True"
        )


def ones(folder: Path, shape: Any, settings: str) -> Array:
    """Return a made-up sample of a shape that a configuration claims.

    Raises:
        InputError: it is too large, or no shape.
    """
    if not all(type(size) is int and size > 0 for size in shape):
        raise InputError(f"{folder / CONFIG} has {settings} {[*shape]!r:.60}: give data=")
    each_bytes = 4
    for size in shape:  # what a file claims may have more digits than can be written out
        each_bytes = min(each_bytes * size, 1 << 62)
    check_bytes(each_bytes)
    return np.ones(shape, np.float32)


@while_any_runs
def offline(stack: contextlib.ExitStack) -> None:
    """Let no request go to the Hub while a block runs, then allow again what was allowed.

    The switch belongs to the whole process, so it is set until the last block ends that overlaps.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        return  # then nothing could ask it
    stack.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = True
