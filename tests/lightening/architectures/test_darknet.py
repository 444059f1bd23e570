"""Darknet's own files: networks by their .cfg, weights in its order, and no number left over."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hasten.errors import InputError

torch = pytest.importorskip("torch")

from hasten.lightening.architectures.darknet import (  # noqa: E402
    Darknet,
    Section,
    decoded_head,
    read_sections,
)
from hasten.lightening.architectures.tiny_yolo import cfg  # noqa: E402

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
GROUPS = """
[net]
channels=4
[convolutional]
filters=4
size=1
activation=linear
[route]
layers=-1
groups=2
group_id=1
[yolo]
"""
DEBIAN = Path("/usr/share/darknet/cfg/yolov3-tiny.cfg")


def weights_file(folder: Path, numbers: object) -> Path:
    """Write a .weights file of version 0.2, which counts images in 64 bits."""
    file = folder / "tiny.weights"
    header = np.array([0, 2, 0], np.int32).tobytes() + np.array([64], np.int64).tobytes()
    file.write_bytes(header + np.asarray(numbers, np.float32).tobytes())
    return file


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(InputError) as refused:
        act()
    return str(refused.value)


def test_weights_are_read_in_darknets_order_and_answer_as_it_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    beta, gamma, mean = rng.standard_normal((3, 2))
    variance, kernel = rng.uniform(0.5, 2, 2), rng.standard_normal((2, 2))
    bias, last = rng.standard_normal(7), rng.standard_normal((7, 4))
    network = Darknet(CFG)
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


def test_weights_of_another_network_are_refused_with_both_counts(tmp_path: Path) -> None:
    file = weights_file(tmp_path, np.zeros(46))
    assert refusal(lambda: Darknet(CFG).load(file)) == (
        f"{file} holds 46 numbers, but its .cfg needs 47"
    )
    file.write_bytes(file.read_bytes()[:-2])
    assert refusal(lambda: Darknet(CFG).load(file)) == (
        f"{file} is cut off: 182 bytes aren't a whole number of floats"
    )
    file.write_bytes(b"short")
    assert refusal(lambda: Darknet(CFG).load(file)) == (
        f"{file} isn't a .weights file: it has only 5 bytes"
    )


@pytest.mark.parametrize("model", ["yolov3-tiny.cfg", "yolov4-tiny.cfg"])
def test_written_weights_are_read_back(model: str, tmp_path: Path) -> None:
    text = cfg(model, classes=2, channels=3, width=0.25)
    one = Darknet(text)
    numbers = np.random.default_rng(0).uniform(0.1, 1, one.numbers).astype(np.float32)
    source = weights_file(tmp_path, numbers)
    one.load(source)
    one.save(tmp_path / "again.weights")
    again = np.fromfile(tmp_path / "again.weights", np.float32, offset=20)
    np.testing.assert_allclose(again, numbers, rtol=3e-7)
    other = Darknet(text)
    other.load(tmp_path / "again.weights")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for head, same in zip(one.eval().heads(image), other.eval().heads(image), strict=True):
            torch.testing.assert_close(head[1], same[1])


def test_fresh_weights_are_written_and_read_back(tmp_path: Path) -> None:
    one, other = Darknet(CFG).eval(), Darknet(CFG).eval()
    one.save(tmp_path / "fresh.weights")
    other.load(tmp_path / "fresh.weights")
    image = torch.rand(1, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(one.heads(image)[0][1], other.heads(image)[0][1])


def test_a_route_takes_one_group_of_channels() -> None:
    network = Darknet(GROUPS)
    image = torch.rand(1, 4, 2, 2)
    with torch.no_grad():
        whole = network.layers[0](image)
        ((_, read),) = network.heads(image)
    torch.testing.assert_close(read, whole[:, 2:])


def test_a_head_is_decoded_to_corners_and_scores() -> None:
    section = Darknet(CFG).sections[-1]
    head = torch.zeros(1, 7, 4, 4)
    head[0, :, 1, 3] = torch.tensor([0.0, 0.0, np.log(2.0), 0.0, 100.0, 100.0, -100.0])
    boxes, scores = decoded_head(section, head, (8, 8))
    np.testing.assert_allclose(boxes[0, 7], [7 - 4, 3 - 1, 7 + 4, 3 + 1], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 7], [1, 0], atol=1e-6)


def test_scale_x_y_lets_a_centre_reach_over_its_cell() -> None:
    settings = {"mask": "0", "anchors": "2,2", "classes": "1", "scale_x_y": "1.5"}
    head = torch.zeros(1, 6, 1, 2)
    head[0, 0] = torch.tensor([100.0, -100.0])
    boxes, _ = decoded_head(Section("yolo", settings), head, (8, 16))
    centres = (boxes[0, :, 0] + boxes[0, :, 2]) / 2
    assert centres.tolist() == [8 * 1.25, 8 * (1 - 0.25)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[yolo]\nnew_coords=1\n", "a .cfg file with new_coords=1 in [yolo] isn't supported"),
        ("[shortcut]\nfrom=-3\n", "a .cfg file with a layer [shortcut] isn't supported"),
        (
            "[convolutional]\nfilters=4\nactivation=swish\n",
            "a .cfg file with activation=swish isn't supported; the supported ones are leaky, mish, relu, linear",
        ),
        (
            "[maxpool]\nsize=4\nstride=2\n",
            "a .cfg file with [maxpool] size=4 stride=2 isn't supported",
        ),
        (
            "[maxpool]\nsize=2\nstride=2\npadding=0\n",
            "a .cfg file with padding= in [maxpool] isn't supported",
        ),
        (
            "[convolutional]\nfilters=many\n",
            "filters=many in [convolutional] of a .cfg file isn't a whole number",
        ),
        (
            "[convolutional]\nfilters=4,8\n",
            "filters= in [convolutional] of a .cfg file must be one whole number",
        ),
        ("[route]\n", "[route] in a .cfg file needs layers=, which is missing"),
        (
            "[route]\nlayers=-3\n",
            "layers=-3 in [route] of a .cfg file names layers that don't come before it",
        ),
        ("nonsense\n", "a .cfg file has sections with lines name=value: got 'nonsense'"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(more: str, message: str) -> None:
    assert refusal(lambda: Darknet("[net]\nchannels=3\n" + more)) == message


def test_a_text_that_is_no_cfg_is_refused() -> None:
    assert refusal(lambda: Darknet("")) == "a .cfg file must begin with [net]"
    assert refusal(lambda: Darknet("[maxpool]\n")) == "a .cfg file must begin with [net]"


def test_the_tiny_yolos_take_as_many_numbers_as_their_published_weights() -> None:
    """Their files have 35,434,956 and 24,251,276 bytes, of which 20 are the header."""
    with torch.device("meta"):
        third, fourth = (Darknet(cfg(f"yolov{v}-tiny.cfg", 80, 3, 1.0)) for v in (3, 4))
    assert third.numbers == (35_434_956 - 20) // 4
    assert fourth.numbers == (24_251_276 - 20) // 4


def test_our_yolov3_tiny_is_the_one_that_darknet_ships() -> None:
    if not DEBIAN.exists():
        pytest.skip("Debian's package darknet isn't installed: no yolov3-tiny.cfg to compare with")
    theirs = read_sections(DEBIAN.read_text())[1:]
    ours = read_sections(cfg("yolov3-tiny.cfg", 80, 3, 1.0))[1:]
    assert [one.kind for one in ours] == [one.kind for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name, value in one.settings.items():
            assert other.settings[name].replace(" ", "") == value


def test_a_narrower_yolo_keeps_its_heads() -> None:
    narrow = Darknet(cfg("yolov4-tiny.cfg", 4, 1, 0.35))
    filters = [s.number("filters") for s in narrow.sections if s.kind == "convolutional"]
    assert filters.count(3 * (5 + 4)) == 2
    assert all(count % 8 == 0 for count in filters if count != 27)


def test_a_tiny_yolo_that_is_unknown_is_refused() -> None:
    assert refusal(lambda: cfg("yolov9-tiny.cfg", 4, 3, 1.0)) == (
        "no tiny YOLO is called 'yolov9-tiny.cfg': use yolov3-tiny.cfg or yolov4-tiny.cfg"
    )
