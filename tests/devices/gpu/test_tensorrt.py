"""TensorRT's engine without the library, which is on no registry here and needs a GPU to build.

Where a test builds, TensorRT for RTX is in the library's place, which builds without a GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.tensorrt_graphs import ALTERED

from hasten.core.target import Target
from hasten.engines.cuda.facts import DeviceFacts
from hasten.engines.cuda.pins import pins_for
from hasten.engines.tensorrt import engine as engine_file
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.errors import CandidateError, InputError, NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing import models


def test_a_library_that_isnt_installed_is_said_with_what_to_take_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError,
        match=r"^TensorRT isn't installed \(.+\): use version 10\.1 or newer: "
        r"pip install tensorrt-cu13, which downloads it from NVIDIA's own index; on a Jetson, JetPack contains it$",
    ):
        Tensorrt.version()


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("8.6.1", False),
        ("10.0.1", False),
        ("10.1.0", True),
        ("10.14.1.48.post1", True),
        ("11.4.0", True),
    ],
)
def test_a_library_older_than_what_its_plans_need_is_said(
    version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    if fits:
        assert Tensorrt.version() == version
        return
    with pytest.raises(InputError) as caught:
        Tensorrt.version()
    assert str(caught.value).startswith(
        f"TensorRT {version} is too old: use version 10.1 or newer: pip install tensorrt-cu13, "
    )


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A GPU of this host that isn't here, and a library that builds for it."""
    library = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    monkeypatch.setattr(Tensorrt, "toolkit", classmethod(lambda cls: library))

    def pins(target: Target, runtime: str, version: str) -> Any:
        return pins_for(target, runtime, version, lambda: DeviceFacts("sm90", "13.0"))

    monkeypatch.setattr(engine_file, "pins_for", pins)
    return Target.host().with_device("cuda", present=True)


@pytest.mark.parametrize("engine", [Tensorrt(), Tensorrt(tf32=True), Tensorrt(largest_batch=1)])
def test_for_a_gpu_of_this_host_it_writes_a_plan_that_states_the_gpu_beside_the_model(
    engine: Tensorrt, attached: Target, tmp_path: Path
) -> None:
    path = models.small_cnn(tmp_path)
    (tmp_path / "built").mkdir()
    artifact = engine.build(load(path), attached, tmp_path / "built")
    assert artifact.path.read_bytes() == path.read_bytes()
    plan, stated, figures = artifact.files
    assert (plan.name, stated.name) == ("small_cnn.plan", "small_cnn.plan.made-for.json")
    assert json.loads(stated.read_text()) == {
        "runtime": "TensorRT",
        "version": Tensorrt.version(),
        "part": "sm90",
        "driver": "13.0",
    }
    assert json.loads(figures.read_text())["plan_bytes"] == plan.stat().st_size > 0
    assert artifact.inputs[0].shape[0] == (1 if engine.largest_batch == 1 else "batch")


@pytest.mark.parametrize("graph", ALTERED, ids=lambda graph: graph.name)
def test_what_the_library_would_silently_change_isnt_built(
    graph: Any, attached: Target, tmp_path: Path
) -> None:
    path = graph.write(tmp_path)
    (tmp_path / "built").mkdir()
    with pytest.raises(NotCovered) as caught:
        Tensorrt().build(load(path), attached, tmp_path / "built")
    assert str(caught.value).startswith(f"TensorRT can't take the model: {graph.says}")


def test_it_builds_for_no_gpu_that_isnt_here(
    sm80: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensorrt, "toolkit", classmethod(lambda cls: None))
    model = load(models.linear_classifier(tmp_path))
    with pytest.raises(
        CandidateError,
        match=r"^TensorRT builds only on the GPU that it builds for, and cuda:sm80 isn't available: "
        r"TensorRT for RTX builds without the GPU$",
    ):
        Tensorrt().build(model, sm80, tmp_path)
    assert list(Tensorrt.variants(sm80)) == []
    assert list(Tensorrt.variants(Target.host())) == []
