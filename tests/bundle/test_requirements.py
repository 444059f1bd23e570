from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
from tests.support.bundles import stated

from hasten.bundle import requirements
from hasten.bundle.manifest import Manifest, Part
from hasten.bundle.requirements import program_extras
from hasten.errors import IntegrityError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, Resize, ToLayout

ENVIRONMENT = {
    "hasten": "0.1.0",
    "numpy": "2.1.0",
    "onnxruntime": "1.20.1",
    "openvino": "2025.1.0",
    "torch": "2.7.0+cpu",
}


Made: TypeAlias = Callable[[dict[str, object], dict[str, str]], Manifest]


@pytest.fixture
def manifest(winner: Part) -> Made:
    """Makes a bundle's manifest of its engine's record and the environment that it was made in."""
    return lambda engine, known: stated(replace(winner, engine=engine), None, environment=known)


def test_the_engines_packages_are_pinned_and_no_others(manifest: Made) -> None:
    made = manifest({"type": "openvino"}, ENVIRONMENT)
    assert requirements(made) == ["hasten==0.1.0", "numpy==2.1.0", "openvino==2025.1.0"]
    assert requirements(made, ["serve"])[0] == "hasten[serve]==0.1.0"


def test_a_cascade_needs_the_packages_of_both_its_engines(manifest: Made) -> None:
    parts = {"fast": {"type": "openvino"}, "careful": {"type": "onnxruntime"}}
    lines = requirements(manifest({"type": "cascade", **parts}, ENVIRONMENT))
    assert lines[2:] == ["openvino==2025.1.0", "onnxruntime==1.20.1"]


def test_what_is_compiled_where_it_is_opened_says_that_a_compiler_is_needed(manifest: Made) -> None:
    made = manifest({"type": "compiled"}, ENVIRONMENT)
    assert requirements(made) == [
        "hasten==0.1.0",
        "numpy==2.1.0",
        "# The engine 'compiled' needs a C compiler on the machine that opens the bundle: "
        "install the system's package, or add hasten[compiler]",
    ]
    assert program_extras(made) == ("compiler",)
    assert program_extras(manifest({"type": "openvino"}, ENVIRONMENT)) == ()


def test_a_builds_own_mark_is_no_version_of_an_index(manifest: Made) -> None:
    lines = requirements(manifest({"type": "torch_cuda"}, ENVIRONMENT))
    assert lines[2:] == ["torch==2.7.0"]


@pytest.mark.parametrize("version", ["1.0 --index-url http://evil", "1.0\n-r evil", "x"])
def test_a_bundles_word_is_no_option_of_pip(manifest: Made, version: str) -> None:
    with pytest.raises(IntegrityError) as error:
        requirements(manifest({"type": "openvino"}, ENVIRONMENT | {"openvino": version}))
    assert str(error.value) == (
        f"the bundle states that it was measured with openvino {version!r}, which is not a "
        "version: make the bundle again"
    )


def test_a_package_without_a_version_was_not_installed_and_is_not_needed(manifest: Made) -> None:
    lines = requirements(manifest({"type": "openvino"}, ENVIRONMENT | {"openvino": ""}))
    assert lines == ["hasten==0.1.0", "numpy==2.1.0"]


def test_a_bundle_has_no_package_installed_that_hasten_does_not_know(manifest: Made) -> None:
    said = ENVIRONMENT | {"hasten.engines:fast": "evil\nevil==6.6"}
    lines = requirements(manifest({"type": "fast"}, said))
    assert lines == [
        "hasten==0.1.0",
        "numpy==2.1.0",
        "# The engine 'fast' comes from 'evil\\nevil==6.6', as the bundle says: add that package if you "
        "trust it",
    ]


def test_the_steps_packages_are_pinned_where_they_were_installed(manifest: Made) -> None:
    known = ENVIRONMENT | {"pillow": "12.0.0", "tokenizers": "0.23.3"}
    steps = Pipeline((Decode(), Resize(8), ToLayout()))
    made = replace(manifest({"type": "openvino"}, known), pipeline=steps)
    assert requirements(made)[2:] == ["openvino==2025.1.0", "pillow==12.0.0"]
    made = replace(made, environment=known | {"simplejpeg": "1.9.0"})
    assert requirements(made)[3:] == ["pillow==12.0.0", "simplejpeg==1.9.0"]
