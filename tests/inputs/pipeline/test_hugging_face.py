import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from tests.inputs.pipeline.test_text import CONTENT

from hasten.errors import InputError
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_path
from hasten.inputs.pipeline.hugging_face import from_hugging_face
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.standardize import Standardize
from hasten.inputs.pipeline.text import Tokenize

HALF = [0.5, 0.5, 0.5]
VIT: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_normalize": True,
    "image_mean": HALF,
    "image_std": HALF,
}
CLIP: dict[str, Any] = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": 64,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 51,
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def described(folder: Path, config: Any) -> Pipeline:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return from_path(folder)


def refused(make: Any) -> str:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_processor_that_resizes_both_sides(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    assert described(tmp_path, VIT) == Pipeline(
        (Decode(), Resize((224, 224), "bilinear"), Normalize(half, half), ToLayout())
    )


def test_an_older_extractor_that_crops_gives_what_its_own_steps_give(tmp_path: Path) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((203, 150))
    file = io.BytesIO()
    photo.save(file, "PNG")
    # By transformers: the shorter side is 64, the longer in proportion, the crop's corner rounded
    # down (margins of 13 and 35 pixels).
    small = np.asarray(photo.resize((203 * 64 // 150, 64), Image.Resampling.BICUBIC))
    cut = small[6:57, 17:68] / np.float32(255)
    wanted = ((cut - CLIP["image_mean"]) / CLIP["image_std"]).transpose(2, 0, 1)
    given = described(tmp_path, CLIP)(file.getvalue())
    np.testing.assert_allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        VIT,
        CLIP,
        {**VIT, "do_normalize": False, "rescale_factor": 1 / 127.5},
        {**CLIP, "size": {"shortest_edge": 70}, "crop_size": {"height": 61, "width": 50}},
    ],
)
def test_values_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    name = config.get("image_processor_type", "CLIPImageProcessor")
    own = {k: v for k, v in config.items() if not k.endswith("_type")}
    assert differs_by(tmp_path, f"{name}Pil", own, config) <= LARGEST_DIFFERENCE


def differs_by(
    folder: Path, processor: str, own: dict[str, Any], config: dict[str, Any], side: int = 250
) -> float:
    """Return by how much values differ at most from those of a processor of transformers."""
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers")
    pipeline = described(folder, config)
    made = getattr(transformers, processor)(**own)
    worst = 0.0
    for size in ((side + 53, side), (side, side + 152)):
        photo = Image.fromarray(load_sample_image("china.jpg")).resize(size)
        file = io.BytesIO()
        photo.save(file, "PNG")
        wanted = np.asarray(made(photo, return_tensors="np")["pixel_values"][0])
        given = pipeline(file.getvalue())
        assert given.shape == wanted.shape
        worst = max(worst, float(np.abs(given - wanted).max()))
    return worst


LARGEST_DIFFERENCE = 4e-6  # Of values within 13: float32 rounding in another order.
STATED = {
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
}
BOTH = {"size": {"height": 64, "width": 70}}
SHORTER = {"size": {"shortest_edge": 64}, "crop_size": {"height": 51, "width": 50}}
SQUARE = {"size": {"height": 50, "width": 50}, "crop_size": {"height": 50, "width": 50}}
LEFT = {"size": {"shortest_edge": 50}, "crop_size": {"height": 50, "width": 50}}
OFFSET = {"rescale_offset": True, "rescale_factor": 1 / 127.5}
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("Beit", BOTH),
    ("Beit", {**BOTH, "do_center_crop": True, "crop_size": {"height": 51, "width": 50}}),
    ("Bit", SHORTER),
    ("ChineseCLIP", SHORTER),
    ("CLIP", SHORTER),
    ("ConvNext", {"size": {"shortest_edge": 112}, "crop_pct": 0.875}),
    ("ConvNext", {"size": {"shortest_edge": 101}, "crop_pct": 0.95}),
    ("ConvNext", {"size": {"shortest_edge": 110}}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("DPT", BOTH),
    ("DPT", {"size": {"height": 100, "width": 70}, "ensure_multiple_of": 32}),
    ("DeiT", {"size": {"height": 70, "width": 70}, "crop_size": {"height": 51, "width": 50}}),
    ("EfficientNet", BOTH),
    ("EfficientNet", {**BOTH, **OFFSET}),
    ("EfficientNet", {**BOTH, **OFFSET, "include_top": False}),
    ("EfficientNet", {**BOTH, "do_normalize": False, "resample": 0}),
    ("Levit", LEFT),
    ("Levit", {**BOTH, "crop_size": {"height": 50, "width": 50}}),
    ("MobileNetV1", {**SHORTER, "resample": 2}),
    ("MobileNetV2", {**SHORTER, "resample": 2, "do_reduce_labels": True}),
    ("MobileViT", {**SHORTER, "do_normalize": None}),
    ("MobileViT", {**SHORTER, "do_normalize": None, "do_flip_channel_order": False}),
    ("PoolFormer", LEFT),
    ("PoolFormer", {**SQUARE, "crop_pct": 0.95}),
    ("PoolFormer", {"size": {"height": 50, "width": 60}, "crop_size": SQUARE["crop_size"]}),
    ("Pvt", BOTH),
    ("Segformer", {**BOTH, "do_reduce_labels": True}),
    ("Siglip", BOTH),
    ("ViT", BOTH),
]


@pytest.mark.parametrize(("name", "change"), PROCESSORS)
def test_every_processor_by_pillow_gives_these_values(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    own = {**STATED, **change}
    config = {**own, "image_processor_type": f"{name}ImageProcessor"}
    assert differs_by(tmp_path, f"{name}ImageProcessorPil", own, config) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("name", "change"), [each for each in PROCESSORS if each[1].get("resample") != 0]
)
def test_every_processor_by_torch_differs_by_a_level_where_pictures_become_much_smaller(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'hasten[torch]'")
    own = {**STATED, **change}
    config = {**own, "image_processor_type": f"{name}ImageProcessorFast"}
    pipeline = described(tmp_path, config)
    assert described(tmp_path, {**own, "image_processor_type": f"{name}ImageProcessor"}) == pipeline
    high, low = (pipeline(np.full((9, 9, 3), value, np.uint8)) for value in (101, 100))
    level = float(np.abs(high - low).max())
    most = 6 if change["size"] == {"shortest_edge": 384} else 1  # bicubic, and larger
    assert differs_by(tmp_path, f"{name}ImageProcessor", own, config) <= 1.01 * most * level


def test_a_crop_is_cut_from_the_corner_that_transformers_rounds_down_to(tmp_path: Path) -> None:
    for kind in ("CLIPImageProcessor", "CLIPImageProcessorFast"):
        config = {**CLIP, "image_processor_type": kind, "resample": 0}
        pipeline = described(tmp_path, config)
        assert pipeline.steps[1:3] == (Resize(64, "nearest"), CenterCrop((51, 51), "down"))


def test_a_processor_that_flips_channels_makes_bgr(tmp_path: Path) -> None:
    stated = {**STATED, **SHORTER, "image_processor_type": "MobileViTImageProcessor"}
    del stated["do_normalize"]
    steps = described(tmp_path, stated).steps
    assert steps[0] == Decode(colors="BGR")
    assert steps[-2] == Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert described(tmp_path, {**VIT, "do_flip_channel_order": True}).steps[0] == steps[0]


def test_a_tokenizer_keeps_the_lengths_that_its_model_allows(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(CONTENT)
    assert from_hugging_face(tmp_path) == Pipeline((Tokenize(CONTENT, pad=False),))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 10**30, "pad_token": {"content": "[PAD]"}})
    )
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 6}))
    pipeline = from_hugging_face(tmp_path)
    assert pipeline == Pipeline((Tokenize(CONTENT, 6, pad=False, pad_token="[PAD]"),))
    assert pipeline("the cat sat on the mat")["input_ids"].shape == (6,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_processor_type": "DonutImageProcessor"},
            "the processor DonutImageProcessor isn't",
        ),
        ({"image_processor_type": "\x1b"}, "the processor \\x1b isn't supported"),
        ({"do_\n": True}, "do_\\n isn't supported"),
        ({"image_processor_type": None}, "the processor without a type isn't supported"),
        ({"do_pad": True}, "do_pad isn't supported"),
        ({"do_rescale": False}, "do_rescale=false isn't supported"),
        ({"resample": 9}, "resample=9 isn't supported: give 0 to 5"),
        ({"size": {"longest_edge": 8}}, "size={'longest_edge': 8} isn't supported"),
        (
            {"image_processor_type": "DPTImageProcessor", "keep_aspect_ratio": True},
            "keep_aspect_ratio isn't supported",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor"},
            "size=[224, 224] isn't supported: give shortest_edge",
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 2},
            "crop_pct=2: give a number of at least 0.001, and at most 1",
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 5e-324},
            "crop_pct=5e-324: give a number of at least 0.001, and at most 1",
        ),
        *(
            ({"image_processor_type": f"{name}ImageProcessor", "size": size}, "size=1000")
            for name in ("Levit", "ConvNext", "PoolFormer", "DPT", "ViT")
            for size in [{"shortest_edge": 10**400}]
        ),
        ({"size": {"height": 10**400, "width": 8}}, "size=(1000"),
        ({"image_mean": [10**400, 0, 0]}, "image_mean=[1000"),
        ({"image_std": [1, 1, float("inf")]}, "image_std=[1, 1, inf]: give one number"),
        ({"rescale_factor": 10**400}, "rescale_factor=1000"),
        ({"image_mean": [0.5]}, "image_mean=[0.5]: give one number for each of 3 channels"),
        ({"rescale_factor": -1}, "rescale_factor=-1: give a number above 0"),
        (
            {"do_center_crop": True, "crop_size": 300},
            "crop_size 300 x 300 is larger than size, which isn't supported",
        ),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, change: Any, message: str) -> None:
    said = refused(lambda: described(tmp_path, {**VIT, **change}))
    assert said.startswith(f"{tmp_path / 'preprocessor_config.json'}: {message}")


