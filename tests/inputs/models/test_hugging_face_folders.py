"""Folders of Hugging Face, made from tiny configurations with weights drawn at random."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hasten.core.model import Model
from hasten.errors import InputError
from hasten.inputs.models import frozen
from hasten.inputs.models.hugging_face import Folder, export
from hasten.inputs.models.source import find_model, load_model, load_with_data, stated_pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.text import Tokenize
from hasten.testing import models

pytestmark = pytest.mark.seconds

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 64,
}
TOKENIZER = {
    "version": "1.0",
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {
        "type": "WordLevel",
        "vocab": {word: number for number, word in enumerate(("[PAD]", "[UNK]", "good", "bad"))},
        "unk_token": "[UNK]",
    },
}


def config(folder: Path, **more: Any) -> Path:
    """Write a folder with a configuration, and an ONNX file unless there are weights to be."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"], **more}))
    return folder


def with_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def refused(folder: Path, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        load_model(find_model(folder, **more), None, folder)
    return str(error.value)


def test_an_onnx_file_in_a_folder_is_read_with_the_folders_tokenizer(tmp_path: Path) -> None:
    folder = with_tokenizer(config(tmp_path / "model"))
    (folder / "onnx").mkdir()
    models.two_inputs(folder).rename(folder / "onnx" / "model.onnx")
    found = find_model(folder)
    assert load_model(found, None, tmp_path).path == folder / "onnx" / "model.onnx"
    pipeline = stated_pipeline(found)
    assert pipeline is not None
    assert isinstance(pipeline.steps[0], Tokenize)
    assert pipeline("good bad")["input_ids"].tolist() == [2, 3]


def test_of_several_onnx_files_one_is_to_be_named(tmp_path: Path) -> None:
    folder = config(tmp_path / "model")
    for name in ("a.onnx", "b.onnx"):
        models.two_inputs(folder).rename(folder / name)
    assert refused(folder) == f"{folder} has 2 ONNX files (a.onnx, b.onnx): give one of them"
    assert load_model(find_model(folder / "a.onnx"), None, folder).path == folder / "a.onnx"


def test_classes_that_a_folder_names_are_the_decisions(tmp_path: Path) -> None:
    names = {"0": "cat", "1": "dog"}
    folder = config(tmp_path / "m", architectures=["BertForSequenceClassification"], id2label=names)
    models.two_inputs(folder)
    pipeline = stated_pipeline(find_model(with_tokenizer(folder)))
    assert pipeline is not None
    assert pipeline.after == (TopK(2, ("cat", "dog")),)


def test_code_in_a_folder_isnt_run_unless_asked(tmp_path: Path) -> None:
    folder = config(tmp_path / "model", auto_map={"AutoModel": "mine.Mine"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    (folder / "model.safetensors").write_bytes(b"")
    assert refused(folder) == (
        f"{folder} contains Python code of its own (auto_map in config.json), which isn't run: "
        "if you trust it, add trust_code=True"
    )
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_runs_once_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = pytest.importorskip(
        "transformers.dynamic_module_utils", reason="needs the extra hugging-face"
    )
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    own = {"AutoConfig": "mine.Own", "AutoModel": "mine.Mine"}
    folder = config(tmp_path / "m", architectures=["Mine"], model_type="mine_own", auto_map=own)
    (folder / "mine.py").write_text(
        "import torch\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class Own(PretrainedConfig):\n"
        "    model_type = 'mine_own'\n"
        "class Mine(PreTrainedModel):\n"
        "    config_class = Own\n"
        "    main_input_name = 'pixel_values'\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.layer = torch.nn.Linear(4, 2)\n"
        "        self.post_init()\n"
        "    def forward(self, pixel_values):\n"
        "        return self.layer(pixel_values)\n"
    )
    weights = {"layer.weight": torch.ones(2, 4), "layer.bias": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sample = {"pixel_values": np.ones(4, np.float32)}
    model = load_model(find_model(folder, trust_code=True), sample, tmp_path)
    (answer,) = outputs(model, {"pixel_values": np.ones((1, 4), np.float32)})
    assert answer.tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize(
    ("more", "files", "line"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            ["model.safetensors"],
            "{folder} is a GPT2LMHeadModel, which generates text token by token: hasten takes "
            "models that answer in one pass, such as encoders and classifiers",
        ),
        (
            {},
            ["pytorch_model.bin"],
            "{folder} has neither an ONNX file nor safetensors: load it in your own code and "
            "save it with save_pretrained, which writes safetensors",
        ),
        (
            {"architectures": [], "model_type": "bert"},
            ["model.safetensors"],
            "{folder}/config.json doesn't name the model's architecture: add the name of its class, as in "
            '"architectures": ["BertForSequenceClassification"], or save the model with save_pretrained, which does',
        ),
    ],
)
def test_what_cant_be_loaded_is_said(
    tmp_path: Path, more: dict[str, Any], files: list[str], line: str
) -> None:
    folder = config(tmp_path / "model", **more)
    for name in files:
        (folder / name).write_bytes(b"")
    assert refused(folder) == line.format(folder=folder)


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = config(tmp_path / "model")
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(InputError) as error:
        stated_pipeline(find_model(folder))
    assert str(error.value) == (
        f"{folder} has a tokenizer that isn't supported (vocab.txt without tokenizer.json): load "
        "it with transformers' AutoTokenizer and save it with save_pretrained, which writes that "
        "file"
    )


def test_a_tokenizer_that_the_library_cant_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra text")
    folder = config(tmp_path / "model")
    text = json.dumps({**TOKENIZER, "model": {"type": "Foo"}})
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(InputError) as error:
        stated_pipeline(find_model(folder))
    assert str(error.value) == (
        f"{folder}/tokenizer.json: tokenize.tokenizer can't be read by the tokenizer: data did not match any variant of "
        f"untagged enum ModelUntagged at line 1 column {len(text)}; if the file is from a newer version of "
        "tokenizers, install that; else write it again with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def test_a_tokenizer_too_large_for_a_bundle_is_noted(tmp_path: Path) -> None:
    folder = config(tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps({"filler": "x" * (3 << 20)}))
    found = find_model(folder)
    assert stated_pipeline(found) is None
    assert found.hasten_notes == (
        f"{folder}/tokenizer.json is too large for a bundle, which has room for 3 MiB: the "
        "bundle takes tokens, not text",
    )


def test_a_processor_that_isnt_known_leaves_arrays(tmp_path: Path) -> None:
    folder = config(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "Odd"}')
    found = find_model(folder)
    assert stated_pipeline(found) is None
    assert found.hasten_notes[0].startswith("the bundle takes prepared arrays: ")
    assert "the processor Odd isn't supported" in found.hasten_notes[0]


def test_a_folder_of_another_kind_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not isinstance(find_model(tmp_path), Folder)


def bert(transformers: Any) -> Any:
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def token_classifier(transformers: Any) -> Any:
    return transformers.BertForTokenClassification(transformers.BertConfig(**SMALL, num_labels=3))


def reranker(transformers: Any) -> Any:
    own = transformers.XLMRobertaConfig(**SMALL, num_labels=1, pad_token_id=0, type_vocab_size=1)
    return transformers.XLMRobertaForSequenceClassification(own)


def vision(transformers: Any) -> Any:
    sizes = {key: value for key, value in SMALL.items() if key not in ("vocab_size",)}
    sizes.pop("max_position_embeddings")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
    )


def audio(transformers: Any) -> Any:
    sizes = {key: value for key, value in SMALL.items() if key != "max_position_embeddings"}
    return transformers.Wav2Vec2ForSequenceClassification(
        transformers.Wav2Vec2Config(
            **sizes,
            conv_dim=(8, 8),
            conv_stride=(20, 8),
            conv_kernel=(40, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            num_labels=3,
        )
    )


def saved(make: Callable[[Any], Any], folder: Path) -> tuple[Any, Any]:
    """Return a module in eval mode and torch, after saving it into a folder."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = make(transformers).eval()
    module.save_pretrained(folder)
    return module, torch


def outputs(model: Model, inputs: dict[str, Any]) -> list[Any]:
    return list(onnxruntime.InferenceSession(str(model.path)).run(None, inputs))


@pytest.mark.parametrize(
    "make",
    [
        bert,
        pytest.param(token_classifier, marks=pytest.mark.slow),
        pytest.param(reranker, marks=pytest.mark.slow),
    ],
)
def test_models_of_texts_keep_their_length_open_and_answer_as_their_module(
    make: Callable[[Any], Any], tmp_path: Path
) -> None:
    module, torch = saved(make, tmp_path / "model")
    model = load_model(find_model(tmp_path / "model"), None, tmp_path)
    assert all(spec.shape == ("batch", "sequence") for spec in model.inputs)
    for length in (3, 30):
        ids = np.random.default_rng(length).integers(2, 20, (2, length))
        given = {spec.name: np.ones_like(ids) for spec in model.inputs} | {"input_ids": ids}
        if "token_type_ids" in given:
            given["token_type_ids"][:, :2] = 0
        with torch.no_grad():
            wanted = module(**{name: torch.from_numpy(one) for name, one in given.items()})
        for own, other in zip(wanted.to_tuple(), outputs(model, given), strict=True):
            np.testing.assert_allclose(own.numpy(), other, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (vision, [(3, 16, 16)]),
        pytest.param(audio, [(16_000,), (9_000,)], marks=pytest.mark.slow),
    ],
)
def test_models_of_pictures_and_sounds_answer_as_their_module(
    make: Callable[[Any], Any], shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    module, torch = saved(make, tmp_path / "model")
    model = load_model(find_model(tmp_path / "model"), None, tmp_path)
    for shape in shapes:
        x = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(x)).logits.numpy()
        (answer,) = outputs(model, {model.inputs[0].name: x})
        np.testing.assert_allclose(wanted, answer, atol=1e-4)


PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_pct": 0.5,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}
DETECTING = {"image_processor_type": "DetrImageProcessor", "do_pad": True}


def residual(transformers: Any) -> Any:
    """Return a network of which no configuration says how large its pictures are."""
    return transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1])
    )


def claiming_224(transformers: Any) -> Any:
    """Return a network whose configuration states the size that its class has by default."""
    sizes = {"num_stages": 2, "hidden_sizes": [4, 4], "depths": [1, 1]}
    return transformers.ConvNextModel(transformers.ConvNextConfig(image_size=224, **sizes))


def video(transformers: Any) -> Any:
    sizes = {key: value for key, value in SMALL.items() if key in list(SMALL)[:4]}
    return transformers.TimesformerModel(
        transformers.TimesformerConfig(**sizes, num_frames=3, image_size=16, patch_size=8)
    )


def whisper(transformers: Any) -> Any:
    sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2}
    more = {"decoder_layers": 1, "decoder_attention_heads": 2, "classifier_proj_size": 4}
    return transformers.WhisperForAudioClassification(
        transformers.WhisperConfig(**sizes, **more, num_mel_bins=10, max_source_positions=15)
    )


@pytest.mark.parametrize(
    ("make", "processor", "shape"),
    [
        pytest.param(residual, PROCESSOR, (3, 32, 32), id="a size that the processor alone states"),
        pytest.param(claiming_224, PROCESSOR, (3, 32, 32), id="what the bundle's steps make"),
        pytest.param(
            residual,
            {**DETECTING, "size": {"shortest_edge": 24, "longest_edge": 40}},
            (3, 24, 24),
            id="the shorter side of a processor that isn't supported",
        ),
        pytest.param(
            residual,
            {**DETECTING, "size": 30, "crop_size": {"height": 16, "width": 24}},
            (3, 16, 24),
            id="a crop of a processor that isn't supported",
        ),
        pytest.param(video, None, (3, 3, 16, 16), id="the frames of a video"),
        pytest.param(whisper, None, (10, 30), id="twice the positions of Whisper's encoder"),
    ],
)
def test_without_data_a_folder_is_exported_with_a_made_up_sample_of_its_size(
    make: Callable[[Any], Any], processor: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    saved(make, tmp_path / "model")
    if processor is not None:
        (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    (spec,) = load_model(find_model(tmp_path / "model"), None, tmp_path).inputs
    assert spec.shape == ("batch", *shape)


def test_a_folder_that_states_no_size_of_pictures_says_which_files_state_one(
    tmp_path: Path,
) -> None:
    saved(residual, tmp_path / "model")
    with pytest.raises(InputError) as error:
        load_model(find_model(tmp_path / "model"), None, tmp_path)
    assert str(error.value) == (
        f"nothing in {tmp_path / 'model' / 'config.json'} says how large the input 'pixel_values' is: give data=, or "
        "add image_size to it, or the preprocessor_config.json that the model was saved with"
    )


def texts_and_pictures(transformers: Any) -> Any:
    sizes = {key: value for key, value in SMALL.items() if key != "max_position_embeddings"}
    pictures = {key: value for key, value in sizes.items() if key != "vocab_size"}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**sizes, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
            vision_config={**pictures, "image_size": 16, "patch_size": 8},
            projection_dim=4,
        )
    )


def test_both_inputs_of_a_model_of_texts_and_pictures_are_made_up_or_asked_for(
    tmp_path: Path,
) -> None:
    saved(texts_and_pictures, tmp_path / "model")
    model = load_model(find_model(tmp_path / "model"), None, tmp_path)
    assert [spec.name for spec in model.inputs] == ["input_ids", "pixel_values", "attention_mask"]
    text = {"input_ids": np.ones(6, np.int64), "attention_mask": np.ones(6, np.int64)}
    with pytest.raises(InputError) as error:
        load_model(find_model(tmp_path / "model"), text, tmp_path)
    assert str(error.value) == (
        "the model can't run input_ids int64[1, 6], attention_mask int64[1, 6]: 'NoneType' object has no attribute "
        "'shape'; it also takes pixel_values: give data with these"
    )


def encoder(torch: Any, *, length: int | None) -> Any:
    """Return a module of texts; one of a fixed length puts that into the graph."""

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 4)

        def forward(self, input_ids: Any) -> Any:
            found = self.table(input_ids)
            return found.reshape(-1, length, 4) if length else found

    return Encoder().eval()


def test_a_length_that_cant_be_open_is_the_samples_and_the_file_says_why(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder, given = Folder(tmp_path, {}, None), {"input_ids": np.arange(16)}
    model = export(folder, encoder(torch, length=16), given, tmp_path)
    assert [str(spec) for spec in model.inputs] == ["input_ids: int64[batch, 16]"]
    (line,) = frozen.words(onnx.load(model.path), model.inputs)
    begin = "the exported model takes samples of length 16 alone: "
    assert line.startswith(
        f"{begin}the model can't run the length 8: RuntimeError: shape '[-1, 16, 4]'"
    )
    open_one = export(folder, encoder(torch, length=None), given, tmp_path)
    assert frozen.words(onnx.load(open_one.path), open_one.inputs) == []


def test_texts_of_several_lengths_are_refused_if_the_module_takes_one_alone(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    given, *further = ({"input_ids": np.arange(length)} for length in (16, 12))
    with pytest.raises(InputError) as error:
        export(Folder(tmp_path, {}, None), encoder(torch, length=16), given, tmp_path, further)
    assert str(error.value) == (
        "the model can't run input_ids int64[1, 12]: shape '[-1, 16, 4]' is invalid for input of size 48"
    )


def test_pictures_that_differ_in_size_keep_height_and_width_open(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Segmenter(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, pixel_values: Any) -> Any:
            return self.conv(pixel_values)

    module = Segmenter().eval()
    x = np.random.default_rng(0).standard_normal((3, 24, 20), np.float32)
    given, *further = ({"pixel_values": x[:, :h, :w]} for h, w in ((16, 12), (24, 20), (8, 16)))
    model = export(Folder(tmp_path, {}, None), module, given, tmp_path, further)
    (spec,) = model.inputs
    assert [isinstance(size, str) for size in spec.shape] == [True, False, True, True]
    (answer,) = outputs(model, {"pixel_values": x[None, :, :10, :14]})
    assert answer.shape == (1, 2, 10, 14)


def test_data_decide_the_inputs_and_an_encoder_may_lack_its_poolers_weights(tmp_path: Path) -> None:
    module, _ = saved(bert, tmp_path / "model")
    module.pooler = None
    shutil.rmtree(tmp_path / "model")
    module.save_pretrained(tmp_path / "model")
    ids = np.ones(8, np.int64)
    sample = {"input_ids": ids, "attention_mask": ids}
    model = load_model(find_model(tmp_path / "model"), sample, tmp_path)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in model.outputs] == ["last_hidden_state"]


def test_texts_decide_no_inputs_but_get_all_that_the_module_takes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra text")
    saved(bert, tmp_path / "model")
    found = find_model(with_tokenizer(tmp_path / "model"))
    texts = tmp_path / "texts.txt"
    texts.write_text("good bad\nbad good film bad\ngood film bad\n")
    model, data = load_with_data(found, str(texts), stated_pipeline(found), (), tmp_path)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert [spec.name for spec in model.inputs] == list(data.names) == names
    assert all(spec.shape == ("batch", "sequence") for spec in model.inputs)
    assert [data.inputs([n])["input_ids"].shape for n in range(3)] == [(1, 2), (1, 4), (1, 3)]


def test_weights_that_are_missing_are_said(tmp_path: Path) -> None:
    saved(bert, tmp_path / "model")
    folder = config(tmp_path / "model", **json.loads((tmp_path / "model/config.json").read_text()))
    stated = json.loads((folder / "config.json").read_text())
    stated["architectures"] = ["BertForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(stated))
    assert refused(folder) == (
        f"{folder} lacks 2 weights of BertForTokenClassification, such as classifier.bias: save "
        "the whole model with save_pretrained"
    )


def test_a_folder_is_no_onnx_file_by_its_name(tmp_path: Path) -> None:
    folder = config(tmp_path / "model.onnx")
    path = models.two_inputs(folder)
    assert onnx.load(path).graph.input
    assert load_model(find_model(folder), None, tmp_path).path == path
