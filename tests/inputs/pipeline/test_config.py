import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import (
    from_module,
    from_pretrained_cfg,
    from_yaml,
    image_pipeline,
)
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.threshold import Threshold

CFG = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
}
NOTHING = (
    "give at least the size of the model's input, as in `size: 224`, or the steps `before` the model; "
    "or only the steps `after` it, if the model brings its own steps before"
)
BOUNDS = "give sides of at least 1 pixel, and at most 67108864 pixels in all"
LARGEST_DIFFERENCE = 1e-6  # Of values within 3: float32 rounding in another order.


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0, None])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_a_pretrained_cfg_gives_what_timms_own_transform_gives(
    tmp_path: Path, crop_pct: float | None, interpolation: str, crop_mode: str
) -> None:
    create_transform = pytest.importorskip(
        "timm.data", reason="needs timm: pip install 'hasten[demo]'"
    ).create_transform
    cfg = {**CFG, "crop_pct": crop_pct, "interpolation": interpolation, "crop_mode": crop_mode}
    settings = {k: cfg[k] for k in ("mean", "std", "crop_pct", "interpolation", "crop_mode")}
    transform = create_transform(input_size=(3, 224, 224), is_training=False, **settings)
    pipeline = from_pretrained_cfg(cfg)
    rng = np.random.default_rng(0)
    for width, height in ((500, 333), (231, 640), (224, 224), (100, 90)):
        path = tmp_path / "photo.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        with Image.open(path) as image:
            wanted = transform(image.convert("RGB")).numpy()
        given = pipeline(path)
        assert given.shape == wanted.shape
        assert given.dtype == wanted.dtype
        assert np.abs(given - wanted).max() <= LARGEST_DIFFERENCE


def test_a_pretrained_cfg_of_one_channel_is_timms_transform_of_gray(tmp_path: Path) -> None:
    create_transform = pytest.importorskip(
        "timm.data", reason="needs timm: pip install 'hasten[demo]'"
    ).create_transform
    own = {"input_size": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}
    transform = create_transform(is_training=False, crop_pct=0.875, interpolation="bicubic", **own)
    path = tmp_path / "photo.png"
    for width, height in ((500, 333), (28, 28)):
        random = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(random).save(path)
        with Image.open(path) as image:
            wanted = transform(image.convert("L")).numpy()  # timm's reader opens them so
        given = from_pretrained_cfg({**CFG, **own})(path)
        assert given.shape == wanted.shape == (1, 28, 28)
        assert np.abs(given - wanted).max() <= LARGEST_DIFFERENCE


def test_a_timm_model_made_for_gray_pictures_states_a_pipeline_if_its_means_can_be_told() -> None:
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'hasten[demo]'")
    one = {"input_size": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}
    stated = timm.create_model("resnet18", in_chans=1, pretrained_cfg_overlay=one)
    pipeline = from_module(stated)
    assert pipeline is not None
    assert pipeline.steps[0] == Decode(colors="gray")
    assert pipeline.steps[-2:] == (Normalize((0.1307,), (0.3081,)), ToLayout())
    # The weights' own means are three unlike numbers: which one belongs to gray isn't known.
    assert from_module(timm.create_model("resnet18", in_chans=1)) is None
    halves = from_module(timm.create_model("vit_tiny_patch16_224", in_chans=1))
    assert halves is not None
    assert halves.steps[-2] == Normalize((0.5,), (0.5,))
    assert from_module(timm.create_model("vit_tiny_patch16_224", in_chans=4)) is None


