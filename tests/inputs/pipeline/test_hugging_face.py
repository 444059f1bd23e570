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
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers")
    pipeline = described(tmp_path, config)
    name = config.get("image_processor_type", "CLIPImageProcessor")
    own = {k: v for k, v in config.items() if not k.endswith("_type")}
    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((303, 250))
    file = io.BytesIO()
    photo.save(file, "PNG")
    wanted = processor(**own)(photo, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pipeline(file.getvalue()), wanted, atol=2e-6)


def test_a_fast_processor_rounds_as_torchvision_does(tmp_path: Path) -> None:
    pipeline = described(
        tmp_path, {**CLIP, "image_processor_type": "CLIPImageProcessorFast", "resample": 0}
    )
    assert pipeline.steps[1:3] == (Resize(64, "nearest"), CenterCrop((51, 51), "even"))


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
        ({"image_processor_type": None}, "the processor without a type isn't supported"),
        ({"do_pad": True}, "do_pad isn't supported"),
        ({"do_rescale": False}, "do_rescale=false isn't supported"),
        ({"resample": 9}, "resample=9 isn't supported: give 0 to 5"),
        ({"size": {"longest_edge": 8}}, "size={'longest_edge': 8} isn't supported"),
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
    assert said.endswith("sampling_rate='fast': give a whole number above 0")


def test_a_standardized_sound_has_the_mean_0_and_the_deviation_1() -> None:
    sound = 3 + 2 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    prepared = Standardize()(sound)
    assert prepared.dtype == np.float32
    assert abs(prepared.mean()) < 1e-5
    assert abs(prepared.std() - 1) < 1e-5
    assert not Standardize()(np.zeros(10, np.float32)).any()
