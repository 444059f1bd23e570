"""Folders of timm models as the Hub has them: `config.json` names timm's architecture (extra `torch`)."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.core.extras import missing_extra
from hasten.core.torch_tensors import stored_bytes
from hasten.errors import InputError, told
from hasten.inputs.models import config_claims, named
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import from_pretrained_cfg

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREFIX = "timm_model."
_WRAPPED = "TimmWrapperForImageClassification"
_SHOWN = 5
"""Largest number of classes of a decision."""
_PLACES = frozenset(
    ("custom_load", "file", "hf_hub_filename", "hf_hub_id", "source", "state_dict", "url")
)


def is_one(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a timm model, also of one that transformers saved."""
    if not isinstance(config.get("architecture"), str):
        return False
    if config.get("model_type") == "timm_wrapper":
        return config.get("architectures") == [_WRAPPED]
    return "model_type" not in config and "architectures" not in config


def pipeline(config: Mapping[str, Any]) -> Pipeline:
    """Return timm's preparation of pictures, and the names of the classes where the folder has them.

    Raises:
        InputError: it isn't known here.
    """
    try:
        preparation = from_pretrained_cfg(_preparation(config))
        names = _class_names(config)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the preparation in config.json can't be read: {told(error)}") from error
    return Pipeline(preparation.steps, (TopK(min(_SHOWN, len(names)), names),) if names else ())


def load(path: Path, config: Mapping[str, Any], *, trust_code: bool = False) -> Any:
    """Return the module with the folder's weights, in eval mode; `hasten_sample` is a picture's shape.

    Args:
        path: The folder.
        config: Content of its `config.json`.
        trust_code: Whether the numbers in the configuration are trusted, as the folder's code would be.

    Raises:
        InputError: timm isn't installed or can't build the module, or the weights are missing, can't
            be read without running code, or don't fit.
    """
    from hasten.inputs.models.torch_inputs import input_names

    name, asked = config["architecture"], config.get("model_args") or {}
    weights = next((path / file for file in _WEIGHTS if (path / file).is_file()), None)
    if weights is None:
        raise InputError(
            f"{path} has neither an ONNX file nor weights: the weights of a timm model are in "
            f"{' or '.join(_WEIGHTS)}"
        )
    try:
        import timm
        import torch

        named.check_timm(name)
    except ImportError as error:
        raise missing_extra(f"{path}, a folder of a timm model,", "torch") from error
    if not isinstance(asked, Mapping) or (refused := sorted(config_claims.NO_ARGUMENTS & {*asked})):
        said = f"sets {', '.join(refused)}" if isinstance(asked, Mapping) else "isn't a JSON object"
        raise InputError(f"model_args in {path / 'config.json'} {said}, which isn't allowed")
    classes = config.get("num_classes", asked.get("num_classes"))
    given = {**asked, "num_classes": classes, "pretrained_cfg": _for_timm(config)}
    # transformers puts a prefix before the names where it didn't read the weights from a file of timm's.
    stored = {key.removeprefix(_PREFIX): one for key, one in named.read_weights(weights).items()}
    sizes = config_claims.Stored.of(
        (tuple(one.shape) for one in stored.values()),
        stored_bytes(stored.values()),
    )
    if not trust_code:
        config_claims.check_counts(path, config, sizes)
    bounds = contextlib.nullcontext() if trust_code else config_claims.few_parts(path, sizes)
    try:
        with torch.device("meta"), bounds:  # no memory for what only config.json claims
            claimed: Any = timm.create_model(name, pretrained=False, **given)
    except InputError:
        raise
    except Exception as error:  # timm's constructors raise exceptions of any kind
        raise InputError(
            f"timm {timm.__version__} can't build the {name} of {path}: {told(error)}"
        ) from error
    with warnings.catch_warnings():  # that weights put there are lost
        warnings.simplefilter("ignore")
        named.put(claimed, stored, str(weights))
    if not trust_code:
        config_claims.check_memory(path, claimed, sizes)
    module: Any = timm.create_model(name, pretrained=False, **given)
    named.put(module, stored, str(weights))
    size = _preparation(config).get("input_size") or (3, 224, 224)
    if not isinstance(size, list | tuple) or not all(type(one) is int and one > 0 for one in size):
        raise InputError(f"{path / 'config.json'} has input_size {size!r:.60}: give [3, 224, 224]")
    module.hasten_sample = tuple(size)
    module.main_input_name = input_names(module)[0]
    return module.eval()


def _preparation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the preparation, which stood beside the architecture in old folders."""
    stated = config.get("pretrained_cfg")
    return dict(stated if isinstance(stated, Mapping) else config)


def _for_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what timm reads of the settings, but for where weights lie: these are the folder's."""
    from timm.models import PretrainedCfg

    fields = {field.name for field in dataclasses.fields(PretrainedCfg)} - _PLACES
    known = {name: value for name, value in _preparation(config).items() if name in fields}
    return known | {"architecture": config["architecture"]}


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name of each class; nothing where the folder doesn't name them all."""
    stated = _preparation(config)
    names = config.get("label_names") or stated.get("label_names") or ()
    told_of = config.get("label_descriptions") or stated.get("label_descriptions") or {}
    if isinstance(names, Mapping):
        names = [names.get(str(number)) for number in range(len(names))]
    classes = config.get("num_classes", stated.get("num_classes"))
    if len(names) < 2 or len(names) != classes or not isinstance(told_of, Mapping):
        return ()
    if not all(isinstance(name, str) for name in names):
        return ()
    return tuple(str(told_of.get(name, name)) for name in names)
