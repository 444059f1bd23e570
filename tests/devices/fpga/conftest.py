"""What the tests of FPGA designs share. Most need the extra `fpga` and are run by `make test-fpga`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.objects_once import keeping_objects
from tests.support.once import shared

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load


@pytest.fixture(scope="session", autouse=True)
def _verilators_library_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBJCACHE", str(keeping_objects(shared(tmp_path_factory) / "objects")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _xla_compiles_soon() -> Iterator[None]:
    """Let JAX compile small networks' hundreds of functions without the optimizations that pay in long trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield


@pytest.fixture
def target() -> Target:
    """An FPGA, which is never here."""
    return find_target("fpga:ecp5-25k")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Model]:
    """Write a graph of ONNX text with constants, and settle it for one sample."""

    def write(body: str, shape: tuple[int, ...], constants: dict[str, np.ndarray]) -> Model:
        sizes = ", ".join(map(str, (1, *shape)))
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 17]> graph (float[{sizes}] x) => (float[N] y) {{{body}}}'
        )
        for name, value in constants.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        path = tmp_path / "model.onnx"
        onnx.save(inferred, path)
        return load(path).settled_by({"x": np.zeros(shape, np.float32)})

    return write


@pytest.fixture
def samples() -> Callable[[tuple[int, ...]], ArrayDataset]:
    """Draw normal samples of a shape."""

    def draw(shape: tuple[int, ...], count: int = 48) -> ArrayDataset:
        random = np.random.default_rng(3)
        return ArrayDataset({"x": random.standard_normal((count, *shape)).astype(np.float32)})

    return draw
