"""Which TensorRT a GPU takes, by its compute capability; CUDA's runtime is a stand-in where it must answer."""

# ruff: noqa: N802, N815 (the names are CUDA's)

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hasten.cli import main
from hasten.core.devices import FAMILIES, find_target
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.cuda import capability
from hasten.engines.cuda.capability import check_gpu, known_part, part_of
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.installed import engine_kinds, tried_on, unsuited
from hasten.engines.tensorrt.parts import PARTS
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import InputError
from hasten.evaluation.doctor import target_in_words
from hasten.testing import models

ATTACHED = Target.host().with_device("cuda", present=True)
BUILDS = "TensorRT for RTX builds for sm75, sm80, sm86, sm89, sm120, sm121"


class Runtime:
    """What `cuda.bindings.runtime` has of what is asked: a GPU of one compute capability, or an error."""

    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )

    def __init__(self, major: int = 0, minor: int = 0, error: int = 0) -> None:
        self._answers = {"major": major, "minor": minor}
        self._error = error

    def cudaDeviceGetAttribute(self, kind: str, device: int) -> tuple[int, int | None]:
        assert device == 0
        return (self._error, None) if self._error else (0, self._answers[kind])

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"CUDA driver version is insufficient for CUDA runtime version"

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:
        return 0, 13000

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 0


def on(monkeypatch: pytest.MonkeyPatch, runtime: Any, machine: str = "x86_64") -> None:
    monkeypatch.setattr(capability, "cuda_runtime", lambda: runtime)
    monkeypatch.setattr(platform, "machine", lambda: machine)


def test_the_parts_that_a_target_can_name_are_those_that_are_known() -> None:
    assert set(FAMILIES["cuda"].parts) == set(PARTS)


@pytest.mark.parametrize(
    ("major", "minor", "machine", "said"),
    [
        (7, 5, "x86_64", ""),
        (8, 0, "x86_64", ""),
        (8, 9, "x86_64", ""),
        (12, 1, "x86_64", ""),
        (9, 0, "x86_64", f"{BUILDS}; this GPU, sm90, needs TensorRT: pip install tensorrt-cu13"),
        (10, 3, "x86_64", f"{BUILDS}; this GPU, sm103, needs TensorRT: pip install tensorrt-cu13"),
        (13, 0, "x86_64", f"{BUILDS}; this GPU, sm130, needs TensorRT: pip install tensorrt-cu13"),
        (
            8,
            7,
            "aarch64",
            f"{BUILDS}; this GPU, sm87, needs TensorRT: NVIDIA's JetPack contains it",
        ),
        (
            11,
            0,
            "aarch64",
            f"{BUILDS}; this GPU, sm110, needs TensorRT: NVIDIA's JetPack contains it",
        ),
        (12, 1, "aarch64", ""),
        (
            *(12, 1, "riscv64"),
            "TensorRT for RTX has no library for riscv64; this GPU, sm121, needs TensorRT: "
            "pip install tensorrt-cu13",
        ),
        (
            7,
            0,
            "x86_64",
            "sm70 is older than sm75, the oldest GPU that TensorRT and CUDA 13 support",
        ),
    ],
)
def test_the_device_says_which_tensorrt_it_takes(
    major: int, minor: int, machine: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Runtime(major, minor), machine)
    assert known_part(ATTACHED) == f"sm{major}{minor}"
    assert TensorrtRtx.unsuited(ATTACHED) == said
    assert unsuited(ATTACHED) == ([said] if said else [])
    tried = list(TensorrtRtx.variants(ATTACHED))
    assert tried == ([] if said else [TensorrtRtx(), TensorrtRtx(tf32=True)])


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("x86_64", "pip install 'hasten[gpu]'"),
        ("aarch64", "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"),
        (
            "riscv64",
            "it has no library for this processor; TensorRT has: pip install tensorrt-cu13",
        ),
    ],
)
def test_a_missing_tensorrt_for_rtx_is_said_with_what_installs_it_here(
    machine: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as caught:
        TensorrtRtx.version()
    assert str(caught.value).startswith("TensorRT for RTX isn't installed (")
    assert str(caught.value).endswith(f"): {said}")


def test_where_the_other_tensorrt_is_here_there_is_nothing_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Runtime(9, 0))
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert unsuited(ATTACHED) == []
    assert list(TensorrtRtx.variants(ATTACHED)) == []