def test_a_folder_with_neither_or_both_is_named(tmp_path: Path) -> None:
    assert refused(lambda: from_path(tmp_path)) == (
        f"{tmp_path} has neither preprocessor_config.json nor tokenizer.json: state the pipeline "
        "yourself"
    )
    (tmp_path / "tokenizer.json").write_text(CONTENT)
    assert refused(lambda: described(tmp_path, VIT)).startswith(
        f"{tmp_path} has both preprocessor_config.json and tokenizer.json"
    )
    (tmp_path / "tokenizer_config.json").write_text("[")
    (tmp_path / "preprocessor_config.json").unlink()
    assert refused(lambda: from_path(tmp_path)).startswith(
        f"{tmp_path / 'tokenizer_config.json'} can't be read as JSON: "
    )


def test_an_extractor_of_wav2vec2(tmp_path: Path) -> None:
    stated = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000}
    assert described(tmp_path, stated) == Pipeline((DecodeAudio(8000), Standardize()))
    plain = described(tmp_path, {**stated, "do_normalize": False})
    assert plain == Pipeline((DecodeAudio(8000),))


def test_an_extractor_of_whisper(tmp_path: Path) -> None:
    stated = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128}
    assert described(tmp_path, stated) == Pipeline(
        (DecodeAudio(16000), FitLength(480000), LogMel(mels=128))
    )


def test_a_rate_that_is_no_number(tmp_path: Path) -> None:
    stated = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": "fast"}
    said = refused(lambda: described(tmp_path, stated))
    assert said.endswith("sampling_rate='fast': give a whole number from 1 to 67,108,864")


def test_a_length_of_thousands_of_digits_is_told_in_one_line(tmp_path: Path) -> None:
    """Its product with the rate has more digits than Python writes out."""
    stated = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 10**4299}
    said = refused(lambda: described(tmp_path, stated))
    assert said == (
        f"{tmp_path}/preprocessor_config.json: chunk_length=1{'0' * 59}: give a whole number from 1 to 67,108,864"
    )


def test_a_standardized_sound_has_the_mean_0_and_the_deviation_1() -> None:
    sound = 3 + 2 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    prepared = Standardize()(sound)
    assert prepared.dtype == np.float32
    assert abs(prepared.mean()) < 1e-5
    assert abs(prepared.std() - 1) < 1e-5
    assert not Standardize()(np.zeros(10, np.float32)).any()
