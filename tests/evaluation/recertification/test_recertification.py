"""A bundle against new data: what is asked of it, and what counts as new."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support import ragged
from tests.support.bundles import forge, stated
from tests.support.quick import quick_runs

import hasten
import hasten.optimization.optimize
from hasten.bundle import part, read, write
from hasten.certificate.betting import BettingPrior
from hasten.certificate.verdict import judge
from hasten.cli import main
from hasten.core.records import to_record
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.evaluation.subject import Limits
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.parts import hashed_groups
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.onnx import load
from hasten.testing import models

SEALED = "evidence/sealed.json"


def test_a_real_int8_model_is_certified_and_its_bundle_says_for_what(
    data: tuple[Path, Path],
) -> None:
    manifest = read(data[0])
    assert manifest.certificate is not None
    assert "int8" in manifest.winner.label
    assert manifest.certificate["judgement"]["max_drop"] == 0.05
    assert manifest.certificate["judgement"]["bound"] <= 0.05
    assert manifest.certificate["batch_sizes"][0] == 1
    assert manifest.environment["onnxruntime"]


@pytest.mark.seconds
def test_certify_without_a_limit_takes_the_certificates_and_calls_the_same_data_a_regression_check(
    data: tuple[Path, Path],
) -> None:
    again = hasten.certify(*data)
    assert again.kind == "regression check"
    assert again.judgement.max_drop == 0.05
    ended = CliRunner().invoke(main, ["certify", str(data[0]), "--data", str(data[1])])
    assert ended.exit_code == 0
    assert ended.output.startswith(
        "regression check on data that was used before: within the limit of 5% on these samples (n="
    )


def test_fresh_data_gives_a_verdict_of_its_own_and_too_little_of_it_says_how_much_would_do(
    data: tuple[Path, Path], fresh: Path
) -> None:
    result = hasten.certify(data[0], fresh)
    assert (result.kind, result.used, result.left_out) == ("fresh data", 400, 0)
    few = hasten.certify(data[0], fresh, max_drop=0.001, guard="lost")
    assert not few.passed  # no loss at all in 400 samples can't show less than 0.7%
    assert few.judgement.samples_needed is None or few.judgement.samples_needed > 2900


def test_a_test_on_a_machine_that_the_bundle_was_not_made_on_says_so(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(data[0], tmp_path / "moved.hasten"))
    forge(moved, lambda record: record["target"].update(processor="Another CPU"))
    note = (
        "the test is about this machine, which differs from the one that the bundle was made on: "
        f"processor: Another CPU there, {Target.host().processor} here"
    )
    assert hasten.certify(moved, fresh).notes == (note,)
    assert hasten.certify(data[0], fresh).notes == ()


def test_a_bundle_made_with_groups_is_not_judged_on_samples_that_may_belong_together(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(data[0], tmp_path / "grouped.hasten")
    seen = json.loads((bundle / SEALED).read_text()) | {"groups": hashed_groups(np.array(["v"]))}
    forge(bundle, files={SEALED: json.dumps(seen).encode()})
    with pytest.raises(hasten.InputError) as caught:
        hasten.certify(bundle, fresh)
    assert str(caught.value) == (
        f"{bundle} was made with groups, but the data has none, so samples that belong together "
        "would count as independent: give each sample its group, or a group of its own if it "
        "belongs with no other"
    )
    np.savez(tmp_path / "grouped.npz", **np.load(fresh), groups=np.arange(400) // 2)
    assert hasten.certify(bundle, tmp_path / "grouped.npz").judgement.groups == 200


def test_a_sample_whose_group_was_seen_under_another_name_is_left_out(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    seen = set(json.loads((data[0] / SEALED).read_text())["seen"])
    with np.load(data[1]) as old, np.load(fresh) as new:
        made_with = ArrayDataset({"input": old["input"]})
        known = next(i for i in range(1200) if made_with.content_hash(i).hex() in seen)
        arrays = {name: np.concatenate([old[name][[known]], new[name]]) for name in old}
    groups = np.arange(401)
    groups[:3], groups[5] = 1000, 4
    np.savez(tmp_path / "grouped.npz", **arrays, groups=groups)  # type: ignore[arg-type]
    result = hasten.certify(data[0], tmp_path / "grouped.npz")
    assert (result.kind, result.used, result.left_out) == ("fresh data", 398, 3)


def moved(bundle: Path, folder: Path, device: str, engine: dict[str, Any] | None = None) -> Path:
    """A copy of a bundle that says that it is for a device that isn't here."""

    def change(record: dict[str, Any]) -> None:
        record["target"] |= {"kind": "compile-only", "device": device}
        record["winner"]["engine"] = engine or record["winner"]["engine"]

    copy = shutil.copytree(bundle, folder / "elsewhere.hasten")
    forge(copy, change)
    return copy


