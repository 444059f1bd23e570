"""Whole runs for a GPU that is said to be here: no model for the processor ever ships in its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.devices.gpu.test_error_codes import Host
from tests.support.engines_for_a_gpu import Slow, Unable
from tests.support.quick import quick_runs

import hasten
import hasten.optimization.preparation
from hasten.bundle import read
from hasten.core.devices import find_target
from hasten.core.objects import import_path
from hasten.core.target import Target
from hasten.engines.cuda import capability
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.installed import check_takes
from hasten.engines.onnxruntime.installation import CUDA
from hasten.errors import InputError
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.skipif(
    find_target("cuda").kind == "attached", reason="there is a GPU here"
)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *engines: str) -> Result:
    """Optimize for a GPU of this host, with the named engines or else hasten's own."""
    attached = Target.host().with_threads(1).with_device("cuda", present=True)
    monkeypatch.setattr(hasten.optimization.preparation, "find_target", lambda device: attached)
    x = np.random.default_rng(0).standard_normal((100, 16), dtype=np.float32)
    with quick_runs():
        return hasten.optimize(
            models.linear_classifier(tmp_path),
            {"x": x},
            target="cuda",
            max_drop=0.05,
            engines=engines,
            out=tmp_path / "made.hasten",
        )


def nothing_left(folder: Path) -> bool:
    return not list(folder.glob("made.hasten*"))


def test_without_an_engine_that_can_use_the_gpu_the_run_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hasten's own engines, on a host that has torch for processors and no driver."""
    with pytest.raises(InputError) as caught:
        run(tmp_path, monkeypatch)
    said = str(caught.value)
    assert said.startswith(
        (
            "no engine to try: CUDA can't use this host's GPU: ",
            "no engine to try: CUDA's bindings aren't installed (",
        )
    )
    assert "\n" not in said
    assert nothing_left(tmp_path)


@pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_torch_alone_serves_no_onnx_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    attached = Target.host().with_device("cuda", present=True)
    monkeypatch.setattr(TorchCuda, "check_tools", classmethod(lambda cls, target: None))
    names = ("onnxruntime_cuda", "torch_cuda")
    check_takes(names, attached, program=True)
    with pytest.raises(InputError) as caught:
        check_takes(names, attached, program=False)
    assert str(caught.value) == (
        "no engine to try: torch_cuda takes only a PyTorch model or its program; "
        f"this ONNX Runtime, {onnxruntime.__version__}, has no CUDA: "
        "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    )


def test_an_engine_of_the_host_is_refused_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, monkeypatch, "onnxruntime")
    assert str(caught.value) == (
        "the engine onnxruntime doesn't run on cuda; these do: onnxruntime_cuda, tensorrt, tensorrt_rtx, "
        "torch_cuda"
    )
    assert nothing_left(tmp_path)


def test_a_gpu_that_lets_in_a_single_process_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability, "cuda_runtime", lambda: Host(mode=3))
    with pytest.raises(InputError, match="is in compute mode EXCLUSIVE_PROCESS, which allows one"):
        run(tmp_path, monkeypatch, import_path(Slow))
    assert nothing_left(tmp_path)


def test_where_every_engine_of_the_gpu_fails_nothing_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, monkeypatch, import_path(Unable))
    assert str(caught.value) == (
        "nothing runs on cuda, so no model is made for it: unable: no kernel image is available "
        "for execution "
        "on the device; hasten doctor says what this host has and lacks"
    )
    assert nothing_left(tmp_path)


def test_where_the_host_is_faster_what_ships_is_called_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, import_path(Slow))
    assert set(result.tried) == {"original, ONNX Runtime", "slow"}
    assert result.status == "exact"
    assert result.why.startswith(
        "nothing ships for cuda: the bundle holds the original, for this host; "
    )
    made = read(result.bundle)
    assert (made.target.kind, made.target.device) == ("host", "host")
    assert made.winner.label == "original, ONNX Runtime"
