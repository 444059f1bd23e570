import sys

import pytest

from hasten.engines.reference import Reference
from hasten.errors import InputError
from hasten.testing.engine_tests import EngineTests


class TestReference(EngineTests):
    engine = Reference()


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError) as caught:
        Reference.version()
    assert str(caught.value) == (
        "onnx isn't installed (import of onnx halted; None in sys.modules): "
        "pip install 'hasten[optimize]'"
    )
