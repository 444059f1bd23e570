"""A .keras file from a stranger: refused before keras reads it, so no test here needs keras but for two."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bombs import padded, with_little_unasked

from hasten.errors import InputError
from hasten.inputs.models import keras_archive
from hasten.inputs.models.source import find_model

ADVICE = (
    ", so loading it could run code or touch other files: if you trust it, add trust_code=True, "
    "or load it in a my.py and give my.py:model"
)
INPUT: dict[str, Any] = {
    "module": "keras.layers",
    "class_name": "InputLayer",
    "config": {"batch_shape": [None, 4], "name": "x", "dtype": "float32"},
    "registered_name": None,
    "name": "x",
    "inbound_nodes": [],
}
POLICY: dict[str, Any] = {"module": "keras", "class_name": "DTypePolicy", "config": {}}


def layer(name: str, *, module: Any = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {"name": "l", **config}}


def called(layer: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    nodes = [{"args": [], "kwargs": inputs}]
    return layer | {"name": "l", "registered_name": None, "inbound_nodes": nodes}


def written(path: Path, *layers: dict[str, Any], more: dict[str, bytes] | None = None) -> Path:
    """Write a model whose answer is its input, with more layers."""
    ends: dict[str, Any] = {"input_layers": [["x", 0, 0]], "output_layers": [["x", 0, 0]]}
    model = {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {"name": "m", "layers": [INPUT, *layers], **ends},
        "registered_name": "Functional",
        "compile_config": {"loss": {"module": "mine", "class_name": "function", "config": "f"}},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
        for name, content in ({"model.weights.h5": b""} | (more or {})).items():
            archive.writestr(name, content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        find_model(str(path))
    return str(error.value)


def planting(tmp_path: Path) -> dict[str, Any]:
    """A layer by which keras 3.9 and 3.10 copied any file or address to a place of the file's choice."""
    (tmp_path / "source").write_text("planted")
    (tmp_path / "cache").mkdir()
    function = {"module": "keras.utils", "class_name": "function", "config": "get_file"}
    arguments = {
        "origin": (tmp_path / "source").as_uri(),
        "cache_dir": str(tmp_path / "cache"),
        "cache_subdir": ".",
    }
    lambda_ = layer(
        "Lambda", function=function | {"registered_name": "get_file"}, arguments=arguments
    )
    return called(lambda_, inputs="planted")


def test_a_function_of_keras_plants_no_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.keras", planting(tmp_path))
    said = refusal(path)
    assert not list((tmp_path / "cache").iterdir())
    assert said == f"{path} contains an object of the class 'Lambda' from 'keras.layers'{ADVICE}"


