"""Networks that answer in training as their int8 file will."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models import torch as frontend
from hasten.lightening.training.network import Network
from hasten.lightening.training.quantization_aware import export, prepare
from hasten.lightening.training.rounding import ActivationRounding, PreparedNetwork
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import NARROW, answers, error_between

PASS = StaticQuantization(reduce_range=NARROW)
ENGINES = pytest.mark.parametrize("engine", [OnnxRuntime(), OpenVino()], ids=["ort", "openvino"])
CLOSE = 0.06
"""Root mean square, as a share of the answers', by which int8 may move them."""
SAME = 0.01
"""The same where one or two values are on the edge between two integers."""


class Depthwise(nn.Module):
    """What mobile networks are made of: depthwise, squeeze and excite, hard swish, a residual."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
        )
        self.gate = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depth(x)
        y = y * F.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = F.adaptive_avg_pool2d(self.point(y) + x, 2).flatten(1)
        return self.head(self.drop(y))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Two outputs, as detectors have them: upsampling, concatenation, SiLU, leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.coarse, self.fine = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one = self.one(x)
        two = self.two(one)
        return self.coarse(two), self.fine(torch.cat([F.interpolate(two, scale_factor=2), one], 1))


class Attention(nn.Module):
    """One head over rows of the image, and a layer on more than two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out, self.norm = nn.Linear(8, 48), nn.Linear(16, 4), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(x.squeeze(1)).unsqueeze(1).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.out(F.gelu(self.norm(mixed))).mean(1)  # type: ignore[no-any-return]


def pruned() -> nn.Module:
    """Return a network with widths that nobody would choose."""
    return nn.Sequential(
        *(nn.Conv2d(1, 7, 3, 1, 1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3, 2, 1)),
        *(nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)),
    )


NETWORKS = pytest.mark.parametrize(
    "make", [Depthwise, Heads, Attention, pruned], ids=["depthwise", "heads", "attention", "pruned"]
)


def images(count: int, seed: int = 0) -> Array:
    """Return noise, brighter in one corner of four: `(n, 1, 8, 8)`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, 8, 8), dtype=np.float32)
    for i in range(count):
        row, column = 4 * (i % 4 // 2), 4 * (i % 2)
        x[i, 0, row : row + 4, column : column + 4] += 1.5
    return x


def learned(module: nn.Module, steps: int = 15, rate: float = 1e-2) -> list[float]:
    """Train for some steps on which corner is bright; return the losses."""
    x, labels = torch.from_numpy(images(64)), torch.arange(64) % 4
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    losses = []
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        output = module(x)
        if isinstance(output, tuple):
            output = torch.stack([part.mean((2, 3))[:, :4] for part in output]).sum(0)
        loss = F.cross_entropy(output, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    module.eval()
    return losses


def trained(make: Callable[[], nn.Module]) -> Network:
    """Return a network that has learned for a moment."""
    torch.manual_seed(0)
    module = make()
    learned(module)
    return Network(module, ("x",))


def prepared(network: Network, quantization: StaticQuantization = PASS) -> PreparedNetwork:
    """Prepare a network on some images."""
    module = prepare(network, ArrayDataset({"x": images(32, seed=1)}), quantization).module
    assert isinstance(module, PreparedNetwork)
    return module


def answered(module: nn.Module) -> dict[str, Array]:
    """Return a module's answers by name."""
    return next(Network(module, ("x",)).answers(iter([{"x": images(16, seed=2)}])))


@dataclass(frozen=True)
class Case:
    """A network, the same prepared, the same trained for a moment, and its file."""

    network: Network
    fresh: PreparedNetwork
    learned: PreparedNetwork
    model: Model


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], nn.Module]], Case]:
    """Make each network's case once."""
    made: dict[Callable[[], nn.Module], Case] = {}

    def case(make: Callable[[], nn.Module]) -> Case:
        if make not in made:
            torch.set_num_threads(1)
            network = trained(make)
            fresh = prepared(network)
            own = copy.deepcopy(fresh)
            learned(own, steps=5)
            folder = tmp_path_factory.mktemp("made")
            model = export(Network(own, ("x",)), {"x": images(1)[0]}, folder)
            made[make] = Case(network, fresh, own, model)
        return made[make]

    return case


