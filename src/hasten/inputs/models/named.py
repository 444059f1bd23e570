"""Models of timm and torchvision by name, with weights from a file or at random (extra `torch`)."""

from __future__ import annotations

import contextlib
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from hasten.core.archives import excess
from hasten.core.extras import missing_extra
from hasten.core.torch_tensors import unlike_its_shape
from hasten.errors import InputError, told

LIBRARIES = ("timm", "torchvision")
RANDOM = "random"
_SIDE = 224
_LONGEST_NAME = 1000
_COMPARED = (5, 6)
_DETECTORS = ("fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd")
_TRAINING = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")
"""Begins of the names of weights that torchvision's networks use in training alone."""
_ARCHIVE = b"PK\3\4"
"""Begin of a checkpoint that torch 1.6 or newer wrote: a ZIP archive."""


def is_named(source: str) -> bool:
    """Whether a model's name begins with a library's: "timm:mobilenetv3_small_100@weights.safetensors"."""
    return source.partition(":")[0] in LIBRARIES


def load(source: str) -> Any:
    """Return a module of a library, in eval mode.

    The module states its preparation where the library knows it, in the attribute `hasten_pipeline`; the
    shape of a sample, in `hasten_sample`; what to say of it, in `hasten_notes`; and in
    `hasten_unexportable` why it can't be exported, where that is known.

    Args:
        source: Library, name and weights: "timm:NAME@FILE", or "timm:NAME@random" for random weights.

    Raises:
        InputError: the library isn't installed or has no such model, no weights are named, or they
            don't fit.
    """
    library, _, rest = source.partition(":")
    name, _, weights = rest.partition("@")
    try:
        module_of = {"timm": _timm, "torchvision": _torchvision}[library]
        if not weights:
            module_of(name, None, check=True)
            raise InputError(
                f"{source} names no weights: give a file of weights, "
                f"{library}:{name}@weights.safetensors, or {library}:{name}@{RANDOM} for random "
                "weights, which show the speed but give meaningless answers; load the library's "
                "pretrained weights in a my.py of yours"
            )
        stored = None if weights == RANDOM else read_weights(Path(weights))
        module = module_of(name, stored, check=False)
    except ImportError as error:
        raise missing_extra(f"a model of {library}", "torch") from error
    if stored is not None:
        put(module, stored, source)
    said = (
        f"the weights of {library}:{name} are random: its speed is right, but its answers mean "
        "nothing"
    )
    notes = [said] if stored is None else []
    if library == "torchvision" and hasattr(module, "transform_input") and stored is not None:
        notes.append(
            f"{library}:{name} is built with transform_input=False: with torchvision's own weights, "
            "which were trained with it, load it in a my.py"
        )
    module.hasten_notes = tuple(notes)
    return module.eval()


def check_timm(name: str) -> None:
    """Check that timm has a model of a name.

    Raises:
        InputError: it has none.
        ImportError: timm isn't installed.
    """
    import timm

    if name not in timm.list_models() and name.split(".")[0] not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3])
        raise InputError(f"timm {timm.__version__} has no model {name!r}{_near(near)}")


def _timm(name: str, stored: dict[str, Any] | None, *, check: bool) -> Any:
    """Return timm's module, with as many classes as the weights have."""
    import timm

    check_timm(name)
    if check:
        return None
    module: Any = timm.create_model(name, pretrained=False)
    heads = module.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads  # distilled models have two
    own = module.state_dict()
    weights = {key: (stored or {}).get(key) for key in (f"{head}.weight" for head in heads)}
    rows = [
        len(one)
        for key, one in weights.items()
        if one is not None
        and (_differ_in_rows(one, own[key]) if key in own else _is_head(one, module.num_features))
    ]
    if rows and rows[0] != module.num_classes:
        module = timm.create_model(name, pretrained=False, num_classes=rows[0])
    module.hasten_sample = tuple(module.pretrained_cfg["input_size"])
    return module