def harmful(name: str) -> dict[str, Any]:
    function = {"module": "keras.config", "class_name": "function", "config": "x"}
    return {
        "function": layer("Activation", activation=function),
        "get_file": layer("get_file", module="keras.utils"),
        "utils.get_file": layer("utils.get_file", module="keras"),
        "load_model": layer("load_model", module="keras.models"),
        "TorchModuleWrapper": layer("TorchModuleWrapper"),
        "TFSMLayer": layer("TFSMLayer", filepath="/elsewhere"),
        "Popen": layer("Popen", module="subprocess"),
        "__lambda__": layer("Activation", activation={"class_name": "__lambda__", "config": {}}),
        "__typespec__": layer("InputLayer", type={"class_name": "__typespec__", "config": []}),
        "Wrapped": layer("Wrapped", module=["keras"]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("function", "get_file", "utils.get_file", "load_model", "TorchModuleWrapper"),
        *("TFSMLayer", "Popen", "__lambda__", "__typespec__", "Wrapped"),
    ],
)
def test_what_calls_functions_is_refused_wherever_it_stands(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.keras", layer("TimeDistributed", layer=[{"inner": harmful(name)}]))
    said = refusal(path)
    assert said.startswith(f"{path} contains an object of the class {name!r} from ")
    assert said.endswith(ADVICE)


def test_a_vocabulary_in_another_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.keras", layer("StringLookup", vocabulary="/elsewhere"))
    assert refusal(path) == f"{path} contains a vocabulary in the file '/elsewhere'{ADVICE}"


def test_a_file_that_keras_doesnt_write_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.keras", more={"model.weights.npz": b""})
    assert refusal(path) == f"{path} contains the file 'model.weights.npz'{ADVICE}"


@pytest.mark.parametrize("content", [b"no archive", b"PK\x05\x06" + bytes(18)])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.keras").write_bytes(content)
    assert refusal(tmp_path / "m.keras") == (
        f"{tmp_path / 'm.keras'} can't be loaded as a Keras model: it isn't an archive with a "
        "config.json"
    )


@pytest.mark.parametrize("field", ["compression", "flags", "size"])
def test_an_archive_that_cant_be_unpacked_is_refused(tmp_path: Path, field: str) -> None:
    path = written(tmp_path / "m.keras")
    content = bytearray(path.read_bytes())
    at, value = {"compression": (10, 99), "flags": (8, 1), "size": (20, 3)}[field]
    for head, shift in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
        content[content.find(head) + at + shift] = value
    path.write_bytes(content)
    assert refusal(path) == (
        f"{path} can't be loaded as a Keras model: it isn't an archive with a config.json"
    )


def test_plain_models_go_on_to_keras(tmp_path: Path) -> None:
    from hasten.inputs.models.keras_archive import check

    nested = layer("Bidirectional", layer=layer("GRU", dtype=POLICY))
    operation = layer("Add", module="keras.src.ops.numpy")
    path = written(tmp_path / "m.keras", nested, operation, layer("TextVectorization"))
    with path.open("rb") as file:
        check(file, path)


def test_a_file_that_would_unpack_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    path = written(tmp_path / "m.keras")
    said = padded(path, "assets/zeros")
    assert refusal(path) == f"{path} can't be unpacked safely: {said}"


def packed(folder: Path, fill: Callable[[Any], object]) -> Path:
    """Write a .keras file whose weights a function writes."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "w.h5", "w") as weights:
        fill(weights.create_group("layers/dense/vars"))
    content = (folder / "w.h5").read_bytes()
    return written(folder / "m.keras", more={"model.weights.h5": content})


def checked(path: Path) -> str:
    """Return why the weights of a file are refused; "" for sound ones."""
    try:
        with path.open("rb") as file:
            keras_archive.check_weights(file, path)
    except InputError as error:
        return str(error)
    return ""


def test_weights_as_keras_writes_them_are_sound(tmp_path: Path) -> None:
    def plain(group: Any) -> None:
        group["0"] = np.ones((100, 3), np.float32)
        group["1"] = np.float32(1)
        group.create_dataset("2", data=np.ones(3, np.uint16).view("V2")).attrs["dtype"] = "bfloat16"
        group["again"] = group  # a circle
        group.file["layers/other"] = group

    path = packed(tmp_path, plain)
    assert checked(path) == ""
    written(path)
    assert checked(path) == (
        f"{path} can't be loaded as a Keras model: its model.weights.h5 can't be read"
    )


@pytest.mark.parametrize("kind", ["external", "virtual", "soft link", "link", "texts", "attribute"])
def test_weights_in_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    other = tmp_path / "other"
    other.write_bytes(b"S" * 64)

    def fill(group: Any) -> None:
        if kind == "external":
            group.create_dataset("0", (16,), "f4", external=[(str(other), 0, 64)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((16,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "x", (16,))
            group.create_virtual_dataset("0", layout)
        elif kind == "texts":
            group["0"] = ["long " * 100] * 2
        elif kind == "attribute":
            group["0"] = np.ones(2)
            group["0"].attrs["dtype"] = ["bfloat16"] * 1000
        else:
            link = h5py.SoftLink("/x") if "soft" in kind else h5py.ExternalLink(str(other), "/x")
            group["0"] = link

    what = "the weights '0' of another file"
    if "link" in kind:
        what = "a link '0' among its weights"
    if kind in ("texts", "attribute"):
        what = "the weights '0', which aren't numbers"
    path = packed(tmp_path, fill)
    assert checked(path) == f"{path} contains {what}{ADVICE}"


def test_weights_that_claim_more_than_the_file_has_are_refused(tmp_path: Path) -> None:
    """HDF5 doesn't store what was never written: keras would take 2 GiB for a file of some kilobytes."""
    path = packed(
        tmp_path,
        lambda group: group.create_dataset("0", (1 << 20, 1 << 9), "f4", chunks=(1024, 512)),
    )
    size = (tmp_path / "w.h5").stat().st_size
    assert checked(path) == (
        f"{path} can't be loaded as a Keras model: its model.weights.h5 claims {1 << 31:,} bytes of weights, but it "
        f"has {size:,}: if you trust it, add trust_code=True"
    )


def test_a_file_that_is_mostly_holes_fills_no_disk(tmp_path: Path) -> None:
    from hasten.inputs.models import keras as reader

    path = tmp_path / "m.keras"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(
        InputError, match=r"m\.keras has 8,796,093,022,208 bytes, and for a copy of it only "
    ):
        reader.load_file(path)


def test_a_temporary_folder_that_states_no_size_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tmpfs of size 0, which is no limit."""
    import shutil

    from hasten.inputs.models import keras as reader

    (tmp_path / "m.keras").write_bytes(b"no model")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(InputError) as error:
        reader.load_file(tmp_path / "m.keras")
    assert "are free" not in str(error.value)
