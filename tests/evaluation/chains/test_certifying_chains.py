"""A chain's own decisions against those of its exact models: the verdict, and where it is kept."""

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tests.support import chains
from tests.support.bundles import built, stated

import hasten
from hasten import bundle
from hasten.bundle import write
from hasten.bundle.chains.certificate import certificate_file, kept_certificate
from hasten.bundle.chains.opened import check_chain
from hasten.cli import main
from hasten.core.records import file_digest
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.evaluation.chain_samples import _opened
from hasten.evaluation.chains import certify_chain
from hasten.inputs.chains import chain_of as read_chain
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.base import Step
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.multi_label import MultiLabel

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures with a square each: every 12th is red, the others are green."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(120):
        colour = "green" if number % 12 else "red"
        picture = chains.squares({(number % 8, number // 15): colour})
        picture[:2, :2] = number  # so that no two are alike
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


def chain_of(folder: Path, winner: Any, seen: Any = (), **fields: Any) -> str:
    """Write a detector and a classifier whose winner has other weights than its exact model."""
    record = {"hashes": list(seen), "seen": [], "groups": []}
    det = chains.detector(folder, evidence={"sealed.json": record})
    colour = chains.classifier(folder, winner=winner, evidence={"sealed.json": record}, **fields)
    return f"{det}+crop+{colour}"


SAME = np.eye(3)


def test_a_chain_that_decides_as_its_exact_models_is_certified(
    tmp_path: Path, pictures: Path
) -> None:
    chain = chain_of(tmp_path, 2 * SAME)
    checked = certify_chain(chain, pictures, max_drop=0.05)
    assert checked.passed
    assert (checked.kind, checked.used, checked.judgement.guard) == ("fresh data", 120, "changed")
    # Clopper and Pearson's bound without a change among 120: 1 - 0.05 ** (1 / 120).
    assert checked.judgement.bound == pytest.approx(1 - 0.05 ** (1 / 120), rel=1e-3)
    assert "95% confident that at most 5% of answers change (n=120: 0 changed)" in (
        checked.in_words()
    )


@dataclass(frozen=True)
class OwnReader(Step):
    """A user's own step in place of `decode`."""

    def __call__(self, value: Any) -> Any:
        return Decode()(value)


def test_pictures_that_an_own_step_reads_are_known_by_their_files(
    tmp_path: Path, pictures: Path
) -> None:
    manifest = bundle.read(chains.detector(tmp_path))
    assert manifest.pipeline is not None
    own = replace(manifest.pipeline, steps=(OwnReader(), *manifest.pipeline.steps[1:]))
    values, samples = _opened(pictures, replace(manifest, pipeline=own))
    as_in_a_run = open_data(pictures, manifest.winner.artifact.inputs, own)
    assert len(values) == len(samples) == 120
    assert samples.content_hash(7) == as_in_a_run.content_hash(7)


def test_a_model_that_no_step_reads_for_begins_no_chain(tmp_path: Path, pictures: Path) -> None:
    manifest = bundle.read(chains.detector(tmp_path))
    assert manifest.pipeline is not None
    bare = replace(manifest, pipeline=replace(manifest.pipeline, steps=()))
    with pytest.raises(InputError, match=r"^the chain's first model has no steps before it"):
        _opened(pictures, bare)


def test_a_chain_whose_reader_changed_too_much_is_not(tmp_path: Path, pictures: Path) -> None:
    chain = chain_of(tmp_path, np.roll(SAME, 1, axis=1))
    checked = certify_chain(chain, pictures, max_drop=0.05)
    assert not checked.passed
    assert checked.judgement.lost == 120


def test_a_chain_that_loses_a_second_label_is_not_certified(tmp_path: Path, pictures: Path) -> None:
    """Both models name green first; only the exact one names red, which holds from 0 on, as well."""
    several = MultiLabel((0.0, 0.5, 0.5), chains.COLOURS, sigmoid=False)
    winner = np.array([[1, 0, 0], [-0.5, 1, 0], [0, 0, 1]])
    chain = chain_of(tmp_path, winner, after=(several,))
    checked = certify_chain(chain, pictures, max_drop=0.05)
    assert not checked.passed
    assert checked.judgement.lost == 110  # every picture with a green square


def test_pictures_that_a_bundle_of_the_chain_was_made_with_are_left_out(
    tmp_path: Path, pictures: Path
) -> None:
    seen = [file_digest(path) for path in sorted(pictures.iterdir())[:20]]
    checked = certify_chain(chain_of(tmp_path, SAME, seen), pictures, max_drop=0.05)
    assert (checked.used, checked.left_out) == (100, 20)
    assert "20 samples were left out" in checked.in_words()


def test_frames_of_one_film_count_as_one_draw(tmp_path: Path, pictures: Path) -> None:
    films = Path(shutil.copytree(pictures, tmp_path / "films"))
    lines = [f"{path.name},film{n // 4}" for n, path in enumerate(sorted(pictures.iterdir()))]
    (films / "groups.csv").write_text("\n".join(lines))
    checked = certify_chain(chain_of(tmp_path, SAME), films, max_drop=0.2)
    assert checked.judgement.groups == 30


def test_the_command_certifies_a_chain_and_says_what_it_needs(
    tmp_path: Path, pictures: Path
) -> None:
    chain = chain_of(tmp_path, SAME)
    run = CliRunner().invoke(main, ["certify", chain, "--data", str(pictures), "--max-drop", "5%"])
    assert (run.exit_code, "95% confident" in run.output) == (0, True), run.output
    run = CliRunner().invoke(
        main, ["certify", chain, "--data", str(pictures), "--max-drop", "5%", "--json"]
    )
    assert json.loads(run.output)["judgement"]["lost"] == 0
    run = CliRunner().invoke(main, ["certify", chain, "--data", str(pictures)])
    assert run.exit_code == 2
    assert (
        run.output == "hasten: a chain has no certificate and therefore no limit: give --max-drop\n"
    )
    for more in (("--guard", "net"), ("--mean-over", "groups")):
        run = CliRunner().invoke(
            main, ["certify", chain, "--data", str(pictures), "--max-drop", "5%", *more]
        )
        assert run.exit_code == 2
        assert "a chain is compared with the chain of its exact models" in run.output


def test_a_chain_without_exact_models_can_not_be_certified(tmp_path: Path, pictures: Path) -> None:
    chain_of(tmp_path, SAME)
    (tmp_path / "again").mkdir()
    part = built(tmp_path / "again", tmp_path / "det-exact" / "det.onnx", OnnxRuntime(threads=1))
    path = tmp_path / "alone.hasten"
    steps = chains.pipeline_of(32, (chains.BOXES,))
    record: dict[str, list[str]] = {"hashes": [], "seen": [], "groups": []}
    write(path, stated(part, None, pipeline=steps), {"sealed.json": record})
    with pytest.raises(InputError) as error:
        certify_chain(f"{path}+crop+{tmp_path / 'colour.hasten'}", pictures, max_drop=0.05)
    assert str(error.value) == (
        f"alone: {path} was made with keep_exact=False: it contains no exact model"
    )


def as_file(folder: Path, **crop: Any) -> Path:
    """Write the chain of a detector and a classifier into a file beside their bundles."""
    nodes = {
        "det": {"model": "det.hasten"},
        "crop": {"crop": "det", **crop},
        "colour": {"model": "colour.hasten", "source": "crop"},
    }
    (folder / "chain.yaml").write_text(yaml.safe_dump(nodes))
    return folder / "chain.yaml"


def certified(chain: Any) -> str:
    """Open a chain, and return the sentence of its own certificate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with hasten.chain(chain) as opened:
            return opened.certified


def why_not(file: Path) -> str:
    """Return why the certificate that is kept for a chain doesn't hold."""
    chain = read_chain(file)
    kept, lapse = kept_certificate(certificate_file(file), chain, check_chain(chain))
    assert (kept is None) is bool(lapse)
    return lapse


SAID = "95% confident that at most 5% of answers change (n=120: 0 changed)"


def test_a_certificate_is_kept_beside_the_chain_and_holds_while_nothing_changes(
    tmp_path: Path, pictures: Path
) -> None:
    chain_of(tmp_path, SAME)
    file = as_file(tmp_path)
    assert certified(file) == ""
    checked = certify_chain(file, pictures, max_drop=0.05)
    assert certified(file) == ""
    assert checked.keep() == tmp_path / "chain.certificate.json"
    assert (certified(file), why_not(file)) == (SAID, "")
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert certified(tmp_path.parent / "moved" / "chain.yaml") == SAID

    as_file(tmp_path, margin=0.1)
    assert certified(file) == ""
    assert why_not(file) == "its certificate is of another chain: crop changed since"
    as_file(tmp_path)
    (tmp_path / "new").mkdir()
    other = chains.classifier(tmp_path / "new", winner=np.roll(SAME, 1, axis=1))
    shutil.rmtree(tmp_path / "colour.hasten")
    other.rename(tmp_path / "colour.hasten")
    assert certified(file) == ""
    assert why_not(file) == "its certificate is of another chain: colour changed since"


def test_a_kept_certificate_is_of_one_machine_and_a_damaged_one_is_none(
    tmp_path: Path, pictures: Path
) -> None:
    chain_of(tmp_path, SAME)
    file = as_file(tmp_path)
    kept = certify_chain(file, pictures, max_drop=0.05).keep()
    record = json.loads(kept.read_text())
    here = record["machines"]["det"]["target"]["processor"]
    record["machines"]["det"]["target"]["processor"] = "Another"
    kept.write_text(json.dumps(record))
    assert certified(file) == ""
    assert why_not(file) == f"not certified here: det: processor: Another there, {here} here"
    del record["machines"]["det"]
    kept.write_text(json.dumps(record))
    assert why_not(file) == "its certificate doesn't say on which machine det answered"
    for text, reason in (
        ("{", "Expecting property name"),
        ("[]", "it has the schema None, this version reads 1"),
        (json.dumps({"schema": 2}), "it has the schema 2, this version reads 1"),
        (json.dumps({"schema": 1}), "missing"),
        (" " * (1 << 20) + "{}", "it has more than 1,048,576 bytes"),
    ):
        kept.write_text(text)
        assert certified(file) == ""
        assert why_not(file).startswith(f"{kept} can't be read as a chain's certificate: ")
        assert reason in why_not(file)


def test_the_certificate_of_a_line_is_kept_in_the_first_bundles_folder(
    tmp_path: Path, pictures: Path
) -> None:
    line = chain_of(tmp_path, SAME)
    options = ["--data", str(pictures), "--max-drop", "5%", "--keep"]
    run = CliRunner().invoke(main, ["certify", line, *options])
    kept = tmp_path / "det.hasten+crop+colour.hasten.certificate.json"
    assert (run.exit_code, run.output.splitlines()[-1]) == (0, f"certificate: {kept}"), run.output
    assert certified(line) == SAID
    run = CliRunner().invoke(main, ["certify", str(tmp_path / "det.hasten"), *options])
    assert (run.exit_code, run.output) == (
        2,
        "hasten: --keep is for a chain: a bundle contains its certificate, and no test changes it\n",
    )


def test_nothing_is_kept_of_a_test_that_proves_nothing(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "state"))
    line = chain_of(tmp_path, SAME)
    assert certify_chain(line, pictures, max_drop=0.05).passed
    again = certify_chain(line, pictures, max_drop=0.05)
    assert again.kind == "regression check"
    with pytest.raises(InputError) as error:
        again.keep()
    assert str(error.value) == (
        "there is no certificate to keep, because these samples gave the same answers in an earlier "
        "test: test with new ones"
    )
    options = ["--data", str(pictures), "--max-drop", "5%", "--keep"]
    run = CliRunner().invoke(main, ["certify", line, *options])
    assert run.exit_code == 0
    assert run.output.splitlines()[-1] == (
        "note: no certificate is kept, because these samples gave the same answers in an earlier test: "
        "test with new ones"
    )
    (tmp_path / "worse").mkdir()
    worse = chain_of(tmp_path / "worse", np.roll(SAME, 1, axis=1))
    with pytest.raises(InputError) as error:
        certify_chain(worse, pictures, max_drop=0.05).keep()
    assert str(error.value) == "there is no certificate to keep, because the limit doesn't hold"
    assert not list(tmp_path.rglob("*.certificate.json"))


def test_a_chain_without_a_place_keeps_no_certificate(tmp_path: Path, pictures: Path) -> None:
    nodes = read_chain(chain_of(tmp_path, SAME))
    with pytest.raises(InputError) as error:
        certify_chain(nodes, pictures, max_drop=0.05).keep()
    assert str(error.value) == (
        "only the certificate of a chain that is given as a file or a line is kept beside it: a bundle "
        "contains its own, and no test changes it"
    )
    options = ["--data", str(pictures), "--max-drop", "5%", "--keep"]
    run = CliRunner().invoke(main, ["certify", "none/chain.yaml", *options])
    assert (run.exit_code, run.output) == (
        2,
        "hasten: can't write none/chain.certificate.json: its folder isn't there, or isn't yours to "
        "write to\n",
    )
