"""What is counted of networks as torch's exporters write them, against counts made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.inputs.models.onnx import load
from hasten.inputs.models.torch_operators import operators_read_once
from hasten.measure.work import work

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the exporters' own
    pytest.mark.seconds,
]

EXPORTERS = pytest.mark.parametrize("dynamo", [False, True], ids=["older", "dynamo"])


def multiplications(path: Path, request: dict[str, Any]) -> int:
    """Count; every layer must be."""
    model = load(path).settled_by({name: array[0] for name, array in request.items()})
    layers = work(model, request)
    assert [layer.name for layer in layers if not layer.counted] == []
    return sum(layer.operations for layer in layers) // 2


def exported(
    folder: Path, module: Any, sample: dict[str, Any], dynamo: bool, *, axes: tuple[str, ...]
) -> Path:
    """Write a model of which some axes, the first ones of every input, are open."""
    path = folder / "model.onnx"
    shapes = (
        {
            "dynamic_shapes": tuple(
                {i: torch.export.Dim(n) for i, n in enumerate(axes)} for _ in sample
            )
        }
        if dynamo
        else {"dynamic_axes": {name: dict(enumerate(axes)) for name in sample}}
    )
    with operators_read_once():
        torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(array) for array in sample.values()),
            path,
            dynamo=dynamo,
            input_names=list(sample),
            output_names=["y"],
            **shapes,
        )
    return path


@pytest.mark.parametrize(
    ("dynamo", "blocks"),
    [
        pytest.param(False, 2, id="older"),
        pytest.param(True, 2, id="dynamo"),
        pytest.param(False, None, id="older, whole", marks=pytest.mark.slow),
    ],
)
def test_padding_that_the_graph_computes_hides_no_convolution(
    tmp_path: Path, dynamo: bool, blocks: int | None
) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    expected = 0.385e9  # as others count the whole network
    if blocks is not None:  # all of it takes seconds, and half a minute by dynamo
        network = torch.nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:blocks])
        expected = 75_815_936
    by_hand = 0

    def add(layer: Any, _: Any, output: Any) -> None:
        nonlocal by_hand
        by_hand += output[0].numel() * layer.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    x = np.ones((2, 3, 224, 224), np.float32)
    network.eval()(torch.from_numpy(x[:1]))
    for hook in hooks:
        hook.remove()
    assert by_hand == pytest.approx(expected, rel=0.0 if blocks else 0.005)
    path = exported(tmp_path, network, {"x": x}, dynamo, axes=("batch",))
    counted = multiplications(path, {"x": x[:1]})
    assert 0.98 * by_hand < counted <= by_hand  # but for products with padding


@EXPORTERS
def test_an_encoder_with_open_batch_and_length_is_counted_whole(
    tmp_path: Path, dynamo: bool
) -> None:
    width, inner, depth, heads, length = 32, 64, 2, 4, 24
    linear = torch.nn.Linear

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (linear(width, width) for _ in range(4))
            self.up, self.down = linear(width, inner), linear(inner, width)
            self.norm = torch.nn.LayerNorm(width)

        def split(self, x: Any) -> Any:
            return x.view(x.shape[0], x.shape[1], heads, width // heads).transpose(1, 2)

        def forward(self, x: Any, mask: Any) -> Any:
            q, k, v = (self.split(one(x)) for one in (self.q, self.k, self.v))
            scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + mask
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = self.norm(x + self.o(mixed))
            return x + self.down(torch.nn.functional.gelu(self.up(x)))

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = (torch.nn.Embedding(64, width) for _ in range(2))
            self.blocks = torch.nn.ModuleList(Block() for _ in range(depth))
            self.pool = linear(width, 5)

        def forward(self, ids: Any, mask: Any) -> Any:
            x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
            kept = (1.0 - mask[:, None, None, :].float()) * -1e4
            for block in self.blocks:
                x = block(x, kept)
            weights = mask.unsqueeze(-1).float()
            return self.pool((x * weights).sum(1) / weights.sum(1))

    sample = {name: np.ones((2, 16), np.int64) for name in ("ids", "mask")}
    path = exported(tmp_path, Encoder(), sample, dynamo, axes=("batch", "length"))
    request = {name: np.ones((1, length), np.int64) for name in ("ids", "mask")}
    projections = 4 * width * width + 2 * width * inner
    by_hand = depth * length * (projections + 2 * length * width) + 5 * width
    assert multiplications(path, request) == by_hand


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_a_recurrent_network_multiplies_with_every_weight_at_every_step(
    tmp_path: Path, kind: str, gates: int
) -> None:
    features, hidden, length = 6, 8, 11

    class Last(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps = getattr(torch.nn, kind)(
                features, hidden, num_layers=2, batch_first=True, bidirectional=True
            )
            self.head = torch.nn.Linear(2 * hidden, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.steps(x)[0][:, -1])

    x = np.ones((2, 7, features), np.float32)
    path = exported(tmp_path, Last(), {"x": x}, False, axes=("batch", "length"))
    each = gates * hidden * ((features + hidden) + (2 * hidden + hidden))
    by_hand = length * 2 * each + 2 * hidden * 3
    assert multiplications(path, {"x": np.ones((1, length, features), np.float32)}) == by_hand