@pytest.mark.parametrize(
    ("device", "engine", "noun"),
    [
        ("tpu:v5e", "tpu", "Google TPU"),
        ("litert", "litert_reference", "LiteRT interpreter elsewhere"),
        ("coreml", "coreml", "Apple Core ML"),
    ],
)
def test_what_stands_in_for_a_device_is_never_certified(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path, device: str, engine: str, noun: str
) -> None:
    bundle = moved(data[0], tmp_path, device, {"type": engine})
    ended = CliRunner().invoke(
        main, ["certify", str(bundle), "--data", str(fresh), "--max-drop", "20%"]
    )
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"hasten: {bundle} is for {device}, which isn't here, and a session on this host may "
        "give other answers than the device: run hasten certify on a machine with the device "
        f"({noun})\n"
    )


def test_what_ships_for_this_host_is_certified_here_though_it_was_made_for_a_device(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    assert hasten.certify(moved(data[0], tmp_path, "tpu:v5e"), fresh).used == 400


def test_a_bundle_judged_by_a_function_runs_it_only_where_it_is_named_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def score(outputs, labels):\n"
        "    return (outputs['logits'].argmax(1) % 2 == labels % 2).astype(float)\n"
    )
    score = f"{tmp_path}/mine.py:score"
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    y = np.random.default_rng(1).integers(0, 4, 300)
    np.savez(tmp_path / "eval.npz", x=x, labels=y)
    with quick_runs(races=False):
        bundle = hasten.optimize(
            models.linear_classifier(tmp_path),
            tmp_path / "eval.npz",
            max_drop=0.05,
            metric=score,
            out=tmp_path / "model.hasten",
            engines=("onnxruntime",),
        ).bundle
    with pytest.raises(hasten.InputError) as caught:
        hasten.certify(bundle, tmp_path / "eval.npz", max_drop=0.05)
    assert str(caught.value) == (
        f"{bundle} was judged by the function {score}: name it again in metric=, because hasten "
        "never runs code that only a bundle names"
    )
    assert hasten.certify(bundle, tmp_path / "eval.npz", max_drop=0.05, metric=score).passed


PARITY = """
def score(outputs, labels):
    return (outputs["logits"].argmax(1) % 2 == labels % 2).astype(float)
"""


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({}, "betting"),  # counts of top-1 say nothing of the function
        ({"metric": "custom"}, "exact"),
        ({"metric": "custom", "method": "betting", "lost": None, "gained": None}, "betting"),
    ],
)
def test_scores_of_a_function_are_counted_only_where_the_certificate_counted_them(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path, stated: dict[str, Any], method: str
) -> None:
    bundle = Path(shutil.copytree(data[0], tmp_path / "custom.hasten"))
    forge(bundle, lambda record: record["certificate"]["judgement"].update(stated))
    (tmp_path / "mine.py").write_text(PARITY)
    found = hasten.certify(bundle, fresh, metric=f"{tmp_path}/mine.py:score").judgement
    assert found.method.startswith(method)
    assert (found.lost is None) == (method == "betting")


def test_scores_between_0_and_1_are_never_counted_though_all_of_them_are_0_or_1() -> None:
    limits = Limits(0.01, 0.95, "net", "samples", counted="iou")
    assert (limits.counts(Iou()), limits.counts(Top1())) == (False, True)


@pytest.mark.parametrize(
    ("counted", "expected"), [("regression", (True, True)), ("", (False, True))]
)
def test_shares_within_a_tolerance_are_counted_only_where_the_certificate_counted_them(
    counted: str, expected: tuple[bool, bool]
) -> None:
    """An output of several numbers gives shares, which on little data may all happen to be 0 or 1."""
    limits = Limits(0.01, 0.95, "net", "samples", counted=counted)
    metrics = (Regression(0.1), Regression(0.1, whole=True))
    assert tuple(map(limits.counts, metrics)) == expected


