"""torch's table of operators: read once, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")
pytest.importorskip("onnxscript", reason="needs the extra torch: pip install 'hasten[torch]'")

from torch.onnx._internal.exporter._registration import ONNXRegistry  # noqa: E402

from hasten.inputs.models import torch_operators  # noqa: E402
from hasten.inputs.models.torch_operators import operators_read_once  # noqa: E402

RELU = torch.ops.aten.relu.default


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions for which the table, of one operator here, was read; nothing is known before."""
    read: list[int] = []

    def counted(cls: Any, opset_version: int) -> Any:
        read.append(opset_version)
        made = cls()
        made._opset_version = opset_version
        made.register_op(RELU, lambda x: x)
        return made

    monkeypatch.setattr(torch_operators, "_KNOWN", {})
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(counted))
    return read


def table(version: int = 20) -> Any:
    with operators_read_once():
        return ONNXRegistry.from_torchlib(opset_version=version)


def test_the_table_is_read_once_and_again_where_there_are_more_operators(
    readings: list[int],
) -> None:
    first = table()
    assert table().functions == first.functions
    assert len(table().get_decomps(RELU)) == 1
    assert readings == [20]
    with torch.library._scoped_library("hasten_tests", "DEF") as library:
        library.define("another(Tensor x) -> Tensor")
        table()
        assert readings == [20, 20]


def test_each_version_has_a_table_of_its_own(readings: list[int]) -> None:
    assert table(20).opset_version == 20
    assert table(18).opset_version == 18
    assert readings == [20, 18]


def test_what_one_export_adds_no_other_sees(readings: list[int]) -> None:
    table().register_op(RELU, lambda x: x)
    assert len(table().get_decomps(RELU)) == 1
    assert readings == [20]


def test_torch_is_left_as_it_was(readings: list[int]) -> None:
    before = vars(ONNXRegistry)["from_torchlib"]
    with pytest.raises(ValueError), operators_read_once():
        raise ValueError
    assert vars(ONNXRegistry)["from_torchlib"] is before
    ONNXRegistry.from_torchlib(opset_version=20)
    ONNXRegistry.from_torchlib(opset_version=20)
    assert readings == [20, 20]
