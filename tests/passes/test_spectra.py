from pathlib import Path

import pytest
from tests.support.models import Build

from hasten.core.model import Model
from hasten.engines.openvino.engine import OpenVino
from hasten.passes.base import Skipped
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.spectra import Spectra
from hasten.testing.pass_tests import PassTests, answers, error_between, host, run, samples_of

HEARD = """
<ir_version: 10, opset_import: ["": 20]>
heard (float[batch, 256, 1] x) => (float[batch, frames, bins, 2] y)
<int64 step = {16}, float[32] w>
{
    [spectrum] y = STFT <onesided = ONESIDED> (x, step, w)
}
"""
BARE = """
<ir_version: 10, opset_import: ["": 20]>
bare (float[batch, 256, 1] x) => (float[batch, frames, bins, 2] y)
<int64 step = {16}, int64 length = {20}>
{
    [spectrum] y = STFT (x, step, , length)
}
"""
COMPLEX = """
<ir_version: 10, opset_import: ["": 20]>
complex (float[batch, 256, 2] x) => (float[batch, frames, bins, 2] y)
<int64 step = {16}, float[32] w>
{
    [spectrum] y = STFT <onesided = 0> (x, step, w)
}
"""


class TestSpectra(PassTests):
    bound = 1e-5

    @pytest.fixture
    def value(self) -> Spectra:
        return Spectra()

    @pytest.fixture
    def model(self, build: Build) -> Model:
        return build(HEARD.replace("ONESIDED", "1"), "heard")

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_a_convolution_is_in_its_place(self, result: Model) -> None:
        counts = op_counts(read_onnx(result))
        assert (counts["STFT"], counts["Conv"]) == (0, 1)


@pytest.mark.parametrize("text", [HEARD.replace("ONESIDED", "0"), BARE], ids=["both", "bare"])
def test_both_sides_and_frames_without_a_window_are_the_same_too(
    build: Build, tmp_path: Path, text: str
) -> None:
    model = build(text, "source")
    result = run(Spectra(), model, tmp_path)
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "exact")
    assert error_between(exact, answers(result, data, tmp_path / "own")) < 1e-5


def test_a_runtime_without_spectra_answers_too(build: Build, tmp_path: Path) -> None:
    model = build(HEARD.replace("ONESIDED", "1"), "heard")
    result = run(Spectra(), model, tmp_path)
    data = samples_of(model, 4)
    exact = answers(model, data, tmp_path / "exact")
    others = answers(result, data, tmp_path / "own", OpenVino())
    assert error_between(exact, others) < 1e-4


def test_a_spectrum_of_complex_numbers_is_left_alone(build: Build, tmp_path: Path) -> None:
    message = r"^nothing to replace: there is no STFT of real numbers with fixed frames$"
    with pytest.raises(Skipped, match=message):
        run(Spectra(), build(COMPLEX, "complex"), tmp_path)


def test_it_is_proposed_only_where_there_is_a_spectrum(build: Build, attention: Model) -> None:
    heard = build(HEARD.replace("ONESIDED", "1"), "heard")
    assert list(Spectra.variants(heard, host())) == [Spectra()]
    assert list(Spectra.variants(attention, host())) == []