@pytest.mark.parametrize(
    ("part", "said"), [("winner", "rows may depend"), ("exact", "answers each row of a batch by")]
)
def test_a_bundle_that_says_that_its_rows_are_apart_is_not_believed_where_loud_ones_move_others(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path, part: str, said: str
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["certificate"]["rows_apart"] = True
        record["winner"] = record[part]

    bundle = Path(shutil.copytree(data[0], tmp_path / "apart.hasten"))
    forge(bundle, change)
    result = hasten.certify(bundle, fresh, batch_sizes=(2, 16))
    assert result.coverage is not None
    assert result.coverage.rows_apart == (part == "exact")
    assert said in result.in_words()
    assert result.passed == (part == "exact")  # 25 batches of 16 are too few draws


def test_batches_that_share_a_scale_are_draws_of_their_own(
    data: tuple[Path, Path], fresh: Path
) -> None:
    """Dynamic quantization takes one scale for a whole batch, so that its rows depend on each other."""
    manifest = read(data[0])
    assert manifest.certificate is not None
    assert not manifest.certificate["rows_apart"]  # which sizes the run itself tried is the clock's
    two = hasten.certify(data[0], fresh, batch_sizes=(2,))
    assert two.passed
    assert "\nit holds for batches of 1, 2, tested on the same samples (rows may" in two.in_words()
    told = ["certify", str(data[0]), "--data", str(fresh), "--batch-sizes", "1,16"]
    ended = CliRunner().invoke(main, told)
    assert ended.exit_code == 1
    assert (
        "\nit holds for lone samples only: 16 and larger: not enough data: 400 samples in 25 groups can't"
        in (ended.output)
    )


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0,), "batch sizes are whole numbers from 1 to 64: got 0"),
        ((65,), "batch sizes are whole numbers from 1 to 64: got 65"),
        ((2.0,), "batch sizes are whole numbers from 1 to 64: got 2.0"),
    ],
)
def test_impossible_batch_sizes_are_refused(
    data: tuple[Path, Path], fresh: Path, sizes: Any, said: str
) -> None:
    with pytest.raises(hasten.InputError) as error:
        hasten.certify(data[0], fresh, batch_sizes=sizes)
    assert str(error.value) == said


def test_samples_without_a_label_count_as_lost_where_their_answer_changed(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(fresh))
    whole = hasten.certify(data[0], fresh)
    arrays["labels"] = np.where(np.arange(400) % 2, -1, arrays["labels"])
    np.savez(tmp_path / "gaps.npz", **arrays)
    gaps = hasten.certify(data[0], tmp_path / "gaps.npz")
    assert whole.judgement.lost is not None
    assert gaps.judgement.lost is not None
    assert gaps.judgement.n == 400
    assert gaps.judgement.lost >= whole.judgement.lost
    assert 0 <= gaps.unlabelled <= gaps.judgement.lost
    assert ("have no label and count as lost" in gaps.in_words()) == (gaps.unlabelled > 0)
    arrays["labels"] = np.where(np.arange(400) % 2, -1, 1)
    np.savez(tmp_path / "signs.npz", **arrays)
    with pytest.raises(
        hasten.InputError, match="the labels are -1 and 1, and -1 stands for a missing"
    ):
        hasten.certify(data[0], tmp_path / "signs.npz")


def test_samples_that_differ_in_shape_are_tested_in_the_certificates_batches_too(
    tmp_path: Path,
) -> None:
    samples = ragged.sentences(30)
    first = {name: own[0] for name, own in samples.items()}
    model, engine = load(ragged.encoder(tmp_path)).settled_by(first), OnnxRuntime(threads=1)
    (tmp_path / "built").mkdir()
    own = part("a label", (), engine, engine.build(model, Target.host(), tmp_path / "built"))
    shapes = [{name: each[n].shape for name, each in samples.items()} for n in range(30)]
    ones = np.ones(60)
    judgement = judge(
        ones,
        ones,
        guard="net",
        max_drop=0.4,
        confidence=0.9,
        metric="agreement",
        prior=BettingPrior(),
    )
    certificate = {"judgement": to_record(judgement), "batch_sizes": [1, 2, 4]}
    manifest = stated(
        own,
        own,
        certificate=certificate,
        metric=to_record(Agreement("logits")),
        shapes=extents(model.inputs, shapes),
    )
    seen: dict[str, Any] = {"hashes": [], "seen": [], "groups": []}
    write(tmp_path / "encoder.hasten", manifest, {"sealed.json": seen})
    outcome = hasten.certify(tmp_path / "encoder.hasten", samples)
    assert (outcome.passed, outcome.used, outcome.batches) == (True, 30, (2, 4))
    assert outcome.coverage is not None
    assert outcome.coverage.sizes == (1, 2, 4)
