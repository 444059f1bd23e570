"""The whole way from a file's bytes to the decision, timed before and after, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.support.models import COLOUR, COLOURS
from tests.support.quick import quick_runs
from tests.support.servers import bundle_of

import hasten
from hasten.cli import main
from hasten.errors import CandidateError, InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.testing import models

SHORT = Pipeline(image_pipeline(8).steps, (TopK(1, COLOURS, softmax=False),))
LONG = Pipeline((*image_pipeline(640).steps[:2], *SHORT.steps[1:]))
WAY = ["decode, resize, center_crop", "normalize, to_layout", "model", "top_k"]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, in folders of classes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(2):
            pixels = random.integers(0, 255, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of colours, with its pipeline."""
    folder = tmp_path_factory.mktemp("colour")
    return bundle_of(folder, models.write(folder / "colour.onnx", COLOUR, {}), pipeline=SHORT)


def test_each_stage_of_both_ways_is_told_and_the_shares_are_of_the_whole(
    bundle: Path, photos: Path
) -> None:
    result = hasten.bench(bundle, data=photos, end_to_end=True, rounds=3)
    assert result.requests == f"4 files of {photos}"
    for stages in (result.stages, result.stages_against):
        assert [stage.name for stage in stages] == WAY
        assert sum(stage.share for stage in stages) == pytest.approx(1)
        assert all(0 < stage.p50_ns <= stage.p99_ns for stage in stages)


def test_a_file_that_can_not_be_answered_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as error:
        hasten.bench(bundle, data=tmp_path, end_to_end=True, rounds=3)
    assert str(error.value).startswith(
        f"the baseline failed: {tmp_path}/broken.png can't be answered: "
    )


def test_the_other_model_may_have_steps_of_its_own(bundle: Path, photos: Path) -> None:
    result = hasten.bench(bundle, data=photos, end_to_end=True, pipeline=LONG, rounds=3)
    assert [stage.name for stage in result.stages_against] == [
        "decode, resize",
        "resize, center_crop",
        *WAY[1:-1],
    ]
    assert result.speedup > 1


def test_a_function_does_the_whole_way_itself(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import io, time\nfrom PIL import Image\n"
        "def predict(raw):\n"
        "    time.sleep(0.005)\n"
        "    return [{'label': str(Image.open(io.BytesIO(raw)).size)}]\n"
    )
    function = f"{tmp_path}/mine.py:predict"
    result = hasten.bench(bundle, against=function, data=photos, end_to_end=True, rounds=3)
    assert result.speedup > 1
    assert (result.against.label, result.stages_against) == (function, ())


def test_the_command_prints_both_ways(bundle: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("size: 8\nresize: 32\n")
    command = ["bench", str(bundle), "--data", str(photos), "--end-to-end", "--pipeline", str(file)]
    done = CliRunner().invoke(main, command, standalone_mode=False)
    assert done.exception is None
    lines = done.output.splitlines()
    head = next(line for line in lines if line.startswith("stage"))
    assert "exact model p50" in head
    assert "bundle share" in head
    assert all(any(line.startswith(f"{stage}  ") for line in lines) for stage in WAY)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"end_to_end": True},
            "a comparison from bytes to decision needs the files that samples come in: give a folder "
            "as data; got None",
        ),
        (
            {"pipeline": SHORT},
            "pipeline= is for a comparison from bytes to decision: add end_to_end=True",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    bundle: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as error:
        hasten.bench(bundle, **options)  # type: ignore[arg-type]
    assert str(error.value) == words


def test_rows_lie_in_files_too(tmp_path: Path) -> None:
    columns = tuple(f"c{number}" for number in range(16))
    pipeline = Pipeline((Row(columns),), (TopK(1),))
    rows = bundle_of(tmp_path, models.linear_classifier(tmp_path), "rows", pipeline=pipeline)
    (tmp_path / "rows").mkdir()
    for number in range(3):
        row = dict.fromkeys(columns, float(number))
        (tmp_path / "rows" / f"{number}.json").write_text(json.dumps(row))
    result = hasten.bench(rows, data=tmp_path / "rows", end_to_end=True, rounds=3)
    assert [stage.name for stage in result.stages] == ["row", "model", "top_k"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        hasten.bench(rows, data=tmp_path / "empty", end_to_end=True)
    assert str(error.value) == f"{tmp_path / 'empty'} has no files"


def test_a_bundle_that_was_made_from_arrays_has_no_way_to_measure(
    exact_bundle: Path, photos: Path
) -> None:
    with pytest.raises(InputError) as error:
        hasten.bench(exact_bundle, data=photos, end_to_end=True)
    assert str(error.value) == (
        f"{exact_bundle} was made from arrays: it has no pipeline to measure"
    )


def test_a_file_that_cannot_be_read_is_named_as_the_models_failure(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises((InputError, CandidateError)) as error:
        hasten.bench(bundle, data=tmp_path, end_to_end=True, rounds=3)
    assert "image" in str(error.value)
    assert "\n" not in str(error.value)
