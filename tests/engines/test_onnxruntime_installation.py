"""Packages that share ONNX Runtime's folder, found by the metadata that installers write."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from hasten.cli import main
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.onnxruntime import installation
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError

HAS_CUDA = installation.CUDA in onnxruntime.get_available_providers()
BOTH = (
    "onnxruntime and onnxruntime-gpu are installed into the same folder, and each overwrites the "
    "other's files"
    f"{'' if HAS_CUDA else ', and the loaded library has no CUDA'}: "
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
)


def install(site: Path, name: str, version: str = "1.31.1", module: str = "onnxruntime") -> None:
    """Write what pip writes of a package that holds a module, but for the module itself."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/METADATA,,\n")
    if name == "onnxruntime":  # not every installer writes it
        (info / "top_level.txt").write_text(f"{module}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder whose packages are installed; what is imported already stays."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_one_package_is_no_fault(site: Path) -> None:
    install(site, "onnxruntime-gpu" if HAS_CUDA else "onnxruntime")
    install(site / "elsewhere", "onnxruntime-gpu")
    install(site, "onnxruntime-qnn", module="onnxruntime_qnn")  # its newer versions leave it alone
    assert len(installation.installed()) == 1
    assert installation.fault() == ""


def test_both_packages_are_a_fault_with_the_line_that_mends_it(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-gpu")
    assert installation.installed() == ("onnxruntime", "onnxruntime-gpu")
    assert installation.fault() == BOTH
    if not HAS_CUDA:
        with pytest.raises(InputError) as caught:
            OnnxRuntimeCuda.version()
        assert str(caught.value) == BOTH


def test_other_builds_share_the_folder_too(site: Path) -> None:
    install(site, "onnxruntime")
    install(site, "onnxruntime-openvino")
    assert installation.fault() == (
        "onnxruntime and onnxruntime-openvino are installed into the same folder, and each "
        "overwrites the other's files: pip uninstall -y onnxruntime onnxruntime-openvino && pip "
        "install onnxruntime"
    )


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_a_gpus_package_whose_files_were_overwritten_is_found(site: Path) -> None:
    install(site, "onnxruntime-gpu")
    assert installation.fault() == (
        "onnxruntime-gpu is installed, but the loaded library has no CUDA, which happens when "
        "another package overwrites it: "
        "pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu"
    )


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("onnxruntime", "pip uninstall -y onnxruntime && pip install onnxruntime"),
        ("onnxruntime-gpu", "pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu"),
        ("", "pip install onnxruntime"),
    ],
)
def test_what_removing_one_of_two_leaves_is_found(
    left: str, said: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a folder still imports, as an empty package."""
    (site / "onnxruntime" / "capi").mkdir(parents=True)
    if left:
        install(site, left)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    whole = (
        "ONNX Runtime's folder lacks files, which happens when one of two packages is removed: "
        + said
    )
    assert installation.fault() == whole
    for engine in (OnnxRuntime, OnnxRuntimeCuda):
        with pytest.raises(InputError) as caught:
            engine.version()
        assert str(caught.value) == whole


def test_doctor_finds_the_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.fault() == ""
    install(tmp_path, "onnxruntime" if HAS_CUDA else "onnxruntime-gpu", "1.30.0")
    monkeypatch.syspath_prepend(tmp_path)
    lines = CliRunner().invoke(main, ["doctor"]).output.splitlines()
    assert f"conflict:     {BOTH}" in lines


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_where_there_is_no_wheel_for_gpus_another_engine_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "ppc64le")
    assert installation.without_cuda() == (
        f"this ONNX Runtime, {onnxruntime.__version__}, has no CUDA, and onnxruntime-gpu has no "
        "wheel for ppc64le: use TensorRT or torch"
    )


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
@pytest.mark.parametrize("machine", installation.GPU_MACHINES)
def test_where_there_is_a_wheel_for_gpus_it_is_named(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert installation.without_cuda() == (
        f"this ONNX Runtime, {onnxruntime.__version__}, has no CUDA: "
        "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    )


EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def packages(extra: str, machine: str) -> set[str]:
    """Return the packages that an extra brings on a processor, with those of the extras in it."""
    found = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        marker = requirement.marker
        if marker is None or marker.evaluate({"platform_machine": machine}):
            found |= {requirement.name}
            for other in requirement.extras if requirement.name == "hasten" else ():
                found |= packages(other, machine)
    return found


@pytest.mark.parametrize("machine", [*installation.GPU_MACHINES, "arm64", "ppc64le"])
def test_the_extra_for_gpus_brings_one_onnx_runtime(machine: str) -> None:
    kept = "onnxruntime-gpu" if machine in installation.GPU_MACHINES else "onnxruntime"
    held = {*installation._BUILDS}
    for extra in ("gpu", "onnxruntime-gpu"):
        assert packages(extra, machine) & held == {kept}
    assert packages("optimize", machine) & held == {"onnxruntime"}


@pytest.mark.parametrize("extra", ["serve", "sign", "otel", "images", "text", "audio", "compiler"])
def test_extras_that_can_be_added_to_the_one_for_gpus_bring_no_onnx_runtime(extra: str) -> None:
    """They are those that docs/targets/gpu.md names."""
    for machine in installation.GPU_MACHINES:
        assert not packages(extra, machine) & {*installation._BUILDS}
