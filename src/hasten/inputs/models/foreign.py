"""Files and folders that are no model for hasten: how the messages call them, and what to give instead."""

from __future__ import annotations

from pathlib import Path

from hasten.core.presence import is_there
from hasten.errors import InputError

_CONVERTED = "give the model that it was converted from, as an ONNX file or in its own framework"
_ARCHIVE = ("an archive", "unpack it, and give the model in it")
_CORE_ML = ("a Core ML model", _CONVERTED)
_GGUF = (
    "a GGUF file",
    "hasten takes no models that write text token by token; give another model as an ONNX file",
)
_HDF5 = (
    "an HDF5 file",
    "save a Keras model as .keras, as in keras.models.load_model('model.h5').save('model.keras'); if it contains weights "
    "alone, build the network in a my.py, load them there and give my.py:model",
)
_SAVED = ("the graph of a SavedModel", "give the folder that it is in")
_TENSORFLOW = (
    "a graph of TensorFlow 1",
    "convert it, as in python -m tf2onnx.convert --graphdef frozen.pb --inputs x:0 --outputs y:0 --output model.onnx, "
    "and give the ONNX file",
)
_TENSORRT = (
    "a TensorRT engine, compiled for one kind of GPU",
    "give the ONNX file that it was built from",
)
_WEIGHTS = (
    "a file of weights without their network",
    "build the network in a my.py, load the weights there and give my.py:model",
)
_BY_CONTENT = (
    (0, b"GGUF", _GGUF),
    (0, b"ftrt", _TENSORRT),
    (0, b"PK\x03\x04", _ARCHIVE),
    (0, b"\x1f\x8b", _ARCHIVE),
    (257, b"ustar", _ARCHIVE),
    (0, b"\x89HDF", _HDF5),
    (8, b'{"', _WEIGHTS),  # safetensors
)
"""Place and bytes by which a file's content says what it is."""
_BY_SUFFIX = {
    ".caffemodel": ("a Caffe model", _CONVERTED),
    ".engine": _TENSORRT,
    ".gguf": _GGUF,
    ".h5": _HDF5,
    ".mlmodel": _CORE_ML,
    ".mnn": ("an MNN model", _CONVERTED),
    ".pdmodel": ("a PaddlePaddle model", _CONVERTED),
    ".pb": _TENSORFLOW,
    ".plan": _TENSORRT,
    ".pte": ("an ExecuTorch program", _CONVERTED),
    ".rknn": ("an RKNN model", _CONVERTED),
    ".tar": _ARCHIVE,
    ".trt": _TENSORRT,
    ".xml": ("an XML file, as OpenVINO and PMML have them", _CONVERTED),
    ".zip": _ARCHIVE,
}
_HEAD_BYTES = 512


def no_onnx_file(path: Path) -> str:
    """Return the message on a file that can't be read as ONNX, by its content or else its suffix."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    found = next((f for at, magic, f in _BY_CONTENT if head[at:].startswith(magic)), None)
    found = found or (_SAVED if path.name == "saved_model.pb" else None)
    found = found or _BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        return f"{path} is not an ONNX file, or it is cut short"
    return f"{path} is {found[0]}, not an ONNX file: {found[1]}"


def check_no_device(path: Path) -> None:
    """Check that a path isn't that of a pipe or a device, which reading may block, or which never ends.

    Raises:
        InputError: it is.
    """
    if is_there(path) and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path} is a pipe or a device, not a file: save what comes from it to a file, and give that"
        )


def no_model_folder(path: Path) -> str:
    """Return the message on a folder that is none of a model, by what is in it."""
    if path.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return f"{path} is {_CORE_ML[0]}: {_CORE_ML[1]}"
    if files := sorted(path.glob("*.onnx")):
        return f"{path} is a folder, not an ONNX file: give the file in it, {files[0]}"
    if (path / "config.json").is_file():
        return (
            f"{path / 'config.json'} has none of architectures, auto_map and model_type, so the folder isn't one of "
            "Hugging Face: give the model's file, or a folder that save_pretrained wrote"
        )
    return (
        f"{path} is a folder that has no ONNX file, no config.json (Hugging Face) and no saved_model.pb (TensorFlow): "
        "give the model's file, or a folder with one of these"
    )