Cases = Callable[[Callable[[], nn.Module]], Case]


@NETWORKS
def test_before_training_it_answers_nearly_as_in_float(
    make: Callable[[], nn.Module], cases: Cases
) -> None:
    case = cases(make)
    assert 0 < error_between(answered(case.network.module), answered(case.fresh)) < CLOSE
    assert case.fresh.placement.unmatched == ()


@NETWORKS
@ENGINES
def test_the_file_answers_as_the_trained_network(
    make: Callable[[], nn.Module], engine: Engine, cases: Cases, tmp_path: Path
) -> None:
    case = cases(make)
    assert case.model.inputs[0].shape[0] == "batch"
    got = answers(case.model, ArrayDataset({"x": images(16, seed=2)}), tmp_path / "run", engine)
    assert error_between(answered(case.learned), got) < SAME


@pytest.mark.parametrize("make", [Depthwise, Heads])
def test_the_file_has_the_operations_that_the_pass_makes(
    make: Callable[[], nn.Module], cases: Cases, tmp_path: Path
) -> None:
    case = cases(make)
    (tmp_path / "pass").mkdir()
    exact = frontend.export(case.network.module, {"x": images(1)[0]}, tmp_path, ["x"])
    exact = exact.settled_by({"x": images(1)[0]})
    usual = PASS(exact, ArrayDataset({"x": images(32, seed=1)}), tmp_path / "pass")
    kinds = [sorted(n.op_type for n in onnx.load(m.path).graph.node) for m in (usual, case.model)]
    assert kinds[0] == kinds[1]
    rounded = sum(len(one.nodes) for one in case.fresh.placement.tensors)
    assert kinds[1].count("QuantizeLinear") == rounded
    products = sum(kind in ("Conv", "Gemm", "MatMul") for kind in kinds[1])
    assert len(case.fresh.placement.weights) == products


@pytest.mark.parametrize("make", [Depthwise, Heads])
def test_a_bias_has_the_step_that_integer_kernels_take_it_to_have(
    make: Callable[[], nn.Module], cases: Cases
) -> None:
    graph = onnx.load(cases(make).model.path).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    back = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    products = [n for n in graph.node if n.op_type in ("Conv", "Gemm")]
    for node in products:
        x, weight, bias = (constants[back[name].input[1]] for name in node.input)
        np.testing.assert_allclose(bias, x * weight, rtol=1e-6)
    assert products


