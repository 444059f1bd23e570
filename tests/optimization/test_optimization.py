"""Whole runs, from a model and data to a bundle."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten import bundle
from hasten.bundle import Manifest, NotCertifiedHere, read
from hasten.core.progress import Progress
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.inputs.pipeline.config import from_module
from hasten.measure.deadline import Need, Stage
from hasten.optimization.measured.spending import Spending
from hasten.reporting.result import Result
from hasten.testing import models

RIVALS = "tests.support.rivals:"
NEEDS: dict[Stage, Need] = {"figures": Need(0.0, 100.0), "deliver": Need(0.0, 1.0)}
"""What stages wish for, in a run whose own estimates a busy machine would change."""
NOT_ENOUGH = (
    "140 sealed samples can't show that at most 1% of answers change, even if nothing changes: "
    "that takes 299, so about 641 samples in all"
)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


def samples(count: int = 300, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 16), dtype=np.float32)


def optimize(folder: Path, engine: str = "Rival", data: Any = None, **options: Any) -> Result:
    settings = {"max_drop": 0.05, "metric": "agreement", **options}
    return hasten.optimize(
        models.linear_classifier(folder),
        samples() if data is None else data,
        out=folder / "b.hasten",
        engines=(RIVALS + engine,),
        **settings,
    )


def failures(result: Result) -> dict[str, str]:
    return {name: why for name, why in result.tried.items() if why.startswith("failed")}


class Watched(ArrayDataset):
    """Notes which samples are read, and when."""

    def __init__(self, x: Array, journal: Path) -> None:
        super().__init__({"x": x})
        self.reads: list[tuple[bool, int]] = []
        self.journal = journal

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        frozen = self.journal.exists() and '"kind": "ladder"' in self.journal.read_text()
        self.reads += [(frozen, int(i)) for i in indices]
        return super().inputs(indices)


@dataclasses.dataclass
class Certified:
    """A run with one rival, and what was seen meanwhile.

    Attributes:
        result: Result of the run.
        data: The data, which noted what was read.
        interim: Status, reason and certificate of each bundle that lay there before the certificate.
        early: Manifest of the bundle that lay there when the certificate was told.
        left_s: Time that was still to come, in seconds, when the certificate was told, by `NEEDS`.
        figures_s: The same when the first fresh round was told.
        decided: Manifest of the bundle that lay there when the decision was told, and its evidence's files.
    """

    result: Result
    data: Watched
    interim: set[tuple[Any, str, Any]]
    early: list[Manifest]
    left_s: float
    figures_s: float
    decided: list[tuple[Manifest, set[str]]]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("whole")
    data = Watched(samples(), folder / "b.hasten.work" / "journal.jsonl")
    interim: set[tuple[str, str, Any]] = set()
    early: list[Manifest] = []
    later_s: dict[str, float] = {}
    decided: list[tuple[Manifest, set[str]]] = []

    def look(progress: Progress) -> None:
        news = progress.news or ""
        if progress.stage in ("race", "certify") and not news:
            manifest = read(folder / "b.hasten")
            interim.add((manifest.status, manifest.why, manifest.certificate))
        if news.startswith("certified after"):
            early.append(read(folder / "b.hasten"))
            later_s["certified"] = progress.later_s or 0.0
        if progress.stage == "figures":
            later_s.setdefault("figures", progress.later_s or 0.0)
        if news.startswith("decided after"):
            evidence = {file.name for file in (folder / "b.hasten" / "evidence").iterdir()}
            decided.append((read(folder / "b.hasten"), evidence))

    with quick_runs(), patch.object(Spending, "plan", lambda _: NEEDS):
        result = optimize(folder, data=data, listen=look)
    times_s = later_s["certified"], later_s["figures"]
    return Certified(result, data, interim, early, *times_s, decided)


def test_a_faster_candidate_with_the_same_answers_is_certified(certified: Certified) -> None:
    result = certified.result
    assert result.status == "certified"
    assert result.speedup > 2
    assert result.why == ("95% confident that at most 5% of answers change (n=140: 0 changed)")
    manifest = read(result.bundle)
    assert manifest.status == "certified"
    assert manifest.exact is not None
    assert manifest.certificate is not None
    assert manifest.certificate["words"] == result.why
    left = sorted(p.name for p in result.bundle.parent.iterdir())
    assert left == ["b.hasten", "linear_classifier.onnx"]


def test_the_search_never_reads_the_sealed_data_and_certification_reads_it_once(
    certified: Certified,
) -> None:
    data = certified.data
    record = json.loads((certified.result.bundle / "evidence" / "sealed.json").read_text())
    by_hash = {data.content_hash(i).hex(): i for i in range(len(data))}
    sealed = {by_hash[content] for content in record["hashes"]}
    assert len(sealed) == 140
    before = {i for frozen, i in data.reads if not frozen}
    after = [i for frozen, i in data.reads if frozen]
    assert not before & sealed
    assert sorted(after) == sorted(sealed)


def test_an_interim_bundle_says_that_it_is_not_certified(certified: Certified) -> None:
    assert certified.interim == {
        (
            "uncertified",
            "the run has not finished: this is the fastest candidate so far, and it isn't "
            "certified; continue with --resume",
            None,
        )
    }


def test_what_is_certified_is_on_disk_before_it_is_timed_again(certified: Certified) -> None:
    (early,) = certified.early
    last = read(certified.result.bundle)
    assert early.why == (
        f"the run has not finished: {last.why}; it hasn't been timed again yet, so another model may "
        "still ship; continue with --resume"
    )
    assert (early.status, early.certificate, early.winner.label) == (
        "certified",
        last.certificate,
        last.winner.label,
    )


def test_the_bundle_of_what_is_certified_takes_no_time_from_the_fresh_rounds(
    certified: Certified,
) -> None:
    # It is written in the stage before theirs, whose limit keeps their time free.
    assert (certified.left_s, certified.figures_s) == (101.0, 1.0)


def test_what_ships_is_on_disk_with_its_certificate_as_soon_as_it_is_decided(
    certified: Certified,
) -> None:
    ((early, evidence),) = certified.decided
    last = read(certified.result.bundle)
    assert evidence == {"sealed.json", "trials.json"}
    assert dataclasses.replace(early, created=last.created, files=last.files) == last


@pytest.mark.parametrize(
    ("engine", "accept_uncertified"),
    [("WrongAndFast", False), ("WrongAndFast", True), ("ExactAndWrong", True)],
)
def test_a_fast_engine_with_wrong_answers_is_never_chosen(
    tmp_path: Path, engine: str, accept_uncertified: bool
) -> None:
    result = optimize(tmp_path, engine, max_drop=0.3, accept_uncertified=accept_uncertified)
    assert result.status == "exact"
    assert [row.role for row in result.rows] == ["default engine", "fastest exact"]
    assert read(tmp_path / "b.hasten").winner.engine["fault"] == "none"
    assert result.winner.role == "fastest exact"
    if engine == "ExactAndWrong":
        (why,) = failures(result).values()
        assert why.startswith("failed: its settings are exact, but its answers differ")


def test_an_engine_that_is_less_precise_than_its_settings_say_needs_a_certificate(
    tmp_path: Path,
) -> None:
    result = optimize(tmp_path, "ExactAndImprecise", max_drop=0.3)
    (said,) = (said for name, said in result.tried.items() if "60 steps" in name)
    assert re.search(r"x, exact settings, but [\d,]+ answers changed, ", said)
    assert result.status == "certified"
    assert read(result.bundle).winner.engine["steps"] == 60


def test_rivals_that_die_are_recorded_and_the_run_goes_on(certified_bundle: Path) -> None:
    assert read(certified_bundle).status == "certified"
    trials = json.loads((certified_bundle / "evidence" / "trials.json").read_text())
    reasons = {t["candidate"]["engine"]["fault"]: t["failure"] for t in trials}
    assert reasons == {
        "none": None,
        "kill": "its process was killed by SIGKILL during 'time'",
        "hang": "hung: no answer within 3 s, killed",
        "nan": "output 'logits' has NaN for sample 0",
        "build": "the faulty engine can't build, as it was told",
    }


def test_a_rival_that_takes_all_memory_loses_its_own_trial_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(Target.host(), memory_bytes=1 << 30)
    monkeypatch.setattr(Target, "host", lambda: small)
    result = optimize(tmp_path, "Greedy")
    (why,) = failures(result).values()
    assert why.startswith("failed: ran out of memory: it held ")
    assert result.status == "exact"


def test_where_nothing_certifies_the_exact_model_ships_and_the_bundle_says_why(
    tmp_path: Path,
) -> None:
    result = optimize(tmp_path, max_drop=0.01)
    assert result.status == "exact"
    assert result.notes[0] == NOT_ENOUGH
    assert result.why.endswith(
        "isn't certified: not enough data: 140 samples can't show that at most 1% of answers change; "
        "about 300 would"
    )
    assert [row.role for row in result.rows] == [
        "default engine",
        "fastest exact",
        "fastest uncertified",
    ]
    assert result.notes[1] == (
        "140 draws of the data were sealed, but 299 are needed: give about 641 samples in all, "
        "or allow a "
        "larger drop"
    )
    manifest = read(tmp_path / "b.hasten")
    assert (manifest.status, manifest.why) == ("exact", result.why)
    assert manifest.winner.engine["lossy"] is False


def test_the_fastest_ships_uncertified_only_when_asked_and_is_marked_so(tmp_path: Path) -> None:
    result = optimize(tmp_path, max_drop=0.01, accept_uncertified=True)
    manifest = read(tmp_path / "b.hasten")
    assert (result.status, manifest.status) == ("uncertified", "uncertified")
    assert manifest.certificate is None
    assert manifest.winner.engine["lossy"] is True
    assert manifest.why.startswith(
        "it ships without a certificate, as you allowed: the safest one, "
        f"{manifest.winner.label}, isn't certified: not enough data: "
    )
    assert result.winner.label == manifest.winner.label


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ("lost", "95% confident that at most 5% of inputs go from right to wrong"),
        ("changed", "95% confident that at most 5% of answers change (n=140: 0 changed)"),
    ],
)
def test_each_guard_bounds_what_it_says_and_one_of_rightness_how_right_the_original_is(
    tmp_path: Path, guard: str, words: str
) -> None:
    labels = original_answers(tmp_path)
    result = optimize(tmp_path, data=(samples(), labels), metric="top1", guard=guard)
    assert result.status == "certified"
    assert result.why.startswith(words)
    own = "the original's own accuracy is 100.0% on 60 samples of the search split"
    assert (own in result.notes) == (guard == "lost")


def test_an_original_that_is_wrong_is_questioned(tmp_path: Path) -> None:
    labels = (original_answers(tmp_path) + 1) % 4
    result = optimize(tmp_path, data=(samples(), labels), metric="top1")
    assert result.notes[-1] == (
        "the original's own accuracy is 0.0% on 60 samples of the search split; if you expected "
        "more, the labels or the preparation are wrong, and then any certificate is wrong too"
    )


def original_answers(folder: Path) -> Array:
    """The classes that the linear classifier itself gives the samples."""
    target = Target.host().with_threads(1)
    model = load(models.linear_classifier(folder)).settled_by({"x": samples()[0]})
    (folder / "built").mkdir()
    engine = OnnxRuntime()
    with engine.open(engine.build(model, target, folder / "built"), target) as session:
        answers = [session.run({"x": x[None]})["logits"].argmax() for x in samples()]
    shutil.rmtree(folder / "built")
    return np.array(answers)


def test_a_modules_own_preparation_is_not_claimed_for_arrays_that_somebody_prepared(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)).eval()
    module.pretrained_cfg = {"input_size": (3, 4, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert from_module(module) is not None
    x = np.random.default_rng(0).standard_normal((100, 3, 4, 4), np.float32)
    result = hasten.optimize(module, x, engines=("onnxruntime",), out=tmp_path / "b.hasten")
    assert read(result.bundle).pipeline is None
    assert not any(note.startswith("images were prepared") for note in result.notes)


def test_groups_are_the_draws_and_the_exact_model_can_be_left_out(tmp_path: Path) -> None:
    result = optimize(
        tmp_path,
        data={"x": samples(), "groups": np.repeat(np.arange(60), 5)},
        max_drop=0.3,
        keep_exact=False,
    )
    assert result.status == "certified"
    assert result.judgement is not None
    assert result.judgement.groups is not None
    assert result.judgement.groups <= 60
    assert read(tmp_path / "b.hasten").exact is None
    with pytest.raises(hasten.InputError) as caught:
        hasten.certify(tmp_path / "b.hasten", samples(seed=1))
    assert str(caught.value) == (
        f"{tmp_path / 'b.hasten'} was made with keep_exact=False: there is nothing to compare with"
    )


def test_a_time_limit_leaves_the_rest_untried_and_still_gives_a_bundle(tmp_path: Path) -> None:
    result = optimize(tmp_path, time_limit_s=1.0)
    assert result.status == "exact"
    said = ("the time limit left 1 of 2 candidates untried", "so nothing else was tried")
    assert any(note.endswith(said) for note in result.notes)  # the latter on a busy machine
    assert read(tmp_path / "b.hasten").status == "exact"


def test_the_score_may_be_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def score(outputs, labels):\n"
        "    return (np.argmax(outputs['logits'], 1) != labels).astype(float)\n"
    )
    result = optimize(
        tmp_path, data=(samples(), np.arange(300) % 4), metric=f"{tmp_path}/mine.py:score"
    )
    assert result.status == "certified"


def test_a_rival_whose_answers_get_no_score_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def score(outputs, labels, exact):\n"
        "    return np.where(outputs['logits'][:, 0] == exact['logits'][:, 0], 1, np.nan)\n"
    )
    metric = f"{tmp_path}/mine.py:score"
    result = optimize(tmp_path, "WrongAndFast", metric=metric)
    assert result.status == "exact"
    (why,) = failures(result).values()
    said, _, came = why.partition("; it was given the outputs ")
    assert said == (
        f"failed: its answers can't be scored: {metric} returned nan for sample 0 of 60; a score "
        "lies in [0, 1]"
    )
    assert re.fullmatch(r"logits float32 \[60, 4\] \(.*, \.\.\.\), and no labels", came)


def test_an_exact_bundle_answers_and_needs_no_warning(exact_bundle: Path) -> None:
    manifest = read(exact_bundle)
    assert manifest.status == "exact"
    x = samples(1)
    with hasten.load(exact_bundle) as fast:
        assert fast(x)["logits"].shape == (1, 4)


def test_uncertified_bundles_warn_when_loaded(exact_bundle: Path, tmp_path: Path) -> None:
    manifest = read(exact_bundle)
    inside = dataclasses.replace(
        manifest.winner.artifact, path=exact_bundle / manifest.winner.artifact.path
    )
    marked = dataclasses.replace(
        manifest,
        status="uncertified",
        why="not finished",
        winner=dataclasses.replace(manifest.winner, artifact=inside),
        exact=None,
    )
    bundle.write(tmp_path / "u.hasten", marked, {})
    with pytest.warns(NotCertifiedHere, match="^not certified here: not finished$"):
        hasten.load(tmp_path / "u.hasten").close()
