"""A chain's own decisions against those of its exact models: how they are compared, and the verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.support import chains
from tests.support.bundles import built, stated

from hasten.bundle import write
from hasten.cli import main
from hasten.core.records import file_digest
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.evaluation.chains import certify_chain
from hasten.evaluation.decisions import agrees


def box(
    x: float, what: str = "plate", text: Any = "AB 1", size: float = 10, score: float = 0.9
) -> dict[str, Any]:
    return {"box": [x, 0, x + size, 10], "class": 0, "label": what, "score": score, "text": text}


CAT = [{"class": 1, "label": "cat", "score": 0.6}, {"class": 2, "label": "dog", "score": 0.4}]
DOG = CAT[::-1]


@pytest.mark.parametrize(
    ("mine", "exact", "same"),
    [
        ([box(0), box(50)], [box(50), box(0)], True),
        ([box(0, score=0.3)], [box(2)], True),
        ([box(0)], [box(4)], False),  # IoU 6 / 14
        ([box(0)], [box(0), box(50)], False),
        ([box(0, "car")], [box(0)], False),
        ([box(0, text="AB 7")], [box(0)], False),
        ([box(0, text=None)], [box(0)], False),
        ([box(0), box(1, text="CD")], [box(1, text="CD"), box(0)], True),
        ([box(0, text=CAT)], [box(0, text=DOG)], False),
        ([box(0), box(0)], [box(0), box(50)], False),
        ([], [], True),
        ([], [box(0)], False),
        (CAT, [{**CAT[0], "score": 0.99}], True),
        (CAT, DOG, False),
        ([], CAT, False),
        ({"kind": CAT, "read": None}, {"kind": CAT, "read": None}, True),
        ({"kind": CAT, "read": None}, {"kind": CAT, "read": "x"}, False),
        ({"age": 41.0}, {"age": 40.0}, True),
        ({"age": 45.0}, {"age": 40.0}, False),
        ("AB 1", "AB 1", True),
    ],
)
def test_decisions_agree_where_whoever_acts_on_them_does_the_same(
    mine: Any, exact: Any, same: bool
) -> None:
    assert agrees(mine, exact) is same
    assert agrees(exact, mine) is same


def test_decisions_made_of_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="a decision that consists of arrays can't be compared"):
        agrees({"y": np.zeros(3)}, {"y": np.zeros(3)})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """120 pictures with a square each: every 12th is red, the others are green."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(120):
        colour = "green" if number % 12 else "red"
        picture = chains.squares({(number % 8, number // 15): colour})
        picture[:2, :2] = number  # so that no two are alike
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


def chain_of(folder: Path, winner: Any, seen: Any = ()) -> str:
    """Write a detector and a classifier whose winner has other weights than its exact model."""
    record = {"hashes": list(seen), "seen": [], "groups": []}
    det = chains.detector(folder, evidence={"sealed.json": record})
    colour = chains.classifier(folder, winner=winner, evidence={"sealed.json": record})
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


def test_a_chain_whose_reader_changed_too_much_is_not(tmp_path: Path, pictures: Path) -> None:
    chain = chain_of(tmp_path, np.roll(SAME, 1, axis=1))
    checked = certify_chain(chain, pictures, max_drop=0.05)
    assert not checked.passed
    assert checked.judgement.lost == 120


def test_pictures_that_a_bundle_of_the_chain_was_made_with_are_left_out(
    tmp_path: Path, pictures: Path
) -> None:
    seen = [file_digest(path) for path in sorted(pictures.iterdir())[:20]]
    checked = certify_chain(chain_of(tmp_path, SAME, seen), pictures, max_drop=0.05)
    assert (checked.used, checked.left_out) == (100, 20)
    assert "20 samples were left out" in checked.in_words()


def test_frames_of_one_film_count_as_one_draw(tmp_path: Path, pictures: Path) -> None:
    lines = [f"{path.name},film{n // 4}" for n, path in enumerate(sorted(pictures.iterdir()))]
    (pictures / "groups.csv").write_text("\n".join(lines))
    checked = certify_chain(chain_of(tmp_path, SAME), pictures, max_drop=0.2)
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
    run = CliRunner().invoke(
        main, ["certify", chain, "--data", str(pictures), "--max-drop", "5%", "--guard", "net"]
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
