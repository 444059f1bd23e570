import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.torchvision import from_torchvision

transforms: Any = pytest.importorskip(
    "torchvision.transforms", reason="needs torchvision: pip install 'hasten[torch]'"
)
torch: Any = pytest.importorskip("torch")
v2: Any = pytest.importorskip("torchvision.transforms.v2")
models: Any = pytest.importorskip("torchvision.models")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGEST_DIFFERENCE = 1e-6  # Of values within 3: float32 rounding in another order.
PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def differs_by(transform: Any, width: int, height: int) -> float:
    photo = PHOTO.resize((width, height))
    file = io.BytesIO()
    photo.save(file, "PNG")
    wanted, given = transform(photo).numpy(), from_torchvision(transform)(file.getvalue())
    assert given.shape == wanted.shape
    assert given.dtype == wanted.dtype
    return float(np.abs(given.astype(np.float32) - wanted).max())


@pytest.mark.parametrize(
    "weights",
    [
        "ResNet18_Weights.IMAGENET1K_V1",
        "ResNet50_Weights.IMAGENET1K_V2",
        "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
        "EfficientNet_B3_Weights.IMAGENET1K_V1",
        "MobileNet_V3_Large_Weights.IMAGENET1K_V2",
        "Swin_T_Weights.IMAGENET1K_V1",
        "segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
        "detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ],
)
def test_the_presets_of_weights_give_the_same_values(weights: str) -> None:
    found = models
    for part in weights.split("."):
        found = getattr(found, part)
    for width, height in ((640, 427), (301, 500)):
        assert differs_by(found.transforms(), width, height) <= LARGEST_DIFFERENCE


def test_a_compose_of_the_usual_transforms_gives_the_same_values() -> None:
    for normalize in ([], [transforms.Normalize(MEAN, STD)]):
        one = transforms.Compose(
            [
                transforms.Resize(80, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop((61, 70)),
                transforms.ToTensor(),
                *normalize,
            ]
        )
        assert differs_by(one, 203, 150) <= LARGEST_DIFFERENCE
    two = v2.Compose(
        [
            v2.Resize((50, 60)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    assert differs_by(two, 203, 150) <= LARGEST_DIFFERENCE


def test_resizing_a_tensor_differs_by_at_most_a_level() -> None:
    transform = v2.Compose([v2.ToImage(), v2.Resize(50, antialias=True)])
    assert from_torchvision(transform) == Pipeline(
        (Decode(), Resize(50, "bilinear"), ToLayout("CHW", "uint8"))
    )
    assert differs_by(transform, 203, 150) <= 1


def test_a_compose_without_floats_ends_in_whole_numbers() -> None:
    transform = transforms.Compose([transforms.CenterCrop(8), transforms.PILToTensor()])
    assert from_torchvision(transform).steps == (
        Decode(),
        CenterCrop((8, 8)),
        ToLayout("CHW", "uint8"),
    )
    scaled = transforms.Compose(
        [*transform.transforms, transforms.ConvertImageDtype(torch.float32)]
    )
    assert Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) in from_torchvision(scaled).steps


@pytest.mark.parametrize("namespace", [transforms, v2])
def test_grayscale_gives_the_same_values(namespace: Any) -> None:
    for first, numbers in (([], (0.5,)), ([namespace.CenterCrop(140)], (0.1307,))):
        one = transforms.Compose(
            [
                *first,
                namespace.Grayscale(),
                transforms.Resize(28, transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(numbers, numbers),
            ]
        )
        assert differs_by(one, 203, 150) <= LARGEST_DIFFERENCE
    whole = transforms.Compose([namespace.Grayscale(), transforms.PILToTensor()])
    assert differs_by(whole, 203, 150) == 0
    for end in ([], [transforms.Normalize(MEAN, STD)]):
        three = [namespace.Grayscale(3), transforms.Resize((30, 20)), transforms.ToTensor(), *end]
        assert differs_by(transforms.Compose(three), 203, 150) <= LARGEST_DIFFERENCE
    scaled = transforms.Compose([namespace.Grayscale(), transforms.ToTensor()])
    assert differs_by(scaled, 203, 150) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.Grayscale(), "torchvision's transform Grayscale isn't supported"),
        (
            lambda: transforms.Compose([transforms.Grayscale(3), transforms.PILToTensor()]),
            "torchvision's Grayscale gives 3 channels of whole numbers; hasten's steps give 1",
        ),
        (
            lambda: transforms.Compose([transforms.Resize(8), transforms.Grayscale()]),
            "torchvision's Grayscale comes after the picture is resized or made a tensor",
        ),
        (
            lambda: v2.Compose([v2.ToImage(), v2.Grayscale()]),
            "torchvision's Grayscale comes after the picture is resized or made a tensor",
        ),
        (
            lambda: transforms.Compose(
                [
                    transforms.Grayscale(),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            ),
            "torchvision's Normalize is for 3 channels; these pictures have 1",
        ),
        (
            lambda: transforms.Compose([transforms.ColorJitter()]),
            "torchvision's transform ColorJitter isn't supported",
        ),
        (
            lambda: transforms.Compose([transforms.ToTensor(), transforms.Resize(8)]),
            "torchvision's Resize comes after the values are scaled",
        ),
        (
            lambda: transforms.Compose([transforms.Resize(8, max_size=9)]),
            "torchvision's Resize has max_size=9: leave it out",
        ),
        (
            lambda: v2.Compose(
                [v2.ToImage(), v2.Resize(8, v2.InterpolationMode.BICUBIC, antialias=False)]
            ),
            "torchvision's Resize of a tensor has antialias=False",
        ),
        (
            lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]),
            "torchvision's ToDtype must scale a tensor to [0, 1]",
        ),
        (
            lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float16, scale=True)]),
            "torchvision's ToDtype gives torch.float16; only torch.float32 is supported",
        ),
        (
            lambda: transforms.Compose(
                [transforms.Resize(8, transforms.InterpolationMode.NEAREST_EXACT)]
            ),
            "torchvision's interpolation 'nearest-exact' isn't supported",
        ),
        (
            lambda: transforms.Compose([transforms.PILToTensor(), transforms.Normalize(MEAN, STD)]),
            "torchvision's Normalize must come once, after the values are scaled to [0, 1]",
        ),
        (
            lambda: transforms.Compose([transforms.Resize(8)]),
            "torchvision's Compose makes no tensor: add ToTensor",
        ),
    ],
)
def test_a_transform_that_can_not_be_followed_is_named(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_torchvision(make())
    assert str(error.value).startswith(message)
