import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.reference import Reference
from hasten.engines.tpu.engine import Tpu
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.passes.jax_program import JaxProgram
from hasten.testing import models
from hasten.testing.engine_tests import EVERY_MODEL, TOLERANCE, EngineTests, request_for
from hasten.testing.pass_tests import samples_of

# JAX and torchax warn of their own workings wherever they are touched.
pytestmark = pytest.mark.filterwarnings("ignore")


def converted(model: Model, workdir: Path) -> Model:
    """Make the program that a TPU starts from of an ONNX file of `hasten.testing.models`."""
    from tests.support.networks import Mirror, with_program

    folder = workdir / "converted"
    folder.mkdir()
    sample = {name: array[0] for name, array in request_for(model.inputs).items()}
    kept = with_program(Mirror(model.path), sample, folder)
    (folder / "pass").mkdir()
    data = samples_of(kept, 1) if len(kept.inputs) == 1 else None
    result = JaxProgram()(kept, data, folder / "pass")  # type: ignore[arg-type] # in float32 none is read
    return replace(result, outputs=model.outputs)


class TestTpu(EngineTests):
    """On this host's processor, from the same program that a TPU gets."""

    engine = Tpu()

    def built(self, model: Model, target: Target, workdir: Path) -> Artifact:
        try:
            source = converted(model, workdir)
        except Exception:  # what is no model isn't converted
            source = replace(model, format="stablehlo")
        return super().built(source, target, workdir)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_outputs_are_as_specified(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        model = load(write(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert [spec.name for spec in session.inputs] == [spec.name for spec in model.inputs]
            assert session.outputs == model.outputs
            outputs = session.run(request_for(model.inputs))
        assert list(outputs) == [spec.name for spec in model.outputs]
        assert all(spec.fits(outputs[spec.name]) for spec in model.outputs)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_an_exact_engine_agrees_with_the_reference(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        model = load(write(tmp_path))
        request = request_for(model.inputs)
        (tmp_path / "reference").mkdir()
        reference = Reference()
        expected = reference.build(model, target, tmp_path / "reference")
        with reference.open(expected, target) as session:
            right = session.run(request)
        with self.opened(model, target, tmp_path) as session:
            got = session.run(request)
        for name, array in right.items():
            np.testing.assert_allclose(got[name], array, rtol=TOLERANCE, atol=TOLERANCE)

    def test_an_open_batch_takes_any_size(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert session.batch_sizes == (1,)
            with pytest.raises(CandidateError, match=r"^XLA takes x: float32\[1, 3, 32, 32\]; got"):
                session.run(request_for(model.inputs, batch=3))

    def test_a_fixed_batch_is_stated(self, target: Target, tmp_path: Path) -> None:
        pytest.skip("the batch of a program for a TPU is 1: see test_an_open_batch_takes_any_size")

    def test_an_unknown_operator_is_named_with_its_node(
        self, target: Target, tmp_path: Path
    ) -> None:
        pytest.skip("operators are looked up by the pass: see test_jax_program.py")


def test_integers_of_64_bits_go_through_32_and_come_back(tmp_path: Path) -> None:
    model = load(models.two_inputs(tmp_path))
    source = converted(model, tmp_path)
    (tmp_path / "built").mkdir()
    artifact = Tpu().build(source, Target.host(), tmp_path / "built")
    request = request_for(model.inputs)
    with Tpu().open(artifact, Target.host()) as session:
        assert session.run(request)["same_ids"].dtype == np.int64
        request["ids"][0, 0] = 1 << 40
        with pytest.raises(
            CandidateError, match=r"^input 'ids' has integers of more than 32 bits$"
        ):
            session.run(request)


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(InputError, match=r"^JAX for TPUs isn't installed .*'hasten\[tpu\]'$"):
        Tpu.version()


def test_a_library_that_is_gone_is_the_extras_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    artifact = Artifact(tmp_path / "model.stablehlo", (), (), ())
    with pytest.raises(InputError, match=r"^a TPU needs JAX, libtpu and torchax .*'hasten\[tpu\]'"):
        with Tpu().open(artifact, Target.host()):
            pass


def test_what_was_built_for_another_device_has_no_estimate_here(tmp_path: Path) -> None:
    spec = TensorSpec("x", "float32", (1,))
    facts = tmp_path / "compiled.json"
    facts.write_text('{"device": "tpu:v4", "figures": {}}')
    artifact = Artifact(tmp_path / "model.stablehlo", (spec,), (spec,), (spec,), (facts,))
    wanted = find_target("tpu:v5e")
    with pytest.raises(
        CandidateError, match=r"^the artifact was built for tpu:v4, not for tpu:v5e$"
    ):
        Tpu().estimate(artifact, wanted, tmp_path)


@pytest.mark.device
def test_a_tpu_of_this_host_answers_as_its_processor_does(tmp_path: Path) -> None:
    target = find_target("tpu")
    if target.kind != "attached":
        pytest.skip("this host has no TPU: no Google PCI device with a node in /dev")
    model = load(models.small_cnn(tmp_path))
    source = converted(model, tmp_path)
    answers: dict[str, Mapping[str, Array]] = {}
    for name, where in (("host", Target.host()), ("tpu", target)):
        (tmp_path / name).mkdir()
        artifact = Tpu().build(source, where, tmp_path / name)
        with Tpu().open(artifact, where) as session:
            assert session.properties()["platform"] == ("cpu" if name == "host" else "tpu")
            answers[name] = session.run(request_for(model.inputs))
    np.testing.assert_allclose(
        answers["tpu"]["logits"], answers["host"]["logits"], rtol=1e-4, atol=1e-4
    )
