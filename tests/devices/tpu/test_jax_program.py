from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")

from tests.support.networks import Linear, with_program  # noqa: E402

import hasten  # noqa: E402
from hasten.core.devices import find_target  # noqa: E402
from hasten.core.model import Model  # noqa: E402
from hasten.core.target import Target  # noqa: E402
from hasten.core.tensors import Array  # noqa: E402
from hasten.engines.tpu import stablehlo  # noqa: E402
from hasten.engines.tpu.engine import Tpu  # noqa: E402
from hasten.engines.tpu.stablehlo import Kinds  # noqa: E402
from hasten.errors import CandidateError, InputError  # noqa: E402
from hasten.inputs.data.arrays import ArrayDataset  # noqa: E402
from hasten.inputs.models.source import load_model  # noqa: E402
from hasten.optimization.grid import grid  # noqa: E402
from hasten.passes.base import Skipped  # noqa: E402
from hasten.passes.jax_program import JaxProgram  # noqa: E402
from hasten.testing import models  # noqa: E402
from hasten.testing.pass_tests import PassTests, answers, error_between, run, samples_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
nn: Any = torch.nn


class SmallCnn(nn.Module):  # type: ignore[misc]
    """Every kind of product that is quantized: convolutions, one of them depthwise, and a matrix's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1, dilation=1, groups=16),
            nn.Hardswish(inplace=True),
            nn.Conv2d(16, 32, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x))


class Scaled(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return 2 * x + 1


class Rounded(nn.Module):  # type: ignore[misc]
    def forward(self, ids: Any) -> Any:
        return ids * 2


IMAGE = np.zeros((3, 16, 16), np.float32)


def kept(module: Any, folder: Path, **sample: Array) -> Model:
    folder.mkdir(exist_ok=True)
    return with_program(module, sample, folder)


@pytest.fixture(scope="module")
def small_cnn(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return kept(SmallCnn(), tmp_path_factory.mktemp("small"), x=IMAGE)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return kept(Scaled(), tmp_path_factory.mktemp("scaled"), x=IMAGE)


class TestJaxProgram(PassTests):
    bound = 0.03
    engine = Tpu()

    @pytest.fixture
    def value(self) -> JaxProgram:
        return JaxProgram("int8", samples=8)

    @pytest.fixture
    def model(self, small_cnn: Model) -> Model:
        return small_cnn

    @pytest.fixture
    def idle_model(self, scaled: Model) -> Model:
        return scaled

    @pytest.mark.parametrize(("precision", "bound"), [("f32", 1e-5), ("bf16", 0.01)])
    def test_every_precision_answers_within_its_bound(
        self, precision: Any, bound: float, model: Model, tmp_path: Path
    ) -> None:
        data = samples_of(model)
        result = run(JaxProgram(precision), model, tmp_path)
        exact = answers(model, data, tmp_path / "before")
        quick = answers(result, data, tmp_path / "after", Tpu())
        assert error_between(exact, quick) <= bound
        assert quick["output"].dtype == np.float32


FULL = Kinds("f32", "f32", "f32", full=True)
HALF = Kinds("bf16", "bf16", "f32")
QUARTER = Kinds("i8", "i8", "i32")


@pytest.mark.parametrize(
    ("precision", "kinds"),
    [("f32", [FULL] * 4), ("bf16", [HALF] * 4), ("int8", [QUARTER, HALF, QUARTER, QUARTER])],
)
def test_products_are_of_the_precision_that_was_asked_for_but_depthwise_ones_not_in_int8(
    precision: Any, kinds: list[Kinds], small_cnn: Model, tmp_path: Path
) -> None:
    result = run(JaxProgram(precision), small_cnn, tmp_path)
    assert stablehlo.products(stablehlo.read(result.path)) == kinds


def test_a_product_that_is_kept_stays_in_bfloat16(small_cnn: Model, tmp_path: Path) -> None:
    step = JaxProgram("int8", keep_float=("linear",))
    found = stablehlo.products(stablehlo.read(run(step, small_cnn, tmp_path).path))
    assert found == [QUARTER, HALF, QUARTER, HALF]


def test_int8_weights_are_a_quarter_of_the_file(tmp_path: Path) -> None:
    model = with_program(Linear(512), {"x": np.zeros((4, 512), np.float32)}, tmp_path)
    sizes = {p: run(JaxProgram(p), model, tmp_path, p).size_bytes for p in ("f32", "int8")}
    assert 3.5 < sizes["f32"] / sizes["int8"] < 4


def test_a_product_kept_that_isnt_there_is_named(small_cnn: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        run(JaxProgram("int8", keep_float=("conv9",)), small_cnn, tmp_path)
    assert str(caught.value) == (
        "keep_float: the torch program has no product 'conv9'; "
        "it has convolution, convolution_2, linear, ..."
    )


def test_a_program_without_floats_has_nothing_for_bfloat16(tmp_path: Path) -> None:
    model = kept(Rounded(), tmp_path / "source", ids=np.zeros(4, np.int64))
    workdir = tmp_path / "result"
    workdir.mkdir()
    data = ArrayDataset({"ids": np.zeros((2, 4), np.int64)})
    with pytest.raises(Skipped, match=r"^nothing to compute in bfloat16: there are no floats$"):
        JaxProgram("bf16")(model, data, workdir)
    assert not list(workdir.iterdir())


def test_attention_is_torchs_with_and_without_masks(tmp_path: Path) -> None:
    class Attention(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            split = x.unflatten(-1, (2, 8)).transpose(1, 2)
            attend = nn.functional.scaled_dot_product_attention
            look = x[:, :, 0] > 0
            look = (look[:, :, None] & look[:, None, :])[:, None]
            return {
                "plain": attend(split, split, split),
                "causal": attend(split, split, split, is_causal=True),
                "masked": attend(split, split, split, attn_mask=look),
                "added": attend(split, split, split, attn_mask=split[..., :1], scale=0.3),
                "shared": attend(split, split[:, :1], split[:, :1], enable_gqa=True),
            }

    model = kept(Attention(), tmp_path / "source", x=np.zeros((6, 16), np.float32))
    data = samples_of(model, 4)
    result = run(JaxProgram(), model, tmp_path)
    got = answers(result, data, tmp_path / "after", Tpu())
    with torch.no_grad():
        rows = [Attention()(torch.from_numpy(data.inputs([i])["x"])) for i in range(4)]
    for name, value in got.items():
        want = np.concatenate([row[name].numpy() for row in rows])
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


def test_a_program_of_an_open_batch_is_kept_for_one(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    module = SmallCnn().eval()
    program = torch.export.export(
        module, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "open.pt2")
    model = load_model(str(tmp_path / "open.pt2"), {"x": IMAGE}, tmp_path, keep_program=True)
    data = samples_of(model.settled_by({"x": IMAGE}), 2)
    result = run(JaxProgram(), model.settled_by({"x": IMAGE}), tmp_path)
    got = answers(result, data, tmp_path / "after", Tpu())["output"]
    with torch.no_grad():
        want = module(torch.from_numpy(data.inputs([0, 1])["x"])).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_module_is_left_in_the_mode_that_it_had(tmp_path: Path) -> None:
    module = SmallCnn().train()
    kept(module, tmp_path / "source", x=IMAGE)
    assert module.training


def test_an_onnx_file_is_refused_in_a_line(tmp_path: Path) -> None:
    path = models.linear_classifier(tmp_path)
    with pytest.raises(InputError) as caught:
        hasten.optimize(path, "never-read.npz", target="tpu:v5e", out=tmp_path / "made.hasten")
    assert str(caught.value) == (
        f"this target starts from the torch program, not from ONNX: got the ONNX file {path}; "
        "give the torch module or its .pt2 file"
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_model_without_its_program_is_refused_in_a_line(tmp_path: Path) -> None:
    model = load_model(SmallCnn(), {"x": IMAGE}, tmp_path).settled_by({"x": IMAGE})
    with pytest.raises(InputError) as caught:
        run(JaxProgram(), model, tmp_path)
    assert str(caught.value) == (
        "model.onnx: a TPU needs the torch program, not ONNX; "
        "give the torch module or its .pt2 file"
    )


def test_an_operator_that_torchax_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    def copied(x: Any) -> Any:
        return x.clone()

    copied.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
    frobnicate = torch.library.custom_op("hasten_tests::frobnicate", copied, mutates_args=())
    frobnicate.register_fake(torch.empty_like)

    class Own(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return frobnicate(x) + 1

    program = torch.export.export(Own(), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "own.pt2")
    model = _claiming(tmp_path / "own.pt2", tmp_path)
    with pytest.raises(CandidateError) as caught:
        run(JaxProgram(), model, tmp_path)
    assert str(caught.value) == (
        "torchax has no hasten_tests.frobnicate.default (node 'frobnicate')"
    )


def test_an_operator_that_a_tpu_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    class Own(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x * 2).real

    program = torch.export.export(Own(), (torch.zeros(1, 4, 4),))
    torch.export.save(program, tmp_path / "own.pt2")
    model = _claiming(tmp_path / "own.pt2", tmp_path, (1, 4, 4))
    with pytest.raises(CandidateError) as caught:
        run(JaxProgram(), model, tmp_path)
    assert str(caught.value) == "XLA has no eig for a TPU (node 'linalg_eig')"


def test_float64_is_refused(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).double()
    program = torch.export.export(module, (torch.zeros(1, 4).double(),))
    torch.export.save(program, tmp_path / "own.pt2")
    with pytest.raises(CandidateError) as caught:
        run(JaxProgram(), _claiming(tmp_path / "own.pt2", tmp_path), tmp_path)
    assert str(caught.value) == "weight is torch.float64, which a TPU doesn't compute in"


def test_a_file_that_is_no_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.pt2").write_bytes(b"not a program" * 10)
    with pytest.raises(CandidateError, match=r"^own\.pt2 can't be read: [^\n]+$"):
        run(JaxProgram(), _claiming(tmp_path / "own.pt2", tmp_path), tmp_path)


def _claiming(program: Path, folder: Path, shape: tuple[int, ...] = (1, 4)) -> Model:
    """Return a model of one input that says that it came from a program."""
    from dataclasses import replace

    from hasten.core.tensors import TensorSpec

    own = load_model(Scaled(), {"x": np.zeros(4, np.float32)}, folder)
    spec = TensorSpec("x", "float32", shape)
    return replace(own, inputs=(spec,), request=(spec,), program=program)


def test_the_grid_of_a_tpu_has_every_precision_and_a_hosts_has_none(small_cnn: Model) -> None:
    found = grid(small_cnn, find_target("tpu:v5e"), engine_names=("tpu",))
    assert [candidate.passes for candidate in found] == [
        (JaxProgram(precision),) for precision in ("f32", "bf16", "int8")
    ]
    host = grid(small_cnn, Target.host(), engine_names=("onnxruntime",))
    assert all(not isinstance(step, JaxProgram) for one in host for step in one.passes)


def test_a_program_that_calls_functions_of_the_runtime_is_refused(tmp_path: Path) -> None:
    """Such a call names code of the process that opens the file, and the file states its operands."""
    import jax

    given = jax.ShapeDtypeStruct((4, 4), np.float32)
    exported = jax.export.export(jax.jit(jax.numpy.linalg.cholesky))(given)
    path = tmp_path / "program.jax"
    path.write_bytes(jax.export.export(jax.jit(lambda x: x + 1))(given).serialize())
    assert stablehlo.read(path) is not None
    path.write_bytes(exported.serialize())
    with pytest.raises(CandidateError) as caught:
        stablehlo.read(path)
    assert str(caught.value) == (
        "program.jax calls 'lapack_spotrf_ffi', a function of the runtime that no converted model needs"
    )
