"""A whole run on a device of this host that has no exact engine: the original answers on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support import ragged
from tests.support.quick import quick_runs

import hasten
import hasten.optimization.preparation
from hasten.core.target import Target
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.openvino.npu import OpenVinoNpu
from hasten.errors import InputError
from hasten.testing import models


def variants(cls: type[OpenVinoNpu], target: Target) -> Iterator[OpenVinoNpu]:
    yield cls(device="CPU")


def test_where_no_engine_of_the_device_is_exact_the_host_stands_for_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor in the NPU's place."""
    attached = Target.host().with_device("npu", present=True)
    monkeypatch.setattr(hasten.optimization.preparation, "find_target", lambda device: attached)
    monkeypatch.setattr(OpenVinoNpu, "version", OpenVino.version)
    monkeypatch.setattr(OpenVinoNpu, "variants", classmethod(variants))
    model = models.small_cnn(tmp_path)
    x = np.random.default_rng(0).standard_normal((300, 3, 32, 32), dtype=np.float32)
    with quick_runs():
        result = hasten.optimize(
            model, {"x": x}, target="npu", max_drop=0.05, out=tmp_path / "made.hasten"
        )
    tried = set(result.tried)
    assert {"original, ONNX Runtime", "f16, OpenVINO on CPU"} <= tried
    assert result.status in ("certified", "exact")
    assert not result.limits


@pytest.mark.parametrize(("name", "needed"), [("npu", "openvino"), ("qnn", "onnxruntime_qnn")])
def test_a_device_of_this_host_that_takes_one_shape_refuses_samples_that_differ(
    name: str, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(needed, reason="needs the device's runtime: pip install 'hasten[edge]'")
    attached = Target.host().with_device(name, present=True)
    monkeypatch.setattr(hasten.optimization.preparation, "find_target", lambda device: attached)
    monkeypatch.setattr(OpenVinoNpu, "version", OpenVino.version)
    with pytest.raises(InputError) as caught:
        hasten.optimize(
            ragged.encoder(tmp_path),
            ragged.sentences(60),
            target=name,
            out=tmp_path / "made.hasten",
        )
    assert str(caught.value) == (
        "samples differ in shape (dimension 1 of ids and mask from 3 to 21 (median 8, nine in ten up to 16)), "
        f"and a model for {name} has one shape: pad, crop or resize them to one"
    )
    assert not (tmp_path / "made.hasten").exists()
