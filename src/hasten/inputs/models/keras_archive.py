"""Check of a .keras file, before keras reads it: keras builds whatever object a file names.

By its `safe_mode` keras refuses Python's own bytecode. Its versions before 3.11 called any function of a file's choice,
such as `keras.utils.get_file`, which writes files. So a file may name only keras's own classes of models, and
none that calls functions or reads files.

Source: keras 3.15, keras/src/saving/saving_lib.py and serialization_lib.py.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hasten.core.archives import excess
from hasten.errors import InputError

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_FILE = re.compile(r"metadata\.json|config\.json|model\.weights\.h5|assets/.*")
_MODULE = re.compile(
    r"keras|keras\.(src\.)?(activations|constraints|dtype_policies|initializers|layers|losses|metrics|models|ops|"
    r"optimizers|quantizers|random|regularizers)(\.\w+)*|keras\.src\.backend\.\w+\.(layer|optimizers)(\.\w+)*",
    re.ASCII,
)
_LAYERS = (None, "keras.layers", "keras.src.layers.preprocessing.normalization")
"""Modules that keras's own layer `Normalization` is named by."""
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")
"""Names that stand for values instead of classes."""
_CLASS = re.compile(r"[A-Z]\w*", re.ASCII)
_CALLING = ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")
"""Classes that call functions, or load other models, which a file names or brings."""


def check(file: IO[bytes], path: Path) -> None:
    """Check that keras can load a file without running code of it, or touching other files.

    Args:
        file: The file, opened to be read.
        path: Its path, for messages.

    Raises:
        InputError: it can't, or it is another kind of file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            said = excess(file)
            names = archive.namelist()
            config = {} if said else json.loads(archive.read(_CONFIG))
    except Exception as error:  # zipfile raises many kinds, as for an unknown compression
        raise InputError(
            f"{path} can't be loaded as a Keras model: it isn't an archive with a {_CONFIG}"
        ) from error
    if said:
        raise InputError(f"{path} can't be unpacked safely: {said}")
    if isinstance(config, dict):
        config.pop("compile_config", None)  # never read: the model isn't compiled
    found = [f"the file {name!r:.80}" for name in names if not _FILE.fullmatch(name)]
    for what in (*found, *_refused(config)):
        raise _unsafe(path, what)


def _unsafe(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} contains {what}, so loading it could run code or touch other files: if you "
        "trust it, add trust_code=True, or load it in a my.py and give my.py:model"
    )


def check_weights(file: IO[bytes], path: Path) -> None:
    """Check that the weights of a file are in it: HDF5 has links to other files, and packs a large array of one number small.

    Args:
        file: The file, opened to be read, after `check`.
        path: Its path, for messages.

    Raises:
        InputError: they aren't, or can't be read; or they claim more bytes than they have.
    """
    import h5py

    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
        if _WEIGHTS not in archive.namelist():
            return  # which keras says
        try:
            weights = Path(archive.extract(_WEIGHTS, folder))
            stored = weights.stat().st_size
            with h5py.File(weights, "r") as opened:
                what, claimed = _weights(opened)
        except Exception as error:  # zipfile and h5py raise several kinds
            raise InputError(
                f"{path} can't be loaded as a Keras model: its {_WEIGHTS} can't be read"
            ) from error
    if what:
        raise _unsafe(path, what)
    if claimed > stored:
        raise InputError(
            f"{path} can't be loaded as a Keras model: its {_WEIGHTS} claims {claimed:,} bytes of weights, but "
            f"it has {stored:,}: if you trust it, add trust_code=True"
        )


def _weights(whole: Any) -> tuple[str, int]:
    """Return in words what a plain HDF5 file of weights doesn't have, or "", and the bytes that its arrays claim."""
    import h5py

    left, seen, claimed = [whole], set(), 0
    while left:
        group = left.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                return f"a link {name!r:.80} among its weights", claimed
            one = group[name]
            if (place := h5py.h5o.get_info(one.id).addr) in seen:
                continue
            seen.add(place)
            if isinstance(one, h5py.Group):
                left.append(one)
            elif isinstance(one, h5py.Dataset):
                if one.external or one.is_virtual:
                    return f"the weights {name!r:.80} of another file", claimed
                if one.dtype.hasobject or not _is_plain_type(one):
                    return f"the weights {name!r:.80}, which aren't numbers", claimed
                claimed += math.prod(one.shape or ()) * one.dtype.itemsize
    return "", claimed


def _is_plain_type(weights: Any) -> bool:
    """Whether what keras reads of an array's attributes, the name of its type, is at most one text."""
    import h5py

    if "dtype" not in weights.attrs:
        return True
    said = weights.attrs.get_id("dtype")
    return said.shape == () and h5py.check_string_dtype(said.dtype) is not None


def sizes(file: IO[bytes]) -> tuple[Any, int, bool]:
    """Return the configuration of a file that was checked, the bytes of its weights, and whether it keeps states.

    The configuration is changed so that all arrays of the model are variables, whose sizes can be told before they
    take memory: it isn't compiled or stateful, and has other layers with as many weights in place of `Normalization`.
    """
    with zipfile.ZipFile(file) as archive:
        stored = {info.filename: info.file_size for info in archive.infolist()}
        config = json.loads(archive.read(_CONFIG))
    left, stateful = [config], False
    while left:
        value = left.pop()
        if isinstance(value, dict):
            value.pop("compile_config", None)
            stateful |= bool(value.pop("stateful", False))
            if value.get("class_name") == "Normalization" and value.get("module") in _LAYERS:
                value |= _like_normalization(value.get("config"))
            left += value.values()
        elif isinstance(value, list):
            left += value
    return config, stored.get(_WEIGHTS, 0), stateful


def _like_normalization(settings: Any) -> dict[str, Any]:
    """Return the class and settings of a layer with as many weights, which calculates nothing as it is made."""
    given = settings if isinstance(settings, dict) else {}
    kept = {key: given[key] for key in ("name", "trainable", "dtype") if key in given}
    if given.get("axis") in (None, []):
        return {"class_name": "Rescaling", "config": {**kept, "scale": 1.0, "offset": 0.0}}
    return {"class_name": "LayerNormalization", "config": {**kept, "axis": given["axis"]}}


def _refused(config: Any) -> Iterator[str]:
    """Yield in words what a plain model's configuration doesn't have."""
    keras = sys.modules.get("keras")
    own = frozenset(keras.saving.get_custom_objects()) if keras is not None else frozenset()
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            if isinstance(words := value.get("vocabulary"), str):
                yield f"a vocabulary in the file {words!r:.80}"
            if "class_name" in value and not _is_plain(value, own):
                yield f"an object of the class {value['class_name']!r:.80} from {value.get('module')!r:.80}"


def _is_plain(value: dict[str, Any], own: frozenset[str]) -> bool:
    """Whether an object is a value, of keras's classes of models, or of what the caller registered with keras."""
    name, module = value["class_name"], value.get("module")
    registered = value.get("config" if name == "function" else "registered_name")
    if not isinstance(name, str) or (module is not None and not isinstance(module, str)):
        return False
    if name in _VALUES:
        return True
    if isinstance(registered, str) and registered in own:
        return name == "function" or not name.startswith("__")
    return (
        bool(_CLASS.fullmatch(name))
        and name not in _CALLING
        and (module is None or bool(_MODULE.fullmatch(module)))
    )
