"""Whole runs: a model, its training data and a budget, to a certified lighter model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.lightening.conftest import by_counts, clothes, corners, float_alone, taught, wide
from tests.support.exports import exported_once
from tests.support.models import solid
from tests.support.quick import quick_runs
from tests.support.servers import bundle_of

import hasten
from hasten.bundle import read
from hasten.certificate.ledger import user_ledger
from hasten.cli import main
from hasten.core.progress import Progress
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.torch import export
from hasten.lightening.prospects import fastest
from hasten.reporting.evidence import gathered
from hasten.reporting.rows import won

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KNOWN, JUDGED = corners(700, 2), corners(1500, 3)


@pytest.fixture(autouse=True)
def no_cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy host measured for somebody else says nothing here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(autouse=True, scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is refused here isn't the export, which most tests begin with, of the same network."""
    folder = tmp_path_factory.mktemp("exports")
    with exported_once(folder):
        yield folder


class StopError(Exception):
    """The run is stopped by its listener."""


def budget_ms(module: torch.nn.Module, image: Array, share: float, folder: Path) -> float:
    """Return a share of what a network takes."""
    folder.mkdir()
    sample = {"input": image}
    model = export(module, sample, folder).settled_by(sample)
    found = fastest({"it": model}, Target.host(), folder / "prospects", engines=("onnxruntime",))
    return share * found["it"].latency_ns / 1e6


SCRIPT = """
import os
from pathlib import Path
from hasten.cli import main
from tests.lightening.conftest import by_counts, float_alone
from tests.support.exports import exported_once
from tests.support.quick import quick_runs
with quick_runs(), by_counts(), float_alone(), exported_once(Path(os.environ["EXPORTS"])):
    main()
"""
NETWORK = """
import torch
from tests.lightening.conftest import wide
def net():
    network = wide(64, classes=10)
    network.load_state_dict(torch.load({file!r}, weights_only=True))
    return network
"""


def asked(folder: Path, limit_ms: float, *options: str) -> list[str]:
    """Return the command's words about what lies in a folder."""
    said = [f"{folder / 'net.py'}:net", f"--train={folder / 'known.npz'}"]
    said += [f"--data={folder / 'judged.npz'}", f"--budget={limit_ms}ms", "--max-drop=20%"]
    said += ["--architecture=lcnet", "--minutes=10", "--epochs=1", "--batch=16", "--rate=5e-3"]
    said += ["--engine=onnxruntime", "--effort=quick", f"--out={folder / 'b.hasten'}", *options]
    return ["lighten", *said]


