"""Runs from bytes to decision that decode pictures at a part of their size, where the certificate allows it."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.support.bundles import forge
from tests.support.models import CONVNET, built
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of
from tests.support.waiting import until

import hasten
from hasten.bundle.folder import read
from hasten.bundle.manifest import check_pipeline
from hasten.certificate.betting import BettingPrior
from hasten.certificate.verdict import judge
from hasten.cli import main
from hasten.core.model import Model
from hasten.core.progress import Progress
from hasten.core.records import to_record
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.evaluation.seen import Recheck
from hasten.inputs.chains.nodes import Model as ChainModel
from hasten.inputs.data.parts import Parts, lay_out
from hasten.inputs.pipeline.base import Origin, Pipeline, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.smaller import decoded_smaller, pixels_needed
from hasten.measure.candidate import Single
from hasten.measure.intervals import Ratio
from hasten.optimization.measured.decoding import Decoding, unused_decodings
from hasten.optimization.trials import Trials
from hasten.reporting.card import card
from hasten.reporting.evidence import gathered
from hasten.reporting.result import Result
from hasten.reporting.slides import slide
from hasten.reporting.summary import headline, summary

STEPS = (
    Decode(),
    Resize(18, "bilinear"),
    CenterCrop(16),
    Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ToLayout(),
)
PIPELINE = Pipeline(STEPS, (TopK(2),))
OPTIONS: dict[str, Any] = {
    "metric": "agreement",
    "max_drop": 0.2,
    "calibration": 20,
    "engines": ("onnxruntime",),
    "end_to_end": True,
    "pipeline": PIPELINE,
}


def photographs(folder: Path, side: int = 400, suffix: str = "jpg", count: int = 90) -> Path:
    """Write parts of scikit-learn's two photographs, each of another size."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        size = side - int(random.integers(0, side // 8))
        top, left = (int(random.integers(0, most - size)) for most in photo.shape[:2])
        part = Image.fromarray(photo[top : top + size, left : left + size])
        part.save(folder / f"{number:03}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return built(place, CONVNET)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    return photographs(place / "photos")


def smaller_is_faster(asked: Asked) -> Sequence[int]:
    """Latencies of the whole way, whatever else the machine does; those of models alone are their own."""
    pipeline = asked["engine"].get("pipeline")
    return () if pipeline is None else (600_000,) if pipeline["steps"][0]["least"] else (1_000_000,)


@pytest.fixture(scope="module")
def made(place: Path, model: Model, photos: Path) -> Result:
    with quick_runs(races=False, stages_s=0.1), nominal_times(smaller_is_faster):
        return hasten.optimize(model.path, photos, out=place / "bundle", **OPTIONS)


LEAST = 36  # twice what the resize needs


def scores_of(model: Model, pipeline: Pipeline, file: Path) -> list[float]:
    """Return the model's two best scores of a picture, as the pipeline decodes it, by ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(str(model.path))
    (scores,) = session.run(None, {"x": Pipeline(pipeline.steps)(file)[None]})
    return [one["score"] for one in TopK(2)({"y": scores[0]}, Origin())]


def scores_in(decision: Any) -> list[float]:
    return [one["score"] for one in decision]


@pytest.fixture(scope="module")
def smaller() -> Pipeline:
    found = decoded_smaller(PIPELINE, LEAST)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def told(photos: Path, model: Model, smaller: Pipeline) -> dict[Path, tuple[Any, Any]]:
    """Scores of some pictures, decoded smaller and whole: they differ by more than rounding does."""
    found = {}
    for file in sorted(photos.iterdir())[:4]:
        fast, whole = (scores_of(model, each, file) for each in (smaller, PIPELINE))
        assert max(abs(one - other) for one, other in zip(fast, whole, strict=True)) > 1e-4
        found[file] = pytest.approx(fast, abs=1e-5), pytest.approx(whole, abs=1e-5)
    return found


@pytest.mark.seconds
def test_what_ships_decodes_pictures_smaller_and_the_exact_model_whole(
    made: Result, told: dict[Path, tuple[Any, Any]]
) -> None:
    manifest = read(made.bundle)
    assert (manifest.status, manifest.least, manifest.requests > 0) == ("certified", LEAST, True)
    assert manifest.pipeline is not None
    assert manifest.pipeline.steps[0] == Decode()
    with hasten.load(made.bundle) as winner, hasten.load(made.bundle, which="exact") as exact:
        for file, (fast, whole) in told.items():
            for given in (file, file.read_bytes()):
                assert scores_in(winner.decide(given)) == fast
                assert scores_in(exact.decide(given)) == whole


def test_the_sealed_data_judged_the_pictures_as_they_ship(made: Result) -> None:
    """The model itself is the original, so that only the decoding can have moved an answer."""
    (rung,) = made.ladder
    assert rung.label == "original, ONNX Runtime, pictures decoded to 36 pixels or more"
    assert rung.judgement is not None
    assert rung.judgement.verdict == "certified"
    assert made.comparison is not None
    (line,) = made.comparison.in_words()
    assert line.endswith("is bit-equal in 0")
    assert made.tried[rung.label].startswith("raced from bytes to decision, ")


def test_the_words_of_the_result_the_report_and_the_bundle_say_how_pictures_are_decoded(
    made: Result,
) -> None:
    said = "JPEG files are decoded at an eighth of their size, as far as that leaves 36 pixels on the shorter side"
    (line,) = (line for line in summary(made) if line.startswith("Pictures: "))
    assert said in line
    assert "the exact model gets them decoded as stated, and the certificate counts" in line
    assert headline(made).endswith("x faster from bytes to decision, certified")
    page = (made.bundle / "report.html").read_text()
    assert said in page
    assert "1.67x" in page
    assert "1.00x" not in page.split("The figures")[0]
    shown = CliRunner().invoke(main, ["inspect", str(made.bundle)]).output
    assert "pictures:     JPEG files are decoded at a half, a quarter or an eighth" in shown
    stages = json.loads((made.bundle / "evidence" / "stages.json").read_text())
    assert stages["after"][0]["name"] == "decode, resize, center_crop"


def test_no_figure_contradicts_that_only_the_whole_way_is_faster(made: Result) -> None:
    shown = card(made)
    rows = dict(shown.rows)
    assert shown.title == "1.67x faster from bytes to decision, certified"
    assert rows["speed"].startswith("1.67x today's from bytes to decision (95% interval ")
    assert rows["pictures"] == made.decoded
    assert shown.bars == ()
    assert [
        one.spelled().startswith("decode(least=36) + onnxruntime(")
        for one in gathered(made.bundle).settings
    ] == [False, True]
    number = slide(gathered(made.bundle)).numbers[0]
    assert (number.figure, number.said) == (
        "1.67x",
        "as fast as today's model from bytes to decision",
    )


def test_certify_judges_the_pictures_as_they_ship_and_takes_no_arrays(
    made: Result, photos: Path
) -> None:
    outcome = hasten.certify(made.bundle, photos)
    assert isinstance(outcome, Recheck)
    assert outcome.kind == "regression check"
    assert outcome.judgement.verdict == "certified"
    assert outcome.comparison is not None
    (line,) = outcome.comparison.in_words()
    assert line.endswith("is bit-equal in 0")
    arrays = np.zeros((60, 16, 16, 3), np.uint8)
    with pytest.raises(InputError) as error:
        hasten.certify(made.bundle, arrays)
    assert str(error.value) == (
        "the bundle decodes JPEG files smaller for the model that ships, and its certificate counts what that "
        "changes: give a folder of image files, since arrays can't show it"
    )


@dataclass(frozen=True)
class Opened(Step):
    """A step of a stranger, which opens image files by Pillow."""

    def __call__(self, value: Any) -> Any:
        return np.asarray(Image.open(value).convert("RGB"))


def test_certify_says_what_a_pipeline_lacks_that_cant_decode_smaller(
    made: Result, photos: Path
) -> None:
    with pytest.raises(InputError) as error:
        hasten.certify(made.bundle, photos, pipeline=Pipeline((Opened(), *STEPS[1:])))
    assert str(error.value) == (
        "the bundle decodes JPEG files smaller for the model that ships, and its certificate counts what that "
        "changes: give a pipeline that begins with decode, since no other step can decode files smaller"
    )


@pytest.mark.seconds
def test_a_comparison_from_bytes_to_decision_decodes_for_each_model(
    made: Result, photos: Path
) -> None:
    with quick_runs(), nominal_times(smaller_is_faster):
        found = hasten.bench(made.bundle, data=photos, end_to_end=True)
    assert found.bundle.ratio.estimate == pytest.approx(0.6, abs=0.01)


def test_a_chain_decodes_a_picture_once_as_the_pipelines_state(
    made: Result, told: dict[Path, tuple[Any, Any]]
) -> None:
    with hasten.chain([ChainModel("photo", str(made.bundle))]) as chain:
        for file, (_, whole) in told.items():
            assert scores_in(chain.decide(file)) == whole


def test_a_server_decodes_for_the_model_that_answers(
    made: Result, told: dict[Path, tuple[Any, Any]]
) -> None:
    """As before and after a crash, and where the exact model takes over while a request is under way."""
    places = place_of(made.bundle, "fast"), place_of(made.bundle, "exact", which="exact")
    with ServerThread(*places) as server:
        for file, (fast, whole) in told.items():
            assert scores_in(asked(server, "fast", file)) == fast
            assert scores_in(asked(server, "exact", file)) == whole
    (file, (fast, whole)), *_ = told.items()
    with ServerThread(place_of(made.bundle, "fast", standby=True)) as server:
        served: Any = server.server.state.repository.find("fast")
        prepared, counted = served.deciding._prepared, []

        def falls_back_then(ticket: Any, samples: list[bytes]) -> Any:
            counted.append(served.answers)
            found = prepared(ticket, samples)
            served.take_over()
            return found

        assert scores_in(asked(server, "fast", file)) == fast
        with patch.object(served.deciding, "_prepared", falls_back_then):
            assert scores_in(asked(server, "fast", file)) == whole
        assert counted == ["winner", "exact"]
        assert scores_in(asked(server, "fast", file)) == whole
        assert served.deciding.idle
        assert served.deciding._prepared_bytes == 0


def test_the_monitor_compares_with_the_exact_model_on_pictures_decoded_for_it(
    made: Result, model: Model, smaller: Pipeline, told: dict[Path, tuple[Any, Any]], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"shadow": 1.0, "monitor_state": str(tmp_path)}
    with ServerThread(place_of(made.bundle, "fast", **settings)) as server:
        watch: Any = server.server.state.repository.find("fast").watch
        seen: list[tuple[Any, Any]] = []
        audit = watch.audit

        def audited(inputs: Any, outputs: Any, exact: Any, name: str) -> bool:
            seen.append((outputs, exact))
            return bool(audit(inputs, outputs, exact, name))

        with patch.object(watch, "audit", audited):
            for count, (file, (fast, whole)) in enumerate(told.items(), 1):
                asked(server, "fast", file)
                until(lambda count=count: watch.audited == count)  # type: ignore[misc]
                both = (TopK(2)({"y": each["y"][0]}, Origin()) for each in seen[-1])
                assert [scores_in(each) for each in both] == [fast, whole]


def asked(server: ServerThread, model: str, file: Path) -> Any:
    """Return the decision on a picture that is sent as a plain body."""
    client = http.client.HTTPConnection(server.host, timeout=120)
    kind = {"Content-Type": "image/jpeg"}
    client.request("POST", f"/v2/models/{model}/infer", file.read_bytes(), kind)
    answer = json.loads(client.getresponse().read())
    client.close()
    return answer["decision"]


@pytest.mark.seconds
def test_a_decoding_that_loses_too_much_in_the_search_isnt_judged(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "metric": "regression:0.0001"}
    with quick_runs(races=False, stages_s=0.1), nominal_times(smaller_is_faster):
        result = hasten.optimize(model.path, photos, out=tmp_path / "bundle", **options)
    assert (result.status, result.ladder, read(result.bundle).least) == ("exact", (), 0)
    (note,) = (note for note in result.notes if note.startswith("JPEG files could be decoded"))
    assert "this took 0.60 times as long" in note
    assert note.endswith("but on the search split it loses 100.00%, over the limit")


@pytest.mark.seconds
def test_the_fastest_model_gets_the_smaller_pictures_after_it_was_tested_on_whole_ones(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    def faster(asked: Asked) -> Sequence[int]:
        if found := smaller_is_faster(asked):
            return found
        nodes = onnx.load(asked["artifact"]["path"]).graph.node
        return (10_000,) if "QuantizeLinear" in {node.op_type for node in nodes} else (40_000,)

    options = {**OPTIONS, "passes": ("static_quantization",), "effort": "quick"}
    with (
        quick_runs(races=False, passes=True, stages_s=0.1),
        nominal_times(faster),
    ):
        result = hasten.optimize(model.path, photos, out=tmp_path / "bundle", **options)
    whole, fast = result.ladder[-2:]
    assert fast.label == f"{whole.label}, pictures decoded to 36 pixels or more"
    assert fast.label.startswith("int8")
    manifest = read(result.bundle)
    assert (manifest.winner.label, manifest.least) == (fast.label, LEAST)
    assert manifest.exact is not None
    assert manifest.exact.label == "original, ONNX Runtime"
    assert headline(result).endswith("x faster, certified")


@pytest.mark.seconds
def test_a_decoding_that_would_probably_not_be_certified_takes_no_look_at_the_sealed_data(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    """Two of the 21 answers to the search split change, which is under the limit of 20%, with 49 sealed pictures."""
    scored = Trials.scores

    def two_change(self: Trials, opened: Any, same: Any = None, samples: Any = None) -> Any:
        scores = scored(self, opened, same, samples)
        return scores if samples is None else (0.0, 0.0, *scores[2:])

    with (
        quick_runs(races=False, stages_s=0.1),
        nominal_times(smaller_is_faster),
        patch.object(Trials, "scores", two_change),
    ):
        result = hasten.optimize(model.path, photos, out=tmp_path / "bundle", **OPTIONS)
    assert (result.status, result.ladder, read(result.bundle).least) == ("exact", (), 0)
    (note,) = (note for note in result.notes if note.startswith("JPEG files could be decoded"))
    assert note.endswith(
        "but on the search split it loses 9.52%, so that the sealed data would probably not certify it"
    )


@pytest.mark.seconds
def test_no_decoding_is_tried_that_the_sealed_data_are_too_few_to_certify(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "max_drop": 0.05}
    with quick_runs(races=False, stages_s=0.1), nominal_times(smaller_is_faster):
        result = hasten.optimize(model.path, photos, out=tmp_path / "bundle", **options)
    assert (result.status, result.ladder, read(result.bundle).least) == ("exact", (), 0)
    assert any(note.startswith("49 sealed samples can't show") for note in result.notes)
    assert (
        "pictures are decoded as the pipeline states: the sealed data are too few to certify another decoding, "
        "even if it changes nothing"
    ) in result.notes


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        (40, "it isn't certified: not accurate enough: "),
        ("it crashed", "it failed and couldn't be tested: it crashed"),
        (0, "it doesn't ship"),
        (None, "it doesn't ship"),
    ],
)
def test_a_note_says_why_a_decoding_that_was_tested_doesnt_ship(lost: Any, why: str) -> None:
    model = Single((), OnnxRuntime())
    smaller = replace(model, least=LEAST)
    known = {one.key: one for one in (model, smaller)}
    raced = Decoding(LEAST, Ratio(0.6, 0.5, 0.7, 8), {"8": 41}, wins=True)
    racing: Any = SimpleNamespace(
        job=SimpleNamespace(
            journal=SimpleNamespace(last=lambda kind: {"why": "", "raced": [to_record(raced)]})
        ),
        candidate=known.__getitem__,
    )
    entry: Any = lost
    if isinstance(lost, int):
        scores = (np.arange(400) >= lost).astype(np.float64)
        entry = judge(
            np.ones(400),
            scores,
            guard="net",
            max_drop=0.02,
            confidence=0.95,
            metric="agreement",
            prior=BettingPrior(),
        )
    verdicts = [] if entry is None else [(smaller.key, entry)]
    (note,) = unused_decodings(racing, model.key, verdicts)
    assert f"JPEG files could be decoded {raced.words}, but {why}" in note


@pytest.mark.seconds
def test_no_picture_is_decoded_again_where_that_cant_be_certified_in_time(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    """Of 90 pictures, 21 are in the search split and 49 are sealed.

    With 4 s a picture and a margin of 1.3, it takes 255 s to read the sealed ones once, and 619 s to decode both
    parts once more.
    """
    raced: list[str] = []

    def slowly_read(*args: Any, **options: Any) -> Parts:
        return replace(lay_out(*args, **options), read_s=4.0)

    with (
        quick_runs(races=False, stages_s=0.1),
        nominal_times(smaller_is_faster),
        patch("hasten.optimization.preparation.lay_out", slowly_read),
    ):
        result = hasten.optimize(
            model.path,
            photos,
            out=tmp_path / "bundle",
            listen=lambda progress: raced.append(progress.doing),
            time_limit_s=600.0,
            **OPTIONS,
        )
    assert (result.status, result.ladder, read(result.bundle).least) == ("exact", (), 0)
    assert "answering the search split, decoded smaller" not in raced
    (note,) = (note for note in result.notes if note.startswith("JPEG files could be decoded"))
    assert note.endswith("but the time limit left no time to certify it")


@pytest.mark.seconds
@pytest.mark.parametrize("stage", ["certify", "figures"])
def test_a_resumed_run_ships_the_decoding_that_it_tried_before(
    stage: str, model: Model, photos: Path, tmp_path: Path
) -> None:
    """Stopped before its ladder was frozen, it races again; it answers the search split once in any case."""

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise StopError

    raced: list[str] = []

    def run(listen: Any, **more: Any) -> Result:
        options = {**OPTIONS, "out": tmp_path / "bundle", **more}
        with quick_runs(races=False, stages_s=0.1), nominal_times(smaller_is_faster):
            return hasten.optimize(model.path, photos, listen=listen, **options)

    with pytest.raises(StopError):
        run(stop)
    result = run(lambda progress: raced.append(progress.doing), resume=True)
    assert ("racing smaller decodings, from bytes to decision" in raced) is (stage == "certify")
    assert "answering the search split, decoded smaller" not in raced
    assert (result.status, read(result.bundle).least) == ("certified", LEAST)
    assert "this took 0.60 times as long" in result.decoded


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("side", "suffix", "steps", "why"),
    [
        (100, "png", STEPS, "only 0 of 41 files that were looked at are JPEG files of at least twice the size"),
        (34, "jpg", STEPS, "only 0 of 41 files that were looked at are JPEG files of at least twice the size"),
        (100, "jpg", (Decode(least=20), *STEPS[1:]), "the pipeline says itself that pictures are decoded smaller"),
        (100, "jpg", (STEPS[0], *STEPS[2:]), "it doesn't scale pictures to one size right after decode"),
    ],
)  # fmt: skip
def test_where_no_decoding_is_worth_a_race_a_note_says_why(
    side: int, suffix: str, steps: tuple[Any, ...], why: str, model: Model, tmp_path: Path
) -> None:
    data = photographs(tmp_path / "photos", side, suffix)
    options = {**OPTIONS, "pipeline": Pipeline(steps, (TopK(2),))}
    with quick_runs(races=False, stages_s=0.1):
        result = hasten.optimize(model.path, data, out=tmp_path / "bundle", **options)
    assert (result.status, result.decoded, read(result.bundle).least) == ("exact", "", 0)
    (note,) = (note for note in result.notes if note.startswith("pictures are decoded as"))
    assert note.startswith(f"pictures are decoded as the pipeline states: {why}")


def test_a_bundle_of_an_older_version_decodes_as_its_pipeline_says(
    made: Result, told: dict[Path, tuple[Any, Any]], tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(made.bundle, older)
    forge(older, lambda record: record.pop("least"))
    with hasten.load(older) as winner:
        for file, (_, whole) in told.items():
            assert scores_in(winner.decide(file)) == whole


@pytest.mark.parametrize("least", [-1, 36])
def test_a_manifest_that_decodes_smaller_what_it_doesnt_decode_is_refused(
    least: int, made: Result
) -> None:
    manifest = read(made.bundle)
    assert manifest.pipeline is not None
    steps = manifest.pipeline.steps[1:] if least > 0 else manifest.pipeline.steps
    wrong = replace(manifest, least=least, pipeline=Pipeline(steps, manifest.pipeline.after))
    with pytest.raises(InputError, match=r"^it decodes pictures to -?[0-9]+ pixels or more, but"):
        check_pipeline(wrong)


@pytest.mark.parametrize(
    ("steps", "needed"),
    [
        (STEPS, 18),
        ((Decode(), Resize((240, 320))), 320),
        ((Decode(), Letterbox((480, 640))), 640),
        ((Decode(), CenterCrop(224)), 0),
        ((Decode(),), 0),
        ((Resize(18),), 0),
    ],
)
def test_what_the_step_after_decode_needs(steps: tuple[Any, ...], needed: int) -> None:
    assert pixels_needed(Pipeline(steps)) == needed
