"""Torch modules exported with the dimensions open in which samples differ."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import load_with_data
from hasten.inputs.models.torch_inputs import open_axes


class Reader(nn.Module):
    """Sums over open time, behind an embedding that a mask silences."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.out((self.words(ids) * mask.unsqueeze(-1)).cumsum(1))
        return answer


class Filter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.conv(x).relu()
        return answer


class Branching(nn.Module):
    """Does something else with long inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] > 10 else x + 1


def sentences() -> dict[str, list[Array]]:
    lengths = [5, 1, 9, 5, 3, 12]
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 20, n) for n in lengths]
    return {"ids": ids, "mask": [np.ones(n, np.float32) for n in lengths]}


def test_a_length_in_which_samples_differ_stays_open(tmp_path: Path) -> None:
    module, samples = Reader(), sentences()
    model, data = load_with_data(module, samples, None, (), tmp_path)
    assert [str(spec) for spec in model.inputs] == [
        "ids: int64[batch, length]",
        "mask: float32[batch, length]",
    ]
    assert data.ragged
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    for ids, mask in zip(samples["ids"], samples["mask"], strict=True):
        (got,) = session.run(None, {"ids": ids[None], "mask": mask[None]})
        with torch.no_grad():
            wanted = module(torch.from_numpy(ids[None]), torch.from_numpy(mask[None]))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_widths_and_heights_stay_open_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (16, 24), (32, 8), (9, 11)]
    samples = {"x": [rng.standard_normal((3, *size), np.float32) for size in sizes]}
    model, _ = load_with_data(Filter(), samples, None, (), tmp_path)
    assert [str(spec) for spec in model.inputs] == ["x: float32[batch, 3, x_2, x_3]"]


def test_samples_of_one_shape_settle_all_but_the_batch(tmp_path: Path) -> None:
    model, _ = load_with_data(
        Filter(), {"x": np.zeros((4, 3, 8, 9), np.float32)}, None, (), tmp_path
    )
    assert [str(spec) for spec in model.inputs] == ["x: float32[batch, 3, 8, 9]"]


def test_a_dimension_that_cant_stay_open_is_said(tmp_path: Path) -> None:
    samples = {"x": [np.zeros(n, np.float32) for n in (8, 12)]}
    with pytest.raises(InputError) as error:
        load_with_data(Branching(), samples, None, (), tmp_path)
    assert str(error.value) == (
        "the exported model's output 'output' is off by 1 from the module's (largest magnitude "
        "1), for x [8]: the export, traced on x [12], turned a size into a constant"
    )


def test_axes_of_equal_sizes_are_one_dimension() -> None:
    def sample(*sizes: int) -> dict[str, Array]:
        return {"a": np.zeros(sizes[0]), "b": np.zeros((2, sizes[0])), "c": np.zeros(sizes[1])}

    both = [sample(3, 4), sample(5, 4)]
    assert open_axes(both, batch=True) == [
        {0: "batch", 1: "length"},
        {0: "batch", 2: "length"},
        {0: "batch"},
    ]
    more = [*both, sample(3, 9)]
    assert open_axes(more, batch=False) == [{1: "a_1"}, {2: "a_1"}, {1: "c_1"}]