def started(words: list[str]) -> subprocess.Popen[str]:
    """Start the command in a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_a_certified_lighter_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("EXPORTS", str(exports))
    examples, known, judged = clothes()
    module = taught(examples, tmp_path)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.py").write_text(NETWORK.format(file=str(tmp_path / "net.pt")))
    for name, (x, labels) in (("known", known), ("judged", judged)):
        np.savez(tmp_path / f"{name}.npz", input=x, labels=labels)
    with by_counts():
        limit_ms = budget_ms(module, known[0][0], 0.35, tmp_path / "budget")
    again: list[str] = []
    for words in ("% after ", "the baseline"):  # amid the first training, and after all of them
        with started(asked(tmp_path, limit_ms, *again)) as process:
            assert process.stderr is not None
            heard: list[str] = []
            while words not in (line := process.stderr.readline()):
                assert line, "".join(heard)
                heard.append(line)
            process.kill()
        again = ["--resume"]
    shutil.copytree(tmp_path / "b.hasten.training", tmp_path / "left")
    with by_counts(), float_alone():
        done = CliRunner().invoke(main, asked(tmp_path, limit_ms, "--resume", "--json"))
    assert done.exit_code in (0, 1), done.output
    assert "% after " not in done.stderr  # no training was left
    assert json.loads(done.stdout)["status"] == "certified"

    result = gathered(tmp_path / "b.hasten").result
    assert done.exit_code == (0 if result.within_budget else 1)
    names = {way.name for way in result.methods}
    assert "pruned" in names
    assert any(name.startswith("lcnet") and "labels alone" in name for name in names)
    assert result.budget_ns == pytest.approx(1e6 * limit_ms)
    assert won(result).startswith("the best method: ")
    assert all(way.trained for way in result.methods if way.name != "as it is")
    assert any(note.startswith("the model itself takes ") for note in result.notes)
    assert not (tmp_path / "b.hasten.training").exists()
    assert read(tmp_path / "b.hasten").winner.label.startswith("small model ")
    with hasten.load(tmp_path / "b.hasten") as fast:
        found = np.concatenate([fast(judged[0][i : i + 1])["output"] for i in range(100)])
    exact = module(torch.from_numpy(judged[0][:100])).argmax(1).numpy()
    right = (found.argmax(1) == judged[1][:100]).mean()
    assert right > (exact == judged[1][:100]).mean() - 0.2
    assert result.asked is not None
    assert result.asked.invocation.words[0] == "lighten"

    # As where it is killed between its end and the removal of its folder:
    shutil.copytree(tmp_path / "left", tmp_path / "b.hasten.training")
    done = CliRunner().invoke(main, asked(tmp_path, limit_ms, "--resume"))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(
        "hasten: nothing to resume: the run has finished"
    )
    assert not (tmp_path / "b.hasten.training").exists()


PLAN = ("minutes", "epochs", "batch", "rate", "loss", "features")


def refused(tmp_path: Path, **options: object) -> str:
    settings = {"budget_s": 1e-3, "out": tmp_path / "b.hasten", "engines": ("onnxruntime",)}
    given = {"model": wide(8), "train": KNOWN, "data": JUDGED, **settings, **options}
    plan = {name: given.pop(name) for name in PLAN if name in given}

    def run() -> None:
        hasten.lighten(**given, plan=hasten.TrainingPlan(**plan))  # type: ignore[arg-type]

    with pytest.raises(InputError) as error:
        run()
    assert not (tmp_path / "b.hasten.training").exists()
    return str(error.value)


@pytest.mark.seconds
def test_a_budget_that_nothing_meets_is_refused_with_the_fastest_that_there_is(
    tmp_path: Path,
) -> None:
    with by_counts(each_ns=1.0), float_alone():
        said = refused(tmp_path, budget_s=1e-7, architectures=["lcnet-s8"])
    assert said.startswith(
        "no method gives a model within 0.1 µs: pruned: pruning can't reach 0.0001 ms"
    )
    assert "the lowest latency is " in said
    assert "the fastest is lcnet" in said


def test_training_data_that_lacks_classes_is_refused(tmp_path: Path) -> None:
    x, labels = KNOWN
    some = (x[labels < 2], labels[labels < 2])
    assert refused(tmp_path, train=some) == (
        "the training data and the data to judge on have different classes: the training data "
        "lacks 2, 3; give training data of all classes"
    )
    assert refused(tmp_path, train=(some[0], 0 * some[1] + 7)) == (
        "the training data: label 7 is none of the 4 classes 0 to 3"
    )


def test_training_data_among_what_judges_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, train=JUDGED).startswith(
        "1500 of 1500 training samples are also in the data to judge on"
    )


def told_before(data: tuple[Array, Array], out: Path) -> list[str]:
    """Return what is told before a training, which is left out."""
    told = []

    def listen(progress: Progress) -> None:
        told.append(progress.news)
        if progress.outline is not None:
            raise StopError

    with pytest.raises(StopError):
        hasten.lighten(
            wide(8),
            KNOWN,
            data,
            budget_s=1e-3,
            max_drop=0.01,
            out=out,
            engines=("onnxruntime",),
            listen=listen,
        )
    return [line for line in told if line is not None]


def test_data_that_can_not_certify_anything_is_told_of_before_a_training(tmp_path: Path) -> None:
    few = (JUDGED[0][:300], JUDGED[1][:300])
    assert told_before(few, tmp_path / "few.hasten") == [TOO_LITTLE]
    assert told_before(JUDGED, tmp_path / "all.hasten") == []


@pytest.mark.parametrize("kept_by", ["ledger", "older bundle"])
def test_what_earlier_looks_spent_is_told_of_before_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_by: str
) -> None:
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "ledger"))
    x, labels = JUDGED[0][:1000], JUDGED[1][:1000]
    data = ArrayDataset({"input": x}, labels)
    hashes = [data.content_hash(n) for n in range(len(data))]
    out = tmp_path / "solid.hasten"
    if kept_by == "ledger":
        user_ledger().look(hashes, "answers", asked=0.05)  # which never came to an end
    else:
        judged = [["a form", {"verdict": "not certified"}]]
        record = {"hashes": [one.hex() for one in hashes], "seen": [], "judged": judged}
        bundle_of(tmp_path, solid(tmp_path), extra={"sealed.json": record})
    (told,) = told_before((x, labels), out)
    assert told.startswith("700 sealed samples can't show a fall of at most 1 point")
    assert "after what earlier looks spent, or 299 samples that no run has read" in told


TOO_LITTLE = (
    "210 sealed samples can't show a fall of at most 1 point, even if nothing changes: that takes 299, so about 428 "
    "samples in all"
)


def test_data_that_earlier_runs_searched_on_is_refused_before_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "ledger"))
    data = ArrayDataset({"input": JUDGED[0]}, JUDGED[1])
    user_ledger().saw(data.content_hash(n) for n in range(len(data)))
    assert refused(tmp_path, data=data).startswith("earlier runs searched")


def test_samples_without_labels_are_not_judged_by_a_metric_that_can_not(tmp_path: Path) -> None:
    labels = JUDGED[1] % 2
    labels[::2] = -1
    said = refused(
        tmp_path,
        data=(JUDGED[0], labels),
        metric="auroc",
        model=wide(8, classes=2),
        train=(KNOWN[0], KNOWN[1] % 2),
    )
    assert said.startswith("auroc")


def by_one(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum() * 0


def by_another(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum() * 0


def test_a_stopped_run_does_not_go_on_with_another_loss(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.outline is not None:
            raise StopError

    def run(loss: object, *, resume: bool) -> None:
        hasten.lighten(
            wide(8),
            KNOWN,
            JUDGED,
            budget_s=1e-3,
            out=tmp_path / "b.hasten",
            engines=("onnxruntime",),
            plan=hasten.TrainingPlan(loss=loss),
            resume=resume,
            listen=stop,
        )

    with pytest.raises(StopError):
        run(by_one, resume=False)
    with pytest.raises(StopError):
        run(by_one, resume=True)
    with pytest.raises(InputError, match="can't resume: the stopped run had another loss"):
        run(by_another, resume=True)


def vector(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum(1)


def constant(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(())


def no_number(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum() * torch.nan


def other_output(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["logits"].sum()


CALLED = "called with the outputs output [8, 4] and labels [8]"


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (vector, f"a loss must return a tensor of one number: {CALLED}, it returned [8]"),
        (constant, f"a loss must depend on the outputs: {CALLED}, it returned a constant"),
        (no_number, f"the loss of the model itself is nan, {CALLED}"),
        (other_output, f"the loss failed, {CALLED}: KeyError: 'logits' (test_run.py:"),
        (3, "a loss must be a function of outputs and labels: got 3"),
    ],
)
def test_a_loss_that_can_not_be_learnt_by_is_refused_before_anything_is_timed(
    tmp_path: Path, loss: object, said: str
) -> None:
    assert refused(tmp_path, loss=loss).startswith(said)


def test_training_samples_that_are_not_what_the_model_takes_are_refused(tmp_path: Path) -> None:
    x, labels = KNOWN
    assert refused(tmp_path, train=(x.astype(np.uint8), labels)) == (
        "the training data's input is uint8 [1, 16, 16] per sample; the model takes float32 "
        "[1, 16, 16]"
    )
    assert refused(tmp_path, train=(x.transpose(0, 2, 3, 1).copy(), labels)) == (
        "the training data's input is float32 [16, 16, 1] per sample; the model takes float32 "
        "[1, 16, 16]"
    )


def test_training_data_without_the_models_input_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, train=ArrayDataset({"pixels": KNOWN[0]}, KNOWN[1])) == (
        "the training data lacks the model's input 'input': it has pixels"
    )


def test_a_model_whose_function_fails_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("def model():\n    raise FileNotFoundError('weights.pt')\n")
    assert refused(tmp_path, model=f"{file}:model") == (
        f"{file}:model failed: FileNotFoundError: weights.pt (m.py:2)"
    )
    file.with_name("n.py").write_text("def model(:\n")
    assert refused(tmp_path, model=f"{file.with_name('n.py')}:model").startswith(
        f"can't import '{file.with_name('n.py')}:model': SyntaxError: invalid syntax (n.py, line 1)"
    )


class Broken:
    """Samples of which one can't be read."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Array, int]:
        if index == 20:
            raise OSError("cannot identify image file")
        return KNOWN[0][index], int(KNOWN[1][index])