def _torchvision(name: str, stored: dict[str, Any] | None, *, check: bool) -> Any:
    """Return torchvision's module, with as many classes as the weights have."""
    from torchvision import models

    if name not in models.list_models():
        near = ", ".join(models.list_models(include=f"*{name.split('_')[0]}*")[:3])
        raise InputError(f"torchvision has no model {name!r}{_near(near)}")
    if check:
        return None
    plain: dict[str, Any] = {"weights": None}
    if any(
        part in name for part in ("rcnn", "retinanet", "ssd", "fcos", "deeplab", "fcn", "lraspp")
    ):
        plain["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        plain["init_weights"] = False  # torchvision warns that the default changes
    if stored is not None and (classes := _classes(name, plain, stored)) is not None:
        plain["num_classes"] = classes
    module = models.get_model(name, **plain)
    if stored is not None:
        _leave_out_training(stored, module.state_dict())
    if name.startswith(_DETECTORS):
        module.hasten_unexportable = (
            f"torchvision:{name} is a detector, and torch's exporter can't follow how it chooses boxes: "
            "export it in your own code by the older exporter, torch.onnx.export(module, (x,), "
            "'model.onnx', dynamo=False), and give that file"
        )
    known = models.get_model_weights(name)
    module.hasten_sample = (3, _SIDE, _SIDE)
    if len(known):
        module.hasten_pipeline = _preparation(next(iter(known)).transforms())
    return module


def _classes(name: str, plain: Mapping[str, Any], stored: Mapping[str, Any]) -> int | None:
    """Return the number of classes of stored weights; None where nothing tells it.

    Which weights depend on it, and how, differs from family to family: a detector has several rows for
    each class. So the weights of a network for 5 classes are compared with those of one for 6.
    """
    import torch
    from torchvision import models

    try:
        with torch.device("meta"):  # no memory and no time for the weights
            few, more = (
                models.get_model(name, **plain, num_classes=classes).state_dict()
                for classes in _COMPARED
            )
    except (TypeError, RuntimeError):
        return None  # a network without classes, such as one of optical flow
    for key, own in few.items():
        step = len(more[key]) - len(own) if own.dim() else 0
        if step and key in stored and _differ_in_rows(stored[key], own):
            return _COMPARED[0] + (len(stored[key]) - len(own)) // step
    return None


def _is_head(weight: Any, features: int) -> bool:
    """Whether weights make scores of classes of so many features; the network has none of its own."""
    return bool(weight.dim() > 1 and weight.shape[1] == features)


def _differ_in_rows(one: Any, other: Any) -> bool:
    """Whether weights are for the same numbers, so that only the number of their rows may differ."""
    return bool(one.dim() > 1 and one.shape[1:] == other.shape[1:])


def _leave_out_training(stored: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Make stored weights of heads that only training uses those of the module.

    torchvision's checkpoints of FCN and DeepLab contain such a head, and a module without it answers
    the same. A module of Inception or GoogLeNet has such heads, and a checkpoint may lack them.
    """
    for key in [*stored]:
        if key.startswith(_TRAINING) and key not in own:
            del stored[key]
    for key, value in own.items():
        if key.startswith(_TRAINING) and key not in stored:
            stored[key] = value


def _preparation(preset: Any) -> Any:
    """Return the pipeline of a preset; None where it has steps that aren't known here."""
    from hasten.inputs.pipeline.torchvision import from_torchvision

    try:
        return from_torchvision(preset)
    except InputError:
        return None


def _near(names: str) -> str:
    return f": did you mean {names}?" if names else ""


def read_weights(path: Path) -> dict[str, Any]:
    """Read weights by name from a file of safetensors, or from a checkpoint without running code."""
    import torch

    if not path.is_file():
        raise InputError(f"no such file of weights: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            safe = load_file(path)
            _check_sizes(safe, path)
            return safe
        with path.open("rb") as file:  # once: what is checked is what is loaded
            is_archive = file.read(4) == _ARCHIVE
            if is_archive and (said := excess(file)):
                raise InputError(f"{path} can't be unpacked safely: {said}")
            if is_archive:
                _check_names(file, path)
            file.seek(0)
            found = torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch and safetensors pass on any exception
        raise InputError(
            f"{path} can't be read as weights without running code that it contains: {told(error)}"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(torch.is_tensor(one) for one in found.values()):
        raise InputError(f"{path} contains no named weights: save the module's state_dict()")
    _check_sizes(found, path)
    return {str(name).removeprefix("module."): one for name, one in found.items()}


def _check_sizes(weights: Mapping[Any, Any], path: Path) -> None:
    """Check that each of the weights has as many numbers as its shape says: what follows takes that much memory.

    Raises:
        InputError: one hasn't, or isn't a plain array.
    """
    if said := unlike_its_shape(weights.items()):
        raise InputError(
            f"{path} can't be used: its weights {said}; save the module's state_dict() with plain tensors"
        )


def _check_names(file: IO[bytes], path: Path) -> None:
    """Check the names of types in a checkpoint: torch's own error on a long one takes minutes to be written.

    Raises:
        InputError: a name is too long.
    """
    with zipfile.ZipFile(file) as archive:
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    for each in pickles:
        with contextlib.suppress(ValueError):  # torch says what is wrong with a damaged one
            for code, name, _ in pickletools.genops(each):
                if code.name in ("GLOBAL", "INST") and len(str(name)) > _LONGEST_NAME:
                    raise InputError(f"{path} names a type by more than {_LONGEST_NAME} characters")


def put(module: Any, stored: dict[str, Any], source: str) -> None:
    """Put weights into a module.

    Raises:
        InputError: some are missing, left over, or of another shape.
    """
    try:
        module.load_state_dict(stored)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"{source}: the weights don't fit the model: {lines[1:2] or lines}"[:400]
        ) from error