def test_a_timm_model_says_what_it_wants() -> None:
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'hasten[demo]'")
    pipeline = from_module(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    assert pipeline is not None
    assert pipeline.steps[1] == Resize(math.floor(224 / 0.875), "bicubic")
    assert from_module(object()) is None


def test_flags_give_the_customary_steps() -> None:
    pipeline = image_pipeline(224, 256, "bilinear", [0.1, 0.2, 0.3], 0.5, layout="HWC")
    assert pipeline == Pipeline(
        (
            Decode(),
            Resize(256, "bilinear"),
            CenterCrop(224),
            Normalize((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
            ToLayout("HWC", "float32"),
        )
    )
    assert image_pipeline(8, dtype="uint8").steps[-1] == ToLayout("CHW", "uint8")
    assert Normalize not in {type(step) for step in image_pipeline(8, dtype="uint8").steps}


def test_a_size_that_is_no_square_is_resized_to_cover_it(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    assert image_pipeline((16, 24))(tmp_path / "a.png").shape == (3, 16, 24)


def test_yaml_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("size: 224\nresize: 256\nmean: [0.1, 0.2, 0.3]\nstd: 0.5\nlayout: HWC\n")
    assert from_yaml(path) == image_pipeline(224, 256, mean=[0.1, 0.2, 0.3], std=0.5, layout="HWC")


def settings_refused(**settings: Any) -> str:
    with pytest.raises(InputError) as error:
        image_pipeline(**{"size": 224, **settings})
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, f"size=0: {BOUNDS}"),
        ({"size": [2**26, 2]}, f"size=(67108864, 2): {BOUNDS}"),
        ({"size": True}, "size=True: give one side in pixels, or height and width"),
        ({"size": "224"}, "size='224': give one side in pixels, or height and width"),
        ({"size": [1, 2, 3]}, "size=[1, 2, 3]: give one side in pixels, or height and width"),
        ({"resize": 10**9}, f"resize=1000000000: {BOUNDS}"),
        ({"mean": [1, 2]}, "mean=[1, 2]: give one number, or one for each of 3 channels"),
        ({"mean": float("nan")}, "mean=nan: give one number, or one for each of 3 channels"),
        ({"std": [1, 1, 0]}, "std=[1, 1, 0]: give deviations above 0"),
        ({"scale": 0}, "scale=0: give a number above 0, such as 1/255 = 0.00392157"),
        ({"layout": "NCHW"}, "layout='NCHW': give one of CHW, HWC"),
        ({"dtype": "int8"}, "dtype='int8': give one of float32, float16, uint8"),
        (
            {"interpolation": "random"},
            "interpolation='random': give one of nearest, bilinear, bicubic, lanczos, box, hamming, "
            "opencv_linear",
        ),
        (
            {"dtype": "uint8", "mean": 0},
            "dtype=uint8 leaves pixel values as they are: leave out mean and std",
        ),
    ],
)
def test_settings_that_can_not_be_used_are_named(settings: dict[str, Any], message: str) -> None:
    assert settings_refused(**settings) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 0", f"size=0: {BOUNDS}"),
        (
            "size: 8\ncolour: red",
            "there is no setting colour; there are size, resize, interpolation, mean, std, scale, "
            "layout, dtype, colors, after",
        ),
        ("mean: 1", NOTHING),
        ("mean: 1\nafter:\n  - top_k", NOTHING),
        ("after: []", NOTHING),
        ("after:", "None isn't a list of steps: write each one after a dash"),
        ("", NOTHING),
    ],
)
def test_yaml_that_can_not_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        from_yaml(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_file_may_have_only_the_steps_after_the_model(tmp_path: Path) -> None:
    path = tmp_path / "cutoff.yaml"
    path.write_text("after:\n  - threshold: {threshold: 0.2, position: 1}")
    assert from_yaml(path) == Pipeline((), (Threshold(0.2, position=1),))


def test_what_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    for text in ("size: [1\nmean: }", "size: " + "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            from_yaml(path)
        assert str(error.value).startswith(f"{path} can't be read as YAML: ")
        assert "\n" not in str(error.value)
    path.write_text("#" * (1 << 20) + "\nsize: 1")
    with pytest.raises(InputError) as error:
        from_yaml(path)
    assert str(error.value) == f"{path} has more than 1,048,576 bytes, too many for a pipeline"
    assert "\n" not in str(error.value)
    with pytest.raises(InputError) as error:
        from_yaml(tmp_path / "no.yaml")
    assert str(error.value) == f"no such file: {tmp_path / 'no.yaml'}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "pretrained_cfg has no mean: state the pipeline yourself"),
        (
            {"input_size": (1, 28, 28)},
            "pretrained_cfg has 1 channel, but mean=(0.485, 0.456, 0.406) and std=(0.229, 0.224, 0.225): "
            "state the pipeline yourself",
        ),
        (
            {"crop_mode": "border"},
            "pretrained_cfg has crop_mode 'border'; the supported ones are center, squash",
        ),
        (
            {"input_size": (3, 128, 256)},
            "pretrained_cfg crops 128 x 256 from the center, which is supported only for "
            "squares: state the pipeline yourself",
        ),
    ],
)
def test_a_pretrained_cfg_that_can_not_be_followed_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        from_pretrained_cfg({**CFG, **change})
    assert str(error.value) == message
