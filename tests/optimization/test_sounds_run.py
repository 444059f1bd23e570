"""A whole run on a folder of sounds, by the command line: from files to a server that is asked about files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from tests.inputs.pipeline.test_audio import RATE, encoded, tone
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.inputs.pipeline.audio import DecodeAudio
from hasten.testing.models import HEADER

pytestmark = pytest.mark.seconds

pytest.importorskip("soundfile", reason="needs soundfile: hasten[audio]")
PIPELINE = f"""
before:
  - decode_audio: {RATE}
  - fit_length: {RATE // 4}
  - log_mel: {{mels: 40, log: natural}}
after:
  - top_k: {{count: 1, labels: labels.txt}}
"""
LABELS = ("low", "high")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def pitch_reader(folder: Path) -> Path:
    """Write a model that compares the energy in the lower mel bands with that in the upper ones."""
    model = parser.parse_model(
        HEADER
        + """
        pitch (float[batch, 40, frames] spectrogram) => (float[batch, 2] logits) {
            energy = ReduceMean <axes = [2], keepdims = 0> (spectrogram)
            logits = MatMul(energy, weight)
        }"""
    )
    weight = np.zeros((40, 2), np.float32)
    weight[:20, 0] = weight[20:, 1] = 1
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, folder / "pitch.onnx")
    return folder / "pitch.onnx"


def sounds(folder: Path, count: int, seed: int) -> Path:
    """Write a folder of low and of high tones."""
    rng = np.random.default_rng(seed)
    for name, (least, most) in {"low": (150, 400), "high": (4000, 7000)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            form = ("WAV", "FLAC")[number % 2]
            body = encoded(tone(rng.uniform(least, most), seconds=0.2), kind=form)
            (folder / name / f"{number:03}.{form.lower()}").write_bytes(body)
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_folder_of_sounds_is_data_from_a_run_to_a_load_test(tmp_path: Path) -> None:
    (tmp_path / "audio.yaml").write_text(PIPELINE)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    data, out = sounds(tmp_path / "sounds", 160, seed=0), tmp_path / "pitch.hasten"
    result = run(
        *("optimize", pitch_reader(tmp_path), "--data", data, "--metric", "top1", "--out", out),
        *("--pipeline", tmp_path / "audio.yaml", "--engine", "onnxruntime", "--details"),
    )
    assert result.exit_code == 0, result.output
    prepared = "decode_audio, fit_length(length=4000), log_mel(mels=40, log=natural)"
    assert f"Note: sounds were prepared by {prepared}" in result.stdout
    assert "classes were numbered" not in result.stdout  # the pipeline names them
    kept = read(out).pipeline
    assert kept is not None
    assert isinstance(kept.steps[0], DecodeAudio)
    with hasten.load(out) as loaded:
        for name in LABELS:
            (decided,) = loaded.decide(data / name / "001.flac")
            assert decided["label"] == name

    fresh = sounds(tmp_path / "fresh", 120, seed=1)
    certified = hasten.certify(out, fresh, max_drop=0.1)
    assert (certified.passed, certified.judgement.lost) == (True, 0)
    again = run("certify", out, "--data", data, "--max-drop", "20%")
    assert again.output.startswith("regression check on data that was used before"), again.output

    with ServerThread(place_of(out)) as server:
        loaded_test = run(
            *("loadtest", server.http_url, "--model", "pitch", "--data", data),
            *("--rate", 40, "--for", "0.5s", "--warmup", "0s"),
        )
    assert loaded_test.exit_code == 0, loaded_test.output
    assert f"files of {data}" in loaded_test.output
    assert re.search(r"^([1-9]\d*) requests: \1 ok", loaded_test.output, re.MULTILINE)


def test_a_damaged_sound_ends_a_run_in_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "audio.yaml").write_text(PIPELINE)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    data = sounds(tmp_path / "sounds", 40, seed=0)
    bad = data / "low" / "003.flac"
    bad.write_bytes(bad.read_bytes()[:400])
    result = run(
        *("optimize", pitch_reader(tmp_path), "--data", data, "--out", tmp_path / "b.hasten"),
        *("--pipeline", tmp_path / "audio.yaml", "--engine", "onnxruntime"),
    )
    assert result.exit_code != 0
    assert f"{bad} can't be read as a sound" in result.output
    assert "Traceback" not in result.output
