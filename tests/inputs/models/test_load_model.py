import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.core.extras import missing_extra
from hasten.errors import InputError
from hasten.inputs.models.source import KINDS, check_has_program, find_model, load_model
from hasten.testing import models

X = np.ones(4, np.float32)
RELU = """
<ir_version: 10, opset_import: ["" : 20]>
relu (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }
"""


def refused(source: Any, sample: Any = None, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        load_model(source, sample, Path("unused"), **more)
    return str(error.value)


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.parser.parse_model(RELU), path)
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "import sibling_of_mine\n"
        "number = 3\n"
        "def path(): return sibling_of_mine.PATH\n"
        "def missing(): return '/no/such/file'\n"
        "def net():\n"
        "    from torch import nn\n"
        "    return nn.Sequential(nn.Linear(4, 2))\n"
    )
    (tmp_path / "sibling_of_mine.py").write_text(f"PATH = {str(tmp_path / 'relu.onnx')!r}\n")
    return path


@pytest.fixture(autouse=True)
def _own_imports() -> Any:
    before = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before[0]:
        if "mine" in name:
            del sys.modules[name]
    sys.path[:] = before[1]


def test_an_onnx_file_needs_no_sample(relu: Path) -> None:
    assert load_model(str(relu), None, Path("unused")).path == relu
    assert load_model(relu, None, Path("unused")).inputs[0].name == "x"


def test_any_other_file_name_is_read_as_onnx(relu: Path) -> None:
    other = relu.rename(relu.with_name("weights: final"))
    assert load_model(str(other), None, Path("unused")).inputs[0].name == "x"


def test_a_function_in_a_file_may_return_a_path(relu: Path, code: Path) -> None:
    assert load_model(f"{code}:path", None, Path("unused")).path == relu


def test_a_function_in_a_file_may_return_a_module(code: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    asked: list[Any] = []

    def sample(names: Any) -> dict[str, Any]:
        asked.append(names)
        return {"input": X}

    model = load_model(f"{code}:net", sample, tmp_path)
    assert asked == [("input",)]
    assert model.inputs[0].shape == ("batch", 4)


def test_data_may_have_what_a_module_takes_beyond_the_least(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")

    class Scaled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, scale: Any = 1) -> Any:
            return x * scale

    from hasten.core.tensors import TensorSpec
    from hasten.inputs.data.source import open_data

    np.savez(tmp_path / "d.npz", x=X[None], scale=X[None])

    def sample(names: Any) -> dict[str, Any]:
        data = open_data(tmp_path / "d.npz", [TensorSpec(name, "float32", ()) for name in names])
        return {name: rows[0] for name, rows in data.inputs([0]).items()}

    model = load_model(Scaled(), sample, tmp_path)
    assert [spec.name for spec in model.inputs] == ["x", "scale"]
    (tmp_path / "d.npz").write_bytes(b"no archive")
    with pytest.raises(InputError) as error:
        load_model(Scaled(), sample, tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'd.npz'} is not an .npz archive, or it is cut short or damaged"
    )


