import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engines.cuda import Host
from hasten.engines.torch_cuda import TorchCuda, opened
from hasten.errors import CandidateError, InputError
from hasten.frontends.source import load_model
from hasten.model import Model
from hasten.target import Target
from hasten.tensors import Array, Tensors

torch = pytest.importorskip("torch", reason="needs the extra gpu: pip install 'hasten[gpu]'")
HOST = Target.host().with_threads(1)
REQUEST = {
    "x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32),
    "factor": np.full((1, 1), 2, np.float32),
}


class Network(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x: Any, factor: Any) -> Any:
        means = torch.relu(self.convolution(x)).mean((2, 3))
        return self.linear(means) * factor, factor + 1


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def model(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network as ONNX, with its program."""
    folder = tmp_path_factory.mktemp("network")
    sample = {name: array[0] for name, array in REQUEST.items()}
    exported = load_model(network, lambda _: sample, folder).settled_by(sample)
    example = {name: torch.from_numpy(array) for name, array in REQUEST.items()}
    torch.export.save(torch.export.export(network, (), example), folder / "network.pt2")
    return replace(exported, program=folder / "network.pt2")


@pytest.fixture(scope="module")
def expected(network: Any) -> list[Array]:
    with torch.no_grad():
        return [t.numpy() for t in network(*map(torch.from_numpy, REQUEST.values()))]


def assert_close(answers: Tensors, expected: list[Array], tolerance: float = 1e-5) -> None:
    for got, right in zip(answers.values(), expected, strict=True):
        np.testing.assert_allclose(got, right, atol=tolerance, rtol=tolerance)


def test_without_the_gpu_the_program_answers_on_this_host(
    model: Model, expected: Any, sm80: Target, tmp_path: Path
) -> None:
    artifact = TorchCuda().build(model, sm80, tmp_path)
    assert artifact.path.suffix == ".pt2"
    with TorchCuda().open(artifact, sm80) as session:
        assert session.batch_sizes == (1,)
        assert_close(session.run(REQUEST), expected)
        said = session.properties()
    assert (said["mode"], said["copies_to_device"], said["copies_to_host"]) == ("eager", "2", "2")


def test_a_program_with_inputs_by_position_is_called_so(
    network: Any, model: Model, expected: Any, tmp_path: Path
) -> None:
    example = tuple(map(torch.from_numpy, REQUEST.values()))
    torch.export.save(torch.export.export(network, example), tmp_path / "by_position.pt2")
    (tmp_path / "built").mkdir()
    changed = replace(model, program=tmp_path / "by_position.pt2")
    artifact = TorchCuda().build(changed, HOST, tmp_path / "built")
    with TorchCuda().open(artifact, HOST) as session:
        assert_close(session.run(REQUEST), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports
def test_a_compiled_program_answers_the_same(model: Model, expected: Any, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    with opened(artifact, Host(), "reduce-overhead", "f32") as session:
        assert_close(session.run(REQUEST), expected)
        assert session.properties()["mode"] == "reduce-overhead"


def test_half_precision_rounds_products(model: Model, expected: Any, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    with opened(artifact, Host(), "eager", "bf16") as session:
        answers = session.run(REQUEST)
    assert_close(answers, expected, 2e-2)
    with pytest.raises(AssertionError):
        assert_close(answers, expected, 1e-6)
    assert answers[model.outputs[0].name].dtype == np.float32


def test_tf32_is_as_it_was_afterwards(model: Model, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    before = torch.backends.cudnn.allow_tf32
    with opened(artifact, Host(), "eager", "f32"):
        assert torch.backends.cudnn.allow_tf32 is False
    with opened(artifact, Host(), "eager", "tf32"):
        assert torch.backends.cudnn.allow_tf32 is True
        assert torch.backends.cuda.matmul.allow_tf32 is True
    assert torch.backends.cudnn.allow_tf32 is before


def test_a_model_without_a_program_is_said(model: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        TorchCuda().build(replace(model, program=None), HOST, tmp_path)
    assert str(caught.value) == (
        "torch runs the program that a PyTorch model was exported to, and "
        f"{model.path.name} has none: give the module itself"
    )


def test_a_model_that_a_pass_changed_isnt_the_program(model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        CandidateError,
        match=r"^torch runs the original's program, and a pass changed the ONNX file$",
    ):
        TorchCuda().build(replace(model, origin=model), HOST, tmp_path)


def test_a_program_of_other_outputs_is_said(model: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"^the program gives 2 outputs, and the model has 1$"):
        TorchCuda().build(replace(model, outputs=model.outputs[:1]), HOST, tmp_path)


def test_a_file_that_is_no_program_is_one_line(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"not a program")
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError, match=r"^torch can't load the program: [^\n]+$"):
        TorchCuda().build(replace(model, program=tmp_path / "broken.pt2"), HOST, tmp_path / "built")


class Harm:
    """What a pickle calls when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def test_nothing_in_a_program_is_unpickled(model: Model, tmp_path: Path) -> None:
    assert model.program is not None
    harmful, witness = tmp_path / "harmful.pt2", tmp_path / "witness"
    with zipfile.ZipFile(model.program) as old, zipfile.ZipFile(harmful, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if "sample_inputs" in entry.filename:
                content = pickle.dumps(Harm(witness))
            new.writestr(entry, content)
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError, match=r"^torch can't load the program: "):
        TorchCuda().build(replace(model, program=harmful), HOST, tmp_path / "built")
    assert not witness.exists()


def test_only_float32_is_exact_and_nothing_is_tried_without_the_gpu(sm80: Target) -> None:
    attached = replace(sm80, kind="attached")
    assert list(TorchCuda.variants(sm80)) == []
    assert list(TorchCuda.variants(HOST)) == []
    assert [(one.precision, one.exact) for one in TorchCuda.variants(attached)] == [
        ("f32", True),
        ("tf32", False),
        ("f16", False),
        ("bf16", False),
    ]
    assert [one.mode for one in TorchCuda().tunings(attached)] == ["graph", "max-autotune"]


def test_torch_that_isnt_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"^torch isn't installed \(.+\): pip install 'hasten\[gpu\]'$"
    ):
        TorchCuda.version()
