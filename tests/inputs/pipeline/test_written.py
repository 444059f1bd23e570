from pathlib import Path

import pytest

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, PostStep, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import from_yaml
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox


def written(folder: Path, text: str) -> Pipeline:
    path = folder / "pipeline.yaml"
    path.write_text(text)
    return from_yaml(path)


def test_each_step_is_a_name_or_a_name_with_its_settings(tmp_path: Path) -> None:
    pipeline = written(
        tmp_path,
        """
        before:
          - decode: {least: 640}
          - letterbox: [480, 640]
          - resize: {size: 32, interpolation: bilinear}
          - center_crop: 24
          - normalize: {mean: [0, 0, 0], std: [1, 1, 1]}
          - to_layout
        after:
          - top_k: 5
        """,
    )
    assert pipeline == Pipeline(
        (
            Decode(least=640),
            Letterbox((480, 640)),
            Resize(32, "bilinear"),
            CenterCrop(24),
            Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            ToLayout(),
        ),
        (TopK(5),),
    )


def test_labels_are_read_from_a_file_beside_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nfür\n", encoding="utf-8")
    text = "before: [decode]\nafter: [{top_k: {count: 2, labels: names.txt}}]"
    assert written(tmp_path, text).after == (TopK(2, ("cat", "dog", "für")),)
    text = "before: [decode]\nafter: [{top_k: {labels: [cat, dog]}}]"
    assert written(tmp_path, text).after == (TopK(1, ("cat", "dog")),)


def test_steps_after_the_model_go_with_the_short_form_too(tmp_path: Path) -> None:
    pipeline = written(tmp_path, "size: 8\nafter: [top_k]")
    assert pipeline.steps[1] == Resize(8)
    assert pipeline.after == (TopK(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("before: decode", "'decode' isn't a list of steps: write each one after a dash"),
        ("before: [3]", "3 isn't a step: write its name, or `name: settings`"),
        (
            "before: [{decode: {}, resize: 8}]",
            "{'decode': {}, 'resize': 8} isn't a step: write its name, or `name: settings`",
        ),
        ("before: [blur]", f"there is no step 'blur'; there are {', '.join(Step.registry)}"),
        (
            "before: [decode]\nafter: [decode]",
            f"there is no step after the model 'decode'; there are {', '.join(PostStep.registry)}",
        ),
        (
            "before: [{resize: {width: 8}}]",
            "resize has no setting width; there are size, interpolation",
        ),
        ("before: [resize]", "resize: Object missing required field `size`"),
        ("before: [{resize: {size: 8, interpolation: 3}}]", "resize: Expected `str`, got `int`"),
        ("before: [{letterbox: {size: 8, fill: 300}}]", "letterbox.fill=300: give a number from 0"),
        (
            "before: [decode]\nsize: 8",
            "there is no setting size; there are before, after",
        ),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        written(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'pipeline.yaml'}: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_file_of_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        written(tmp_path, "before: [decode]\nafter: [{top_k: {labels: no.txt}}]")
    assert str(error.value) == (
        f"{tmp_path / 'pipeline.yaml'}: no such file: {tmp_path / 'no.txt'}"
    )