def test_a_sample_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, train=Broken())
    assert "sample 20: OSError: cannot identify image file (test_run.py:" in said


def test_a_model_within_the_budget_is_left_to_optimize(tmp_path: Path) -> None:
    with by_counts(), float_alone():
        said = refused(tmp_path, budget_s=1.0)
    assert said.startswith("the model meets the budget of 1000 ms without training: ")
    assert said.endswith("let optimize certify that, or give a smaller budget")


def test_a_metric_of_labels_wants_labels_before_anything_is_trained(tmp_path: Path) -> None:
    assert refused(tmp_path, data=JUDGED[0], metric="top1").startswith(
        "the metric top1 needs labels, but the data to judge on has none"
    )


class Branching(torch.nn.Module):
    """Goes one of two ways, as the numbers say: no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out if float(out.sum()) > 0 else -out


def test_a_model_that_can_not_be_traced_is_refused_in_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path, model=Branching())
    assert said.startswith("torch can't export the model to ONNX: test_run.py:")
    assert said.endswith(
        "has a branch that depends on a computed number (return out if float(out.sum()) > 0 "
        "else -out); torch.where chooses between two values without a branch"
    )


def test_what_is_no_live_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"")
    assert refused(tmp_path, model=str(file)) == (
        f"lighten trains a live torch network, such as file.py:name; {file} isn't one "
        "(optimize can use it as it is)"
    )


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("budget_s", 0.0, "the budget is in seconds, above 0: got 0.0"),
        ("budget_s", "3ms", "the budget is in seconds, above 0: got '3ms'"),
        ("max_drop", "1%", "max_drop is a share between 0 and 1: got 1%; 1% is 0.01"),
        ("architectures", "mobilenetv9", None),
        ("minutes", -1, "the time for each method is in minutes, above 0: got -1"),
        (
            "batch",
            1,
            "a batch must have at least 2 samples, because their mean and variance normalize it: "
            "got 1",
        ),
        ("methods", "magic", "the methods are students, pruned, scratch: got 'magic'"),
        ("students", 0, "give at least 1 student, or leave that method out: got 0"),
        ("features", 2.0, "the weight of features must be between 0 and 1: got 2.0"),
        (
            "target",
            "fpga:ecp5",
            "lighten times networks on this host alone: leave out target='fpga:ecp5', or optimize the model for "
            "that device",
        ),
        ("passes", ["magic"], "no pass that you can choose is called 'magic'; the passes are: "),
        ("report", ["magic"], "there is no metric over a set 'magic'"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, option: str, value: object, said: str | None
) -> None:
    came = refused(tmp_path, **{option: value})
    if option in ("passes", "report"):
        assert came.startswith(str(said))
        return
    assert came == said or (said is None and came.startswith("the catalogue has no architecture"))
