"""The commands where all goes well."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.support.quick import quick_runs

from hasten import __version__
from hasten.bundle import read
from hasten.cli import main
from hasten.testing import models

GOLDEN = Path(__file__).parents[1] / "golden" / "help.txt"
COMMANDS = (
    *("optimize", "bench", "certify", "ledger", "inspect", "doctor", "demo", "profile", "report"),
    *("shortlist", "lighten", "serve", "loadtest", "watch", "open", "completion"),
)


@pytest.fixture
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def fresh(folder: Path, count: int = 200) -> Path:
    x = np.random.default_rng(5).standard_normal((count, 16), dtype=np.float32)
    np.savez(folder / "new.npz", x=x)
    return folder / "new.npz"


def test_the_help_is_the_golden_one() -> None:
    runner = CliRunner()
    pages = [runner.invoke(main, ["--help"], terminal_width=100, prog_name="hasten").output]
    pages += [
        runner.invoke(main, [name, "--help"], terminal_width=100, prog_name="hasten").output
        for name in COMMANDS
    ]
    if "HASTEN_WRITE_GOLDEN" in os.environ:
        GOLDEN.write_text("\n".join(pages))
    assert "\n".join(pages) == GOLDEN.read_text()


def test_the_version_is_the_packages() -> None:
    assert run("--version").output == f"hasten, version {__version__}\n"


@pytest.mark.seconds
def test_optimize_prints_a_plan_a_card_and_on_request_the_details(
    tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "b.hasten"
    result = run(
        *("optimize", models.linear_classifier(tmp_path), "--data", fresh(tmp_path, 300)),
        *("--max-drop", "5%", "--engine", "tests.support.rivals:Rival", "--out", out),
        "--details",
    )
    assert result.exit_code == 0, result.output
    card, _, text = result.stdout.partition("\n\n")
    title, *rows = card.splitlines()
    assert title.endswith("x faster, certified")
    short = {name: text.strip() for name, _, text in (row.partition(":") for row in rows)}
    assert short["ships"] == read(out).winner.label
    assert short["certified"].startswith("95% confident that at most 5% of answers change (n=140: ")
    assert short["bundle"].startswith(f"{out}, made in ")
    assert (short["report"], short["serve"]) == (f"hasten open {out}", f"hasten serve {out}")
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert lines["What ships"] == f"{read(out).winner.label}."
    assert " than the default engine (original, ONNX Runtime" in lines["How fast"]
    assert lines["Valid for"] == "inputs like the ones in this data."
    assert lines["Next"] == (
        f"time it against what you run today: hasten bench {out} --against YOUR_DEPLOYMENT"
    )
    said = result.stderr.splitlines()
    assert "best so far: " in result.stderr
    assert not any(line.endswith("so far") for line in said)
    assert said[0].startswith("model:    linear_classifier.onnx, ")
    assert said[1] == (
        "data:     300 samples, without labels: 100 calibrate, 60 guide the search, 140 are "
        "reserved for the test"
    )
    assert (out / "report.html").stat().st_size > 1000


def test_optimize_as_json_has_the_figures(tmp_path: Path, quick: None) -> None:
    began_s = time.monotonic()
    result = run(
        *("optimize", models.linear_classifier(tmp_path), "--data", fresh(tmp_path, 300)),
        *("--max-drop", "5%", "--engine", "onnxruntime", "--out", tmp_path / "b", "--json"),
    )
    took_s = time.monotonic() - began_s
    record = json.loads(result.stdout)
    assert record["status"] == "exact"
    assert record["rows"][0]["role"] == "default engine"
    assert record["rows"][0]["p50"]["value_ns"] > 0
    assert 0 < record["seconds"] <= took_s


def test_bench_prints_both_and_says_what_was_asked(
    exact_bundle: Path, tmp_path: Path, quick: None
) -> None:
    model = models.linear_classifier(tmp_path)
    result = run("bench", exact_bundle, "--against", model, "--data", fresh(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["against"]["label"] == f"{model}, ONNX Runtime"
    assert record["requests"] == "samples of the data"
    assert record["bundle"]["ratio"]["low"] <= record["bundle"]["ratio"]["estimate"]


NO_LEDGER = "first look at these data (no ledger is kept, because HASTEN_LEDGER is off: earlier looks aren't known)"


def test_certify_ends_with_0_where_the_limit_holds(exact_bundle: Path, tmp_path: Path) -> None:
    result = run("certify", exact_bundle, "--data", fresh(tmp_path), "--max-drop", "5%")
    assert result.output == (
        "the limit of 5% holds: 95% confident that at most 5% of answers change (n=200: 0 changed)\n"
        f"{NO_LEDGER}\n"
    )
    assert result.exit_code == 0


def test_certify_takes_another_guard(exact_bundle: Path, tmp_path: Path) -> None:
    words = ("--data", fresh(tmp_path), "--max-drop", "5%", "--guard", "lost")
    assert run("certify", exact_bundle, *words).output == (
        "the limit of 5% holds: 95% confident that at most 5% of answers change (n=200: 0 changed)\n"
        f"{NO_LEDGER}\n"
    )


def test_certify_ends_with_1_where_it_does_not(exact_bundle: Path, tmp_path: Path) -> None:
    result = run("certify", exact_bundle, "--data", fresh(tmp_path), "--max-drop", "1%")
    assert result.output == (
        "not enough data: 200 samples can't show that at most 1% of answers change; about 300 "
        f"would\n{NO_LEDGER}\n"
    )
    assert result.exit_code == 1


def test_certify_ends_with_2_where_it_cannot_be_told(exact_bundle: Path, tmp_path: Path) -> None:
    result = run("certify", exact_bundle, "--data", tmp_path / "none.npz", "--max-drop", "1%")
    assert (result.exit_code, result.stderr) == (2, f"hasten: no such file: {tmp_path}/none.npz\n")


def test_the_very_same_data_are_a_regression_check_only(exact_bundle: Path) -> None:
    same = exact_bundle.parent / "eval.npz"
    result = run("certify", exact_bundle, "--data", same, "--max-drop", "5%", "--json")
    record = json.loads(result.stdout)
    assert (record["kind"], record["used"], record["left_out"]) == ("regression check", 300, 0)


def test_samples_that_made_the_bundle_are_left_out(exact_bundle: Path, tmp_path: Path) -> None:
    with np.load(exact_bundle.parent / "eval.npz") as old, np.load(fresh(tmp_path)) as new:
        np.savez(tmp_path / "both.npz", x=np.concatenate([old["x"], new["x"]]))
    result = run("certify", exact_bundle, "--data", tmp_path / "both.npz", "--max-drop", "5%")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(
        "; 300 samples were left out, because the bundle was made with them; the verdict says "
        f"nothing about inputs like them\n{NO_LEDGER}\n"
    )


def test_inspect_says_what_is_inside(exact_bundle: Path) -> None:
    result = run("inspect", exact_bundle)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(":", 1) for line in result.output.splitlines())
    assert lines["model"].strip() == "original, ONNX Runtime"
    assert lines["inputs"].strip() == "x: float32[batch, 16]"
    copies = "a request's 64 bytes are read where they are, without a copy"
    assert lines["copies"].strip() == copies
    assert lines["status"].strip().startswith("exact: ")
    assert json.loads(run("inspect", exact_bundle, "--json").stdout)["status"] == "exact"


def test_inspect_lists_what_a_model_takes_and_returns(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    result = run("inspect", model)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(":", 1) for line in result.output.splitlines())
    assert lines["inputs"].strip() == "x: float32[batch, 16]"
    assert lines["outputs"].strip() == "logits: float32[batch, 4]"
    refused = run("inspect", model, "--json")
    assert refused.stderr == (
        f"hasten: {model} is a model: --json, --requirements and --trusted are for bundles\n"
    )


def test_load_says_how_long_it_took_and_keeps_what_was_compiled(
    exact_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    said = [run("load", exact_bundle, "--warm").output.splitlines() for _ in range(2)]
    assert [re.sub(r"[0-9.]+", "N", line) for line in said[0][:2]] == [
        "opened in N s (unsigned)",
        "first answer after N ms more",
    ]
    assert said[0][2] == f"what was compiled is kept in {tmp_path / 'cache'}"
    assert said[1][0].endswith(" s, with what an earlier opening compiled (unsigned)")


def test_load_cannot_keep_anything_without_a_cache(exact_bundle: Path) -> None:
    told = run("load", exact_bundle, "--warm")
    assert (told.exit_code, told.output) == (
        2,
        "hasten: --warm keeps what is compiled, but HASTEN_CACHE=off: unset it\n",
    )


def test_doctor_says_what_this_machine_has() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    names = [line.partition(":")[0] for line in result.output.splitlines()]
    assert names[:4] == ["processor", "cores", "memory", "instructions"]
    assert {"onnxruntime", "openvino", "litert", "[optimize]", "[torch]", "[litert]"} <= set(names)


def photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in range(2):
        inner = folder / "photos" / f"class{label}"
        inner.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(inner / f"{i}.png")
    return folder / "photos"


@pytest.mark.parametrize("way", ["flags", "yaml"])
def test_a_folder_of_images_is_prepared_as_told_and_the_pipeline_is_kept(
    tmp_path: Path, quick: None, way: str
) -> None:
    (tmp_path / "images.yaml").write_text("size: 32\nresize: 36\nmean: 0.5\nstd: 0.25\n")
    told: tuple[Any, ...] = ("--pipeline", tmp_path / "images.yaml")
    if way == "flags":
        told = ("--image-size", 32, "--image-resize", 36, "--image-mean", 0.5)
        told += ("--image-std", 0.25)
    out = tmp_path / "b.hasten"
    result = run(
        *("optimize", models.small_cnn(tmp_path), "--data", photos(tmp_path), *told),
        *("--metric", "top1", "--engine", "onnxruntime", "--out", out, "--details"),
    )
    assert result.exit_code == 0, result.output
    numbered = (
        "classes were numbered by the order of the folders' names: 0 is 'class0', 1 is 'class1'"
    )
    assert f"Note: {numbered}" in result.stdout
    assert read(out).pipeline is not None
    assert "Note: images were prepared by decode, resize(size=36" in result.stdout
    assert "normalize(mean=0.5/0.5/0.5, std=0.25/0.25/0.25)" in result.stdout
    again = run("certify", out, "--data", tmp_path / "photos", "--max-drop", "20%")
    assert again.exit_code == 0, again.output
    assert again.output.startswith(
        "regression check on data that was used before: within the limit of 20% on these samples (n="
    )
    assert f"note: {numbered}" in again.output
    assert read(out).sealed["classes"] == ["class0", "class1"]
    page = (out / "report.html").read_text()
    assert "class folders" in page
    assert "0 is class0, 1 is class1" in page
    shutil.rmtree(tmp_path / "photos" / "class0")
    fewer = run("certify", out, "--data", tmp_path / "photos", "--max-drop", "20%")
    assert (
        "note: classes have the numbers of the folders that the bundle was made with: 1 is 'class1'"
        in fewer.output
    )


@pytest.mark.seconds
def test_a_torch_module_in_a_file_is_optimized(tmp_path: Path, quick: None) -> None:
    pytest.importorskip("torch")
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.ReLU()).eval()\n"
    )
    done = run(
        *("optimize", f"{tmp_path}/net.py:model", "--data", fresh(tmp_path)),
        *("--engine", "onnxruntime", "--json", "--out", tmp_path / "b.hasten"),
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "exact"
    assert read(tmp_path / "b.hasten").winner.artifact.inputs[0].shape[1:] == (16,)
