"""Whole runs one after the other on the same data: what the next one knows, pays, and says."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from tests.support.jobs import job_in
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.certificate.ledger import Ledger
from hasten.cli import main
from hasten.core.progress import Listener, Progress, nobody
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.parts import Parts, lay_out
from hasten.optimization.memory import (
    earlier_of,
    keep_earlier,
    leave_seen,
    past_of,
    take_look,
)
from hasten.optimization.workspace import check_same_run
from hasten.reporting.result import Result
from hasten.testing import models

ENGINE = "tests.support.rivals:Rival"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "state"))
    return tmp_path / "state"


def run(
    folder: Path,
    samples: int,
    out: str = "b.hasten",
    max_drop: float = 0.02,
    seed: int = 0,
    *,
    resume: bool = False,
    listen: Listener = nobody,
) -> Result:
    x = np.random.default_rng(5).standard_normal((samples, 16), dtype=np.float32)
    with quick_runs(races=False):
        return hasten.optimize(
            models.linear_classifier(folder),
            {"x": x},
            max_drop=max_drop,
            engines=(ENGINE,),
            out=folder / out,
            seed=seed,
            resume=resume,
            listen=listen,
        )


@pytest.mark.seconds
def test_a_rerun_after_a_refusal_pays_and_fresh_samples_do_not(tmp_path: Path, state: Path) -> None:
    first = run(tmp_path, 300)  # 140 sealed samples can't show 2%
    assert first.status == "exact"
    assert first.look is not None
    assert first.look.plain
    assert "are needed: add about 149 samples that no run has read" in " ".join(first.notes)

    second = run(tmp_path, 300, seed=1, max_drop=0.015, out="other.hasten")
    assert second.look is not None
    assert (second.look.number, second.look.refused) == (2, 1)
    assert second.look.alpha == pytest.approx(0.0005)
    said = "second look at these data: tested at 0.05% instead of 5%, because 1 earlier look "
    assert any(note.startswith(said) for note in second.notes)
    assert second.notes[0] == (
        "140 sealed samples can't show that at most 1.5% of answers change, even if nothing changes: "
        "that takes 657, after what earlier looks spent, or 199 samples that no run has read; "
        "a run with the same answers as an earlier one is judged as that one was"
    )
    record = json.loads((second.bundle / "evidence" / "sealed.json").read_text())
    once = json.loads((first.bundle / "evidence" / "sealed.json").read_text())
    assert set(record["hashes"]) == set(once["hashes"])
    assert record["look"]["number"] == 2
    assert said in read(second.bundle).sealed["look"]

    more = run(tmp_path, 600)
    assert more.status == "certified", more.why
    assert more.look is not None
    assert more.look.plain
    certificate = read(more.bundle).certificate
    assert certificate is not None
    assert certificate["judgement"]["confidence"] == 0.95
    assert certificate["look"]["words"].startswith(
        "first look at these data (according to a ledger kept "
    )
    third = json.loads((more.bundle / "evidence" / "sealed.json").read_text())
    assert not set(third["hashes"]) & {*once["hashes"], *once["seen"]}


@pytest.mark.seconds
def test_a_run_pays_for_a_look_that_an_older_version_wrote_down_by_its_hashes(
    tmp_path: Path, state: Path
) -> None:
    """Older versions hashed the type too, so that float64 was other content than float32."""
    rows = np.random.default_rng(5).standard_normal((900, 16), np.float32).astype(np.float64)
    data = ArrayDataset({"x": rows})
    old = list(filter(None, map(data.former_hash, range(900))))
    ledger = Ledger.at(state)
    ledger.saw(old[:400])
    ledger.end(ledger.look(old[400:], "answers", asked=0.05), [], held=False)
    text = """<ir_version: 10, opset_import: ["": 17]>
        classifier (double[batch, 16] x) => (float[batch, 4] logits) {
            single = Cast <to = 1> (x)
            logits = MatMul(single, w)
        }"""
    model = parser.parse_model(text)
    w = np.random.default_rng(1).standard_normal((16, 4), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "double.onnx")
    with quick_runs(races=False):
        result = hasten.optimize(
            tmp_path / "double.onnx",
            {"x": rows},
            max_drop=0.3,
            engines=(ENGINE,),
            out=tmp_path / "b.hasten",
        )
    assert result.look is not None
    assert (result.look.number, result.look.refused) == (2, 1)
    record = json.loads((result.bundle / "evidence" / "sealed.json").read_text())
    assert not set(record["hashes"]) & {data.content_hash(i).hex() for i in range(400)}
    before, now = (look.hashes for look in ledger.past().looks)
    assert {bytes.fromhex(one)[:16] for one in record["hashes"]} == now - before
    assert len(now & before) == len(record["hashes"])  # by both hashes, for the next run


# -- a ledger that can't be used


def damaged(state: Path) -> Path:
    """Write a ledger of which nothing can be read."""
    state.mkdir(mode=0o700, exist_ok=True)
    file = state / "ledger.jsonl"
    file.write_bytes(b"\xff" * 100 + b"\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    "words",
    [
        ("optimize", "none.onnx", "--data", "none.npz", "--max-drop", "5%"),
        ("optimize", "none.onnx", "--data", "none.npz", "--max-drop", "5%", "--resume"),
        ("certify", "none.hasten", "--data", "none.npz"),
        ("certify", "a.hasten+crop+b.hasten", "--data", "none", "--max-drop", "5%"),
        (
            *("lighten", "none.py:net", "--train", "none", "--data", "none"),
            *("--budget", "1ms", "--max-drop", "5%"),
        ),
        ("pack", "none.hasten", "--lossy", "--train", "none", "--data", "none", "--max-drop", "5%"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_that_certifies_ends_on_it_before_it_reads_anything(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = damaged(state)
    before = file.read_bytes()
    ended = CliRunner().invoke(main, words)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"hasten: the ledger {file} can't be used: it is damaged; ")
    assert ended.stderr.count("\n") == 1
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [state.name]
    monkeypatch.setenv("HASTEN_LEDGER", "off")
    assert "ledger" not in CliRunner().invoke(main, words).stderr


def test_a_run_without_data_certifies_nothing_and_needs_none(tmp_path: Path, state: Path) -> None:
    file = damaged(state)
    with quick_runs(races=False):
        model = models.linear_classifier(tmp_path)
        result = hasten.optimize(model, None, engines=(ENGINE,), out=tmp_path / "b.hasten")
    assert result.status == "exact"
    assert "ledger" not in " ".join(result.notes)
    assert file.read_bytes() == b"\xff" * 100 + b"\n"


@pytest.mark.seconds
def test_a_run_that_can_not_write_its_look_tells_nothing_and_is_resumed_without_loss(
    tmp_path: Path, state: Path
) -> None:
    kept: list[bytes] = []

    def breaking(progress: Progress) -> None:
        if progress.stage == "certify" and not kept:
            kept.append((state / "ledger.jsonl").read_bytes())
            damaged(state)

    with pytest.raises(InputError) as error:
        run(tmp_path, 600, listen=breaking)
    assert str(error.value) == (
        f"the ledger {state}/ledger.jsonl can't be used: it is damaged; nothing is certified without it: run "
        "`hasten ledger --forget` to set it aside, or set HASTEN_LEDGER to a folder that only you can write, or "
        'to "off" to go on without a memory, as the certificate then says; then continue with resume=True, '
        "and nothing is lost"
    )
    assert read(tmp_path / "b.hasten").certificate is None  # what no test is needed for
    journal = tmp_path / "b.hasten.work" / "journal.jsonl"
    stopped = journal.read_text()
    (state / "ledger.jsonl").write_bytes(kept[0])
    grown: list[str] = []
    result = run(tmp_path, 600, resume=True, listen=lambda told: grown.append(journal.read_text()))
    assert result.status == "certified", result.why
    assert result.look is not None
    assert result.look.plain
    assert grown[-1].startswith(stopped)
    assert grown[-1].count('"trial"') == stopped.count('"trial"') > 1  # none is tried again


# -- the steps, without a run


def parts_of(folder: Path, count: int = 40) -> Parts:
    data = ArrayDataset({"x": np.arange(count, dtype=np.float32).reshape(count, 1)})
    folder.mkdir(exist_ok=True)
    return lay_out(data, folder, calibration=4, seed=0, training=None)


def hashes(parts: Parts) -> list[bytes]:
    return [bytes.fromhex(one) for one in parts.sealed_hashes]


def test_a_run_that_is_killed_before_its_test_has_searched_and_spent_nothing(
    tmp_path: Path, state: Path
) -> None:
    parts = parts_of(tmp_path)
    leave_seen(job_in(tmp_path), parts)
    past = Ledger.at(state).past()
    assert len(past.seen) == 4 + len(parts.search)
    assert past.looks == ()


def test_a_resumed_run_has_the_look_and_the_split_that_it_began_with(
    tmp_path: Path, state: Path
) -> None:
    parts = parts_of(tmp_path)
    job = job_in(tmp_path)
    Ledger.at(state).saw(hashes(parts)[:3])
    known = earlier_of(job)
    begun = lay_out(
        ArrayDataset({"x": np.arange(40, dtype=np.float32).reshape(40, 1)}),
        tmp_path,
        calibration=4,
        seed=0,
        training=None,
        earlier=known,
    )
    keep_earlier(job, begun)
    check_same_run(job.journal, {"model": "m"})
    first = take_look(job, hashes(begun), "answers")

    other = Ledger.at(state)
    other.saw(hashes(begun)[:5])
    other.look(hashes(begun), "others", asked=0.05)
    resumed = job_in(tmp_path)
    assert earlier_of(resumed).seen == begun.earlier.seen
    assert len(begun.earlier.seen) == 3
    assert take_look(resumed, hashes(begun), "answers") == first


def test_an_older_bundle_in_its_place_is_remembered_where_the_ledger_was_lost(
    tmp_path: Path, state: Path, certified_bundle: Path
) -> None:
    record = json.loads((certified_bundle / "evidence" / "sealed.json").read_text())
    job = job_in(tmp_path)
    past = past_of(certified_bundle, job.ledger)
    assert past.seen == {bytes.fromhex(one)[:16] for one in record["seen"]}
    (look,) = past.looks
    assert look.hashes == {bytes.fromhex(one)[:16] for one in record["hashes"]}
    assert look.refused is any(
        not isinstance(entry, str) and entry["verdict"] != "certified"
        for _, entry in record["judged"]
    )
    assert past_of(tmp_path / "none", job.ledger) == past_of(tmp_path, job.ledger)


@pytest.mark.parametrize("text", ["[]", "{", '{"hashes": ["x"], "seen": []}', "[" * 100_000])
def test_a_bundle_that_says_nonsense_says_nothing(tmp_path: Path, state: Path, text: str) -> None:
    (tmp_path / "b" / "evidence").mkdir(parents=True)
    (tmp_path / "b" / "evidence" / "sealed.json").write_text(text)
    assert past_of(tmp_path / "b", job_in(tmp_path).ledger).looks == ()
