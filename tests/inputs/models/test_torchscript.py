from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.support.at_hand import EXPORT, at_hand

from hasten.errors import InputError
from hasten.inputs.models import torchscript
from hasten.inputs.models.source import find_model, load_with_data

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; its files aren't gone

X = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return torch.relu(self.conv(x)).mean((2, 3))


class Branching(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        if bool(x.sum() > 0):
            return x * 2
        return -x


class OneBatch(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return x.reshape(1, 192)


def saved(module: torch.nn.Module, path: Path, *, traced: bool = False) -> Path:  # type: ignore[name-defined]
    module.eval()
    script = torch.jit.trace(module, torch.ones(1, 3, 8, 8)) if traced else torch.jit.script(module)
    script.save(str(path))
    return path


@pytest.mark.parametrize("traced", [True, False])
def test_a_file_of_torchscript_is_exported_with_an_open_batch(tmp_path: Path, traced: bool) -> None:
    torch.manual_seed(0)
    net = Net()
    path = saved(net, tmp_path / "net.pt", traced=traced)
    model = torchscript.export(torchscript.load(path), {"data": X}, tmp_path)
    assert [str(spec) for spec in model.inputs] == ["x: float32[batch, 3, 8, 8]"]
    x = np.stack([X, -X, X / 2])
    (answer,) = onnxruntime.InferenceSession(str(model.path)).run(None, {"x": x})
    np.testing.assert_allclose(answer, net(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_a_branch_in_torchscript_stays_a_branch(tmp_path: Path) -> None:
    path = saved(Branching(), tmp_path / "net.pt")
    model = torchscript.export(torchscript.load(path), {"x": np.ones(4, np.float32)}, tmp_path)
    session = onnxruntime.InferenceSession(str(model.path))
    (answer,) = session.run(None, {"x": -np.ones((1, 4), np.float32)})
    assert answer.tolist() == [[1, 1, 1, 1]]


def test_a_batch_that_cant_be_open_is_1_and_the_file_says_why(tmp_path: Path) -> None:
    path = saved(OneBatch(), tmp_path / "net.pt")
    model = torchscript.export(torchscript.load(path), {"x": X}, tmp_path)
    assert model.inputs[0].shape == (1, 3, 8, 8)
    (note,) = (p.value for p in onnx.load(model.path).metadata_props if p.key == "hasten.batch")
    assert note.startswith("1: the model can't run x float32[2, 3, 8, 8]: ")


class Segmenter(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return torch.max_pool2d(self.conv(x), 2)


class OneSize(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return x + torch.ones(int(x.size(2)), 8)


PICTURES = [
    np.random.default_rng(0).standard_normal((3, *size), np.float32)
    for size in ((8, 8), (16, 8), (8, 12))
]


@pytest.fixture
def torch_at_hand() -> Iterator[None]:
    with at_hand(*EXPORT):
        yield


@pytest.mark.usefixtures("torch_at_hand")
@pytest.mark.parametrize("traced", [True, False])
def test_samples_that_differ_in_shape_keep_these_dimensions_open(
    tmp_path: Path, traced: bool
) -> None:
    net = Segmenter()
    path = saved(net, tmp_path / "net.pt", traced=traced)
    model, data = load_with_data(find_model(path), {"x": PICTURES}, None, (), tmp_path)
    assert data.ragged
    assert [str(spec) for spec in model.inputs] == ["x: float32[batch, 3, x_2, x_3]"]
    assert [str(spec) for spec in model.outputs] == [
        "output: float32[batch, 2, output_2, output_3]"
    ]
    x = np.random.default_rng(1).standard_normal((2, 3, 20, 6), np.float32)
    (answer,) = onnxruntime.InferenceSession(str(model.path)).run(None, {"x": x})
    np.testing.assert_allclose(answer, net(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.usefixtures("torch_at_hand")
def test_a_module_that_tracing_bound_to_one_size_is_refused_with_the_sample_that_shows_it(
    tmp_path: Path,
) -> None:
    path = saved(OneSize(), tmp_path / "net.pt", traced=True)
    with pytest.raises(InputError) as error:
        load_with_data(find_model(path), {"x": PICTURES[:2]}, None, (), tmp_path)
    assert str(error.value) == (
        "the model can't run x float32[1, 3, 16, 8]: The size of tensor a (16) must match the size of "
        "tensor b (8) at non-singleton dimension 2"
    )


def test_a_sample_that_doesnt_fit_is_refused(tmp_path: Path) -> None:
    path = saved(Net(), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"^the model can't run x float32\[1, 2\]: [^\n]+$"):
        torchscript.export(torchscript.load(path), {"x": np.ones(2, np.float32)}, tmp_path)


def test_an_operator_without_onnx_is_named(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            return torch.special.bessel_j0(x)

    path = saved(Odd(), tmp_path / "net.pt", traced=True)
    with pytest.raises(InputError) as error:
        torchscript.export(torchscript.load(path), {"x": X}, tmp_path)
    assert "\n" not in str(error.value)
    assert "bessel_j0" in str(error.value)
    assert str(error.value).endswith(
        "export the module that it was made from (my.py:model), or a program of torch.export"
    )


class WithANumber(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:  # type: ignore[name-defined]
        return x * 2, x.shape[1]


class WithAFlagInside(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(
        self,
        x: torch.Tensor,  # type: ignore[name-defined]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, bool]]:  # type: ignore[name-defined]
        return x * 2, (x + 1, True)


class WithNothing(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[name-defined]
        y: torch.Tensor | None = None  # type: ignore[name-defined]
        return x * 2, y


class OfAList(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[name-defined]
        return [x * 2, x + 1]


class OfTuples(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(
        self,
        x: torch.Tensor,  # type: ignore[name-defined]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:  # type: ignore[name-defined]
        return x * 2, (x + 1, x - 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WithANumber, "a value of type int at [1]"),
        (WithAFlagInside, "a value of type bool at [1][1]"),
        (WithNothing, "nothing at [1]"),
        (OfAList, "a value of type list"),
    ],
)
def test_an_answer_of_other_things_than_tensors_is_refused(
    tmp_path: Path, kind: type, said: str
) -> None:
    path = saved(kind(), tmp_path / "net.pt")
    with pytest.raises(InputError) as error:
        torchscript.export(torchscript.load(path), {"x": X}, tmp_path)
    assert str(error.value) == (
        f"the model returns {said}, but torch exports only tensors and tuples of them from TorchScript: return "
        "those, or give the module that it was made from (my.py:model)"
    )


def test_tuples_in_tuples_are_exported(tmp_path: Path) -> None:
    path = saved(OfTuples(), tmp_path / "net.pt")
    model = torchscript.export(torchscript.load(path), {"x": X}, tmp_path)
    assert [spec.name for spec in model.outputs] == ["output_0", "output_1_0", "output_1_1"]


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(Net().state_dict(), path)
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"{path} contains weights without their network: build the network in a my.py, load the "
        "weights there and give my.py:model; or name the network, as in "
        "timm:resnet18@weights.safetensors"
    )
