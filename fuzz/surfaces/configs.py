"""Folders of Hugging Face: what their JSON claims is changed."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import Surface
from fuzz.surfaces.archives import archive_of, members_of, quietly

from hasten.errors import InputError
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.source import find_model, stated_pipeline

WEIGHTS = "model.safetensors"
_WORDS = (
    *("BertModel", "ViTForImageClassification", "BertForTokenClassification", "timm_wrapper"),
    *(
        "resnet18",
        "a/b",
        "https://a.b/c",
        "gelu",
        "os.system",
        "auto",
        "eager",
        "\x1b[2J",
        "LABEL_0",
    ),
    *(
        "auto_map",
        "backbone",
        "model_args",
        "weight_map",
        "num_hidden_layers",
        "num_labels",
        "id2label",
    ),
    *("quantization_config", "torch_dtype", "attn_implementation", "text_config", "architectures"),
)
_BERT: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "bad", "1": "good"},
    "label2id": {"bad": 0, "good": 1},
}
_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {"id": 0, "content": "[PAD]", "special": True, "normalized": False}
        | {"lstrip": False, "rstrip": False, "single_word": False}
    ],
    "normalizer": {"type": "BertNormalizer", "lowercase": True, "clean_text": True}
    | {"handle_chinese_chars": True, "strip_accents": None},
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "unk_token": "[UNK]"}
    | {"vocab": {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}},
}
_VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "id2label": {"0": "cat", "1": "dog", "2": "fox"},
}
_PICTURES = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_TIMM: dict[str, Any] = {
    "architecture": "test_resnet",
    "num_classes": 3,
    "label_names": ["cat", "dog", "fox"],
    "model_args": {"in_chans": 3},
    "pretrained_cfg": {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9}
    | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "first_conv": "conv1"},
}
_SENTENCE = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
_SOUNDS = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000} | {
    "hop_length": 160,
    "n_fft": 400,
    "feature_size": 80,
    "chunk_length": 30,
}
_INDEX = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}


class Configs(Surface):
    """Archives of the files of a folder: each is read, and loaded where its library is installed."""

    name = "configs"
    most_s = 10.0
    most_mib = 400

    def seeds(self) -> list[bytes]:
        limits = {"model_max_length": 64, "pad_token": "[PAD]"}
        text = {"config.json": _BERT, "tokenizer.json": _TOKENIZER, "tokenizer_config.json": limits}
        pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
        sentence = {
            "modules.json": _SENTENCE,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": True},
            "config_sentence_transformers.json": {"default_prompt_name": None},
        }
        bert, vit, timm = _weights()
        folders: tuple[tuple[dict[str, Any], bytes], ...] = (
            (text, bert),
            ({**text, **sentence}, bert),
            ({"config.json": _BERT, "model.safetensors.index.json": _INDEX}, bert),
            ({"config.json": _VIT, "preprocessor_config.json": _PICTURES}, vit),
            ({"config.json": _VIT, "preprocessor_config.json": _SOUNDS}, vit),
            ({"config.json": _TIMM}, timm),
        )
        made = []
        for files, weights in folders:
            members = [(name, json.dumps(said).encode()) for name, said in files.items()]
            members.append((WEIGHTS, weights))
            made.append(archive_of(members, zipfile.ZIP_DEFLATED))
        return made

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        members = members_of(seed)
        texts = [name for name in members if name.endswith(".json")]
        name = rng.choice(texts if rng.random() < 0.95 else [*members])
        data = members[name]
        kind = rng.random()
        if kind < 0.15 or name == WEIGHTS:
            data = rng.choice((changed_bytes, grown))(data, rng)
        else:
            change = changed_leaves if kind < 0.6 else changed_record
            data = json.dumps(change(json.loads(data), rng, _WORDS)).encode()
        return archive_of([*{**members, name: data}.items()], zipfile.ZIP_DEFLATED)

    def check(self, data: bytes) -> str:
        place = self.folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        for name, content in members_of(data).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return quietly(lambda: _load(place), "loaded")


def _load(place: Path) -> None:
    """Read a folder, what it states of its inputs, and its model."""
    found = find_model(place)
    if isinstance(found, Folder):
        stated_pipeline(found)
        for note in found.hasten_notes:
            refused(InputError(note))  # which is shown, too
        found.made_up(found.module())


def _weights() -> tuple[bytes, bytes, bytes]:
    """Return weights of zeros for the networks of the seeds; without their libraries, one that fits none."""
    from safetensors.numpy import save

    try:
        import timm
        import transformers
    except ImportError:
        none = save({"weight": np.zeros((20, 16), np.float32)})
        return none, none, none
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**_BERT))
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT))
    nets = (bert, vit, timm.create_model(_TIMM["architecture"], num_classes=3))
    states = ({name: np.zeros_like(one) for name, one in net.state_dict().items()} for net in nets)
    first, second, third = map(save, states)
    return first, second, third
