from pathlib import Path

import pytest

from hasten.devices import find_target
from hasten.engines.tensorrt_rtx import TensorrtRtx
from hasten.target import Target
from hasten.testing.engine_tests import EngineTests

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
)


class TestTensorrtRtx(EngineTests):
    engine = TensorrtRtx()

    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        """A GPU that isn't here, one thread."""
        return find_target("cuda:sm80", root=tmp_path).with_threads(1)