@pytest.mark.parametrize("part", ["sm87", "sm90", "sm100", "sm103", "sm110"])
def test_what_cant_be_built_without_its_gpu_is_said_in_one_line(part: str, tmp_path: Path) -> None:
    target = find_target(f"cuda:{part}", root=tmp_path)
    brings = (
        "NVIDIA's JetPack contains it" if part in ("sm87", "sm110") else "pip install tensorrt-cu13"
    )
    with pytest.raises(InputError) as caught:
        engine_kinds(tried_on("cuda"), target)
    assert str(caught.value) == (
        f"no engine to try: nothing builds for {part} without that GPU: {BUILDS}, and TensorRT builds only on the "
        f'GPU itself: on a host that has one, use target="cuda" ({brings})'
    )


def test_the_page_quotes_what_the_command_line_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((50, 16), np.float32))
    order = [str(models.linear_classifier(tmp_path)), "--data", str(tmp_path / "data.npz")]
    said = CliRunner().invoke(
        main, ["optimize", *order, "--max-drop", "5%", "--target", "cuda:sm90"]
    )
    assert said.exit_code == 2
    page = Path(__file__).parents[3] / "docs/targets/gpu.md"
    assert said.stderr.startswith("hasten: no engine to try: nothing builds for sm90 ")
    assert said.stderr in page.read_text()


def test_a_gpu_that_cuda_cant_use_is_said_with_cudas_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(monkeypatch, Runtime(error=35))
    said = (
        "CUDA can't use this host's GPU: CUDA driver version is insufficient for CUDA runtime version: "
        "CUDA 13.0 needs NVIDIA's driver 580 or newer, but none is loaded here"
    )
    for name in tried_on("cuda"):
        with pytest.raises(InputError) as caught:
            Engine.member(name).check_tools(ATTACHED)
        assert str(caught.value) == said
    assert known_part(ATTACHED) == ""
    assert list(TensorrtRtx.variants(ATTACHED))  # the check says why, not the gate


def test_a_torch_for_processors_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    on(monkeypatch, Runtime(8, 9))
    with pytest.raises(InputError) as caught:
        engine_kinds(["torch_cuda"], ATTACHED)
    assert str(caught.value) == (
        f"no engine to try: this torch, {torch.__version__}, has no CUDA: "
        "pip uninstall -y torch && pip install torch"
    )


@pytest.mark.skipif(find_target("cuda").kind == "attached", reason="there is a GPU here")
def test_the_librarys_own_runtime_is_asked() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs the extra gpu")
    with pytest.raises(InputError, match=r"^CUDA can't use this host's GPU: \w.+$"):
        part_of(ATTACHED)


def test_a_gpu_elsewhere_is_asked_nothing(sm80: Target) -> None:
    assert part_of(sm80, runtime=object()) == "sm80"
    check_gpu(sm80)


def absent(cls: type[OnnxRuntimeCuda]) -> str:
    raise InputError("not this one")


def test_doctor_says_which_tensorrt_the_device_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(OnnxRuntimeCuda, "version", classmethod(absent))
    on(monkeypatch, Runtime(9, 0))
    monkeypatch.setattr("hasten.evaluation.doctor.find_target", lambda name: ATTACHED)
    said = target_in_words("cuda")
    assert said.startswith(
        "NVIDIA GPU, present, but nothing installed makes models for it: this torch, "
    )
    assert f"; {BUILDS}; this GPU, sm90, needs TensorRT: pip install tensorrt-cu13" in said
    assert "\n" not in said
    monkeypatch.setattr(TorchCuda, "check_tools", classmethod(lambda cls, target: None))
    assert re.fullmatch(
        rf"NVIDIA GPU, present: .*torch_cuda \S+; {BUILDS}; this GPU, sm90, needs TensorRT: "
        "pip install tensorrt-cu13",
        target_in_words("cuda"),
    )