def test_a_live_module_and_an_exported_program_are_told_apart(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    assert load_model(module, {"input": X}, tmp_path).inputs[0].shape == ("batch", 4)
    program = torch.export.export(module, (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    model = load_model(tmp_path / "net.pt2", {"input": X}, tmp_path)
    assert model.inputs[0].shape == (1, 4)


def test_a_torch_model_needs_a_sample(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    assert refused(torch.nn.ReLU()) == (
        "a torch model is exported with a sample of its data: give data"
    )
    assert refused(torch.nn.ReLU(), {"input": X}, custom_ops=[tmp_path]) == (
        "custom-op libraries belong to ONNX files; a torch model has none to load them for"
    )


def test_a_file_of_keras_or_tensorflow_is_refused_with_a_next_step(tmp_path: Path) -> None:
    for name, step in (
        ("m.h5", "keras.models.load_model('model.h5').save('model.keras')"),
        ("m.pb", "python -m tf2onnx.convert --graphdef frozen.pb"),
        ("saved_model.pb", "give the folder that it is in"),
    ):
        (tmp_path / name).touch()
        said = refused(tmp_path / name)
        assert said.startswith(f"{tmp_path / name} is ")
        assert step in said
        assert "\n" not in said


def test_an_onnx_file_may_end_in_pb(tmp_path: Path) -> None:
    path = models.linear_classifier(tmp_path).rename(tmp_path / "m.pb")
    assert load_model(path, None, tmp_path).path == path


def test_what_is_no_model_is_refused_with_what_would_be(tmp_path: Path, code: Path) -> None:
    assert refused(3) == f"got a int; a model is {KINDS}"
    assert refused(f"{code}:number") == f"{code}:number has the type int; a model is {KINDS}"
    weights = tmp_path / "net.pth"
    weights.touch()
    assert refused(weights) == (
        f"{weights} contains weights without their network: build the network in a my.py, load "
        "the weights there and give my.py:model; or name the network, as in "
        "timm:resnet18@weights.safetensors"
    )
    assert refused(code) == f"{code}: name the model in it, as in {code}:model"


def test_weights_in_python_are_told_to_lack_their_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    (tmp_path / "weights_mine.py").write_text(
        "import torch\nweights = torch.nn.Linear(2, 2).state_dict()\n"
    )
    told = (
        "contains weights without their network: build the network in a my.py, load the weights there and give "
        "my.py:model; or name the network, as in timm:resnet18@weights.safetensors"
    )
    named = f"{tmp_path}/weights_mine.py:weights"
    assert refused(named) == f"{named} {told}"
    assert refused(torch.nn.Linear(2, 2).state_dict()) == f"this OrderedDict {told}"


def test_what_does_not_exist_is_named(tmp_path: Path, code: Path) -> None:
    assert refused(tmp_path / "no.onnx") == f"no such file: {tmp_path / 'no.onnx'}"
    assert refused("no.onnx") == "no such file: no.onnx"
    for name in (
        "bert-base-uncased",
        "sentence-transformers/all-MiniLM-L6-v2",
        "a/Model-1.5-small",
    ):
        assert refused(name) == (
            f"no such file or folder: {name}; if it is a name on a hub, download the model and give its folder"
        )
    assert refused(f"{tmp_path}/no.py:net") == f"no such file: {tmp_path}/no.py"
    assert refused(f"{code}:missing") == (
        f"{code}:missing names the file /no/such/file, which doesn't exist"
    )
    assert refused("no_such_module:net") == (
        "can't import 'no_such_module:net': No module named 'no_such_module'"
    )


@pytest.mark.parametrize(
    ("file", "library", "message"),
    [
        ("m.pt2", "torch", "a torch model needs the extra: pip install 'hasten[torch]'"),
        ("m.keras", "keras", "a Keras model needs the extra: pip install 'hasten[keras]'"),
        ("m.onnx", "onnx", "an ONNX model needs the extra: pip install 'hasten[optimize]'"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, library: str, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / file, "w") as archive:  # a .keras file is checked beforehand
        archive.writestr("config.json", "{}")
    monkeypatch.setitem(sys.modules, library, None)
    assert refused(tmp_path / file) == message


def test_the_extra_is_said_as_it_is_typed() -> None:
    assert str(missing_extra("a torch model", "torch")) == (
        "a torch model needs the extra: pip install 'hasten[torch]'"
    )


def test_a_program_is_kept_beside_the_onnx_file_where_it_is_asked_for(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)).train()
    model = load_model(module, {"x": X}, tmp_path, keep_program=True)
    assert module.training
    assert model.program == tmp_path / "program.pt2"
    assert load_model(module, {"x": X}, tmp_path).program is None
    kept, given = torch.export.load(model.program), torch.from_numpy(X[None])
    torch.testing.assert_close(kept.module()(input=given), module.eval()(given))


def test_a_program_of_any_batch_is_kept_for_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(
        torch.nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic_shapes=shapes
    )
    model = load_model(program, {"input": X}, tmp_path, keep_program=True)
    kept = torch.export.load(model.program)
    name = kept.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in kept.graph.nodes if node.name == name)
    assert tuple(shape) == (1, 4)


def test_what_has_no_torch_program_is_refused_where_one_is_needed(relu: Path) -> None:
    with pytest.raises(InputError) as error:
        check_has_program(find_model(relu))
    assert str(error.value) == (
        f"this target starts from the torch program, not from ONNX: got the ONNX file {relu}; "
        "give the torch module or its .pt2 file"
    )


def test_where_one_is_kept_if_there_is_one_an_onnx_file_has_none(
    relu: Path, tmp_path: Path
) -> None:
    assert load_model(relu, None, tmp_path, keep_program=True).program is None