def test_biases_are_rounded_to_the_steps_of_integer_sums(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide, depth = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
    module = nn.Sequential(wide, nn.ReLU(), depth, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    with torch.no_grad():  # beside the first channel all others' inputs are narrow
        wide.weight[0] *= 5000
        depth.weight[0] /= 5000
    own = copy.deepcopy(prepared(Network(module, ("x",))))
    learned(own, steps=3)
    (tmp_path / "made").mkdir()
    model = export(Network(own, ("x",)), {"x": images(1)[0]}, tmp_path / "made")
    got = answers(model, ArrayDataset({"x": images(16, seed=2)}), tmp_path / "run")
    assert error_between(answered(own), got) < SAME


def test_training_moves_weights_and_ranges_lowers_the_loss_and_leaves_the_network_as_it_is() -> (
    None
):
    network = trained(Depthwise)
    network.module.train()
    was = copy.deepcopy(network.module.state_dict())
    own = prepared(network, StaticQuantization(per_channel=False, reduce_range=NARROW))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    losses = learned(own, steps=20)
    moved = {n for n, value in own.state_dict().items() if not torch.equal(before[n], value)}
    assert losses[-1] < losses[0]
    assert {name for name, _ in own.named_parameters()} <= moved
    assert all(range_.scale > 0 for range_ in own.ranges())
    after = network.module.state_dict()
    assert all(torch.equal(was[name], after[name]) for name in was)
    assert all(part.training for part in network.module.modules())


@pytest.mark.seconds
def test_one_that_loses_in_int8_wins_it_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Depthwise()
    learned(module, steps=60)
    with torch.no_grad():  # so large that with one scale in all the other weights round to 0
        for layers in (module.depth, module.point):
            part, norm = layers[0], layers[1]
            assert isinstance(part, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            part.weight[0] *= 400
            norm.running_mean[0] *= 400
            norm.running_var[0] *= 400**2
            norm.weight[0] *= 400
    network = Network(module, ("x",))
    data = ArrayDataset({"x": images(200, seed=3)})

    def score(found: dict[str, Array]) -> float:
        return float((found["output"].argmax(1) == np.arange(200) % 4).mean())

    own = prepared(network, StaticQuantization(per_channel=False, reduce_range=NARROW))
    scores = []
    for name, steps in (("before", 0), ("after", 60)):
        learned(own, steps)
        (tmp_path / name).mkdir()
        model = export(Network(own, ("x",)), {"x": images(1)[0]}, tmp_path / name)
        scores.append(score(answers(model, data, tmp_path / f"run_{name}")))
    assert scores[0] < 0.7
    assert scores[1] > 0.9


def test_a_copy_learns_by_itself(cases: Cases) -> None:
    own = cases(Depthwise).fresh
    other = copy.deepcopy(own)
    before = answered(own)
    learned(other, steps=3)
    assert error_between(before, answered(own)) == 0
    assert error_between(before, answered(other)) > 0


def test_a_range_that_takes_the_place_of_a_clip_grows_no_further(cases: Cases) -> None:
    own = copy.deepcopy(cases(Depthwise).fresh)
    rounding = own.operations.get_submodule(
        f"hasten_tensors.{[one.nodes for one in own.placement.tensors].index(('hardtanh',))}"
    )
    assert isinstance(rounding, ActivationRounding)
    nn.init.constant_(rounding.drift, 3.0)
    assert rounding(torch.tensor([9.0])).item() == pytest.approx(6.0)


def test_weights_have_seven_bits_where_the_pass_says_so_and_are_rounded_to_the_nearest() -> None:
    network = Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), ("x",))
    own = prepared(network, StaticQuantization(reduce_range=True, rounding="layer"))
    assert {weight.highest for weight in own.placement.weights} == {64}


def test_a_branch_that_gave_nothing_yet_can_still_learn_to() -> None:
    network = trained(Depthwise)
    parts = dict(network.module.named_parameters())
    nn.init.zeros_(parts["point.1.weight"])
    nn.init.zeros_(parts["point.1.bias"])
    own = prepared(network)
    assert max(range_.scale for range_ in own.ranges()) < 0.5
    assert all(np.isfinite(learned(own, steps=3)))


def test_what_torch_cannot_capture_is_refused_with_the_reason() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum().item() > 0 else x

    with pytest.raises(CandidateError) as caught:
        prepared(Network(Choosing(), ("x",)))
    assert str(caught.value).startswith(
        "torch can't capture the network with a variable batch size: "
    )
    assert "\n" not in str(caught.value)


def test_what_has_no_product_is_refused() -> None:
    with pytest.raises(CandidateError) as caught:
        prepared(Network(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), ("x",)))
    assert str(caught.value) == (
        "the network can't be trained for int8: nothing to quantize: there is no convolution or "
        "matrix product to quantize"
    )


def test_a_file_that_answers_otherwise_is_refused(cases: Cases, tmp_path: Path) -> None:
    own = copy.deepcopy(cases(Depthwise).fresh)
    first = own.operations.get_submodule("hasten_tensors.0")
    first.forward = lambda x: torch.zeros_like(x)
    with pytest.raises(CandidateError, match=r"^the int8 file's output 'output' is off by"):
        export(Network(own, ("x",)), {"x": images(1)[0]}, tmp_path)
