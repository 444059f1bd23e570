"""Half precision by autocast: weights are cast once, the answers are autocast's, by real torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Session
from hasten.engines.cuda.runtime import Host
from hasten.engines.cuda.torch import TorchCuda, opened

torch = pytest.importorskip("torch", reason="needs the extra gpu: pip install 'hasten[gpu]'")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from hasten.engines.cuda import casts  # noqa: E402
from hasten.engines.cuda import torch as torch_cuda  # noqa: E402

HOST = Target.host().with_threads(1)
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


class Mixed(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Weights that autocast casts, that it doesn't, and some that it casts in one place of two."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.LayerNorm(8)
        self.attend = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied = torch.nn.Parameter(torch.randn(8, 8))
        self.turned = torch.nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Any) -> Any:
        rows = torch.relu(self.convolution(x)).flatten(2).transpose(1, 2)
        rows = self.norm(rows)
        rows = rows + self.attend(rows, rows, rows, need_weights=False)[0]
        both = torch.nn.functional.linear(rows, self.tied) @ self.tied
        return (both + self.tied.mean(0)).mean(1) @ self.turned, self.turned.t() @ self.tied


class Recurrent(torch.nn.Module):  # type: ignore[misc,name-defined]
    """An operator that casts inside itself, at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x.flatten(2).transpose(1, 2)[..., :1].expand(-1, -1, 8))[0].sum(1)


class Moving(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A buffer that each request changes, so that no cast of it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3, 3))

    def forward(self, x: Any) -> Any:
        self.state.add_(1)
        return x[:, :, 0, :3] @ self.state


X = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)


def model_of(network: Any, folder: Path) -> Model:
    """Return a network's program as a model, without an ONNX file behind it."""
    with torch.no_grad():
        answers = tree_leaves(network(torch.from_numpy(X)))
    program = torch.export.export(network, (torch.from_numpy(X),))
    torch.export.save(program, folder / "network.pt2")
    inputs = (TensorSpec("x", "float32", X.shape),)
    outputs = tuple(
        TensorSpec(f"y{number}", "float32", tuple(answer.shape))
        for number, answer in enumerate(answers)
    )
    program_file = folder / "network.pt2"
    return Model(folder / "none", "onnx", inputs, outputs, inputs, program=program_file)


@contextmanager
def session_of(network: Any, precision: str, folder: Path) -> Iterator[Session]:
    (folder / "built").mkdir()
    artifact = TorchCuda().build(model_of(network, folder), HOST, folder / "built")
    with opened(artifact, Host(), "eager", precision) as session:
        yield session


def autocasts(network: Any, precision: str) -> list[Any]:
    """Return what torch itself answers under autocast."""
    with torch.inference_mode(), torch.autocast("cpu", TYPES[precision]):
        return [one.float().numpy() for one in tree_leaves(network(torch.from_numpy(X)))]


class CastsOfWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count of the casts from float32 whose source has the sizes of one of a network's weights."""

    def __init__(self, network: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [*network.parameters(), *network.buffers()]
        self.sizes = {tuple(one.shape) for one in tensors} | {
            tuple(one.shape)[::-1] for one in tensors
        }
        self.casts = {torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default}
        self.counted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if func in self.casts and args[0].dtype == torch.float32:
            self.counted += tuple(args[0].shape) in self.sizes and value.dtype != torch.float32
        return value


@pytest.fixture
def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"mixed": Mixed().eval(), "recurrent": Recurrent().eval(), "moving": Moving().eval()}


def casts_during(session: Session, network: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many weights one request casts, on whichever thread it runs."""
    session.run({"x": X})
    counted = []
    once = torch_cuda._ProgramExecution._once

    def watched(execution: Any) -> None:
        with CastsOfWeights(network) as seen:
            once(execution)
        counted.append(seen.counted)

    monkeypatch.setattr(torch_cuda._ProgramExecution, "_once", watched)
    session.run({"x": X})
    return sum(counted)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_request_casts_no_weight_and_is_answered_as_autocast_does(
    precision: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks["mixed"]
    with CastsOfWeights(network) as seen:
        expected = autocasts(network, precision)
    assert seen.counted >= 8  # what torch does at each request
    with session_of(network, precision, tmp_path) as session:
        answers = session.run({"x": X})
        said = session.properties()
        assert casts_during(session, network, monkeypatch) == 0
    for got, right in zip(answers.values(), expected, strict=True):
        np.testing.assert_array_equal(got, right)
    assert int(said["weights_cast_once"]) >= 8
    assert said["weights_cast_each_request"] == "0"


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of torch's own LSTM
def test_an_operator_that_casts_inside_itself_answers_as_autocast_does(
    networks: Any, tmp_path: Path
) -> None:
    try:
        expected = autocasts(networks["recurrent"], "bf16")
    except RuntimeError as error:  # oneDNN's LSTM in bf16 needs AVX-512
        pytest.skip(f"torch runs no LSTM in bf16 on this processor: {error}")
    with session_of(networks["recurrent"], "bf16", tmp_path) as session:
        answers = session.run({"x": X})
    for got, right in zip(answers.values(), expected, strict=True):
        np.testing.assert_array_equal(got, right)


def test_a_weight_that_requests_change_is_cast_at_each(networks: Any, tmp_path: Path) -> None:
    with session_of(networks["moving"], "bf16", tmp_path) as session:
        first, second = (session.run({"x": X})["y0"] for _ in range(2))
        said = session.properties()
    assert not np.array_equal(first, second)
    assert said["weights_cast_once"] == "0"


def test_a_program_that_answers_otherwise_with_its_casts_is_left_as_it_was(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks["mixed"]
    monkeypatch.setattr(casts, "_same", lambda *_: False)
    with session_of(network, "bf16", tmp_path) as session:
        answers = session.run({"x": X})
        said = session.properties()
        assert casts_during(session, network, monkeypatch) >= 8
    for got, right in zip(answers.values(), autocasts(network, "bf16"), strict=True):
        np.testing.assert_array_equal(got, right)
    assert (said["weights_cast_once"], int(said["weights_cast_each_request"]) >= 8) == ("0", True)


def test_weights_that_nothing_reads_any_more_are_freed(networks: Any, tmp_path: Path) -> None:
    program = torch.export.export(networks["mixed"], (torch.from_numpy(X),)).module()
    names = set(dict(program.named_parameters()))

    def answer(x: Any) -> tuple[Any, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(program(x))

    made = casts.cast_once(program, torch.bfloat16, answer, (torch.from_numpy(X),))
    assert made.each_request == 0
    gone = names - set(dict(program.named_parameters()))
    assert {"convolution.weight", "convolution.bias"} <= gone
    assert not {"norm.weight", "norm.bias", "tied"} & gone
