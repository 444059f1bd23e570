"""Claims of engines that compile for fixed shapes, and a network that was trained on real digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.models import settled

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EVERY_MODEL, EngineTests, request_for


def device(name: str) -> Target:
    """Return a device that isn't here, with one thread of this host's for what stands in for it."""
    return Target.host().with_threads(1).with_device(name, present=False)


class FixedShapesTests(EngineTests):
    """Claims that hold for every engine that compiles a model for the shapes of one request."""

    def built(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build a model in its own folder; open shapes become those of batch 1."""
        fixed = all(spec.static for spec in model.inputs)
        return super().built(model if fixed else settled(model), target, workdir)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_outputs_are_as_specified(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        model = settled(load(write(tmp_path)))
        with self.opened(model, target, tmp_path) as session:
            assert session.inputs == model.request
            outputs = session.run(request_for(session.inputs))
        assert list(outputs) == [spec.name for spec in model.outputs]
        assert all(spec.fits(outputs[spec.name]) for spec in session.outputs)

    def test_an_open_batch_takes_any_size(self, target: Target, tmp_path: Path) -> None:
        """Here it takes one size, which the session states."""
        with self.opened(load(models.small_cnn(tmp_path)), target, tmp_path) as session:
            assert session.batch_sizes == (1,)


class Digits:
    """A small convolutional network, trained on half of scikit-learn's handwritten digits.

    Attributes:
        model: x: float32[batch, 1, 8, 8] -> output: float32[batch, 10].
        calibration: 100 digits that it was trained on.
        images: Digits that it never saw, float32 of shape (n, 1, 8, 8).
        labels: Digits that the images show, int64 of shape (n,).
    """

    def __init__(self, folder: Path) -> None:
        torch = pytest.importorskip("torch", reason="needs torch to train a network")
        from hasten.inputs.models.torch import export

        datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn's digits")
        pixels, labels = datasets.load_digits(return_X_y=True)
        x = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
        seen = np.arange(len(x)) % 2 == 0
        network = _trained(torch, x[seen], labels[seen])
        self.model = settled(export(network, {"x": x[0]}, folder))
        self.calibration = ArrayDataset({"x": x[seen][:100]})
        self.images, self.labels = x[~seen], labels[~seen].astype(np.int64)


def _trained(torch, x: Array, labels: Array):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    nn = torch.nn

    class Network(nn.Sequential):  # type: ignore[misc, name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            return super().forward(x)

    network = Network(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        *(nn.ReLU6(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    images, wanted = torch.from_numpy(x), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(30):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(network(images[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()
