"""Detectors: only boxes that stand, at the right place in the image that was asked about."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

import torch
from torch import nn

from hasten.lightening.architectures import build, find
from hasten.lightening.architectures.detection import Detector, standing
from hasten.lightening.architectures.resizing import Resized


class Known(nn.Module):
    """Gives two boxes whatever it sees: one of class 0, one of class 1."""

    def candidates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 3.0, 4.0]]])
        return boxes, torch.tensor([[[0.9, 0.0], [0.0, 0.2]]])


def test_only_a_box_that_stands_leaves_out_worse_ones_of_its_class() -> None:
    """The second is left out by the first, so it can't leave out the third."""
    across = torch.tensor([0.0, 3.0, 6.0, 3.0])
    boxes = torch.stack([across, across * 0, across + 10, across * 0 + 10], 1)[None]
    stands = standing(boxes, torch.tensor([[7, 7, 7, 8]]))
    assert stands[0].tolist() == [1, 0, 1, 1]


def test_what_scores_too_little_is_no_detection() -> None:
    answer = Detector(Known())(torch.zeros(1, 3, 8, 8))
    assert answer["labels"].tolist() == [[0, -1]]
    assert answer["scores"][0].tolist() == pytest.approx([0.9, 0])
    assert answer["boxes"][0].tolist() == [[0, 0, 4, 4], [0, 0, 0, 0]]


def test_boxes_of_a_resized_image_are_in_pixels_of_the_one_that_was_given() -> None:
    resized = Resized(Detector(Known()), (16, 24), (8, 8))
    answer = resized(torch.zeros(1, 3, 16, 24))
    assert isinstance(answer, dict)
    assert answer["boxes"][0, 0].tolist() == [0, 0, 4 * 3, 4 * 2]


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov4-tiny", "ssdlite"])
def test_an_untrained_detector_gives_boxes_scores_and_labels(name: str) -> None:
    architecture = find(name)
    shape = (3, 96, 64)
    module = build(architecture, 5, shape, architecture.widths[0]).eval()
    with torch.no_grad():
        answer = module(torch.rand(2, *shape))
    count = answer["scores"].shape[1]
    assert answer["boxes"].shape == (2, count, 4)
    assert answer["labels"].shape == (2, count)
    assert set(answer["labels"].unique().tolist()) <= {-1, 0, 1, 2, 3, 4}


def test_ssdlites_boxes_of_no_movement_are_torchvisions_default_boxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    from hasten.lightening.architectures.ssdlite import SsdLite

    network = SsdLite(2, 3, 0.5, (64, 96)).eval()
    with torch.no_grad():
        heads = network.heads(torch.zeros(1, 3, 64, 96))
        assert heads["cls_logits"].shape == (1, len(network.defaults), 3)
        still = {name: 0 * one for name, one in heads.items()}
        monkeypatch.setattr(network, "heads", lambda x: still)
        boxes, scores = network.candidates(torch.zeros(1, 3, 64, 96))
    theirs = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    expected = theirs._grid_default_boxes(
        [[4, 6], [2, 3], [1, 2], [1, 1], [1, 1], [1, 1]], [64, 96]
    )
    centres = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2 / torch.tensor([96, 64])
    torch.testing.assert_close(centres, expected[:, :2])
    assert sorted(set(scores.flatten().tolist())) == pytest.approx([1 / 3])
