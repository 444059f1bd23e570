"""Folders whose `config.json` claims what the folder doesn't have: files elsewhere, repositories, or sizes."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import InputError
from hasten.inputs.models import config_claims
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.source import find_model

torch = pytest.importorskip("torch", reason="needs the extra torch")
transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
constants = pytest.importorskip("huggingface_hub.constants")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 64,
}
ADVICE = (
    "so loading it could open other files or ask the network: if you trust it, add trust_code=True, or load it in "
    "a my.py and give my.py:model"
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    return folder


def copied(source: Path, folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(
        source / "model.safetensors"
    )  # as the Hub's cache does
    stated = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | more))
    return folder


def refused(folder: Path, **options: Any) -> str:
    found = find_model(folder, **options)
    assert isinstance(found, Folder)
    with pytest.raises(InputError) as error:
        found.module()
    assert "\n" not in str(error.value)
    return str(error.value)


def of_timm(folder: Path, **more: Any) -> Path:
    """Return a folder that transformers would load by its wrapper of timm's models."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    stated = {
        "architecture": "test_resnet",
        "architectures": ["TimmWrapperModel"],
        "model_type": "timm_wrapper",
    }
    (folder / "config.json").write_text(json.dumps(stated | more))
    return folder


@pytest.mark.parametrize(
    "spelling",
    [
        ["TimmWrapperModel"],
        ["TimmWrapperForImageClassification", "TimmWrapperForImageClassification"],
    ],
)
@pytest.mark.parametrize("argument", sorted(config_claims.NO_ARGUMENTS))
def test_timms_arguments_name_no_files_in_any_spelling_of_the_architecture(
    tmp_path: Path, spelling: list[str], argument: str
) -> None:
    place = str(tmp_path / "elsewhere.pth")
    folder = of_timm(tmp_path / "m", architectures=spelling, model_args={argument: place})
    assert refused(folder) == (
        f"{folder}/config.json has {place[:60]!r} in model_args.{argument}, {ADVICE}"
    )


@pytest.mark.parametrize("name", ["hf-hub:x/y", "local-dir:/other/folder", "x/y", "hf_hub:x"])
def test_timms_name_is_no_address(tmp_path: Path, name: str) -> None:
    folder = of_timm(tmp_path / "m", architecture=name)
    assert refused(folder) == f"{folder}/config.json has {name!r} in architecture, {ADVICE}"


@pytest.mark.parametrize(
    ("setting", "where", "shown"),
    [
        ({"backbone": "x/y"}, "backbone", "'x/y'"),
        ({"backbone": "/other/folder", "use_timm_backbone": True}, "backbone", "'/other/folder'"),
        ({"backbone": "resnet50", "use_timm_backbone": False}, "backbone", "'resnet50'"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:x/y"}},
            "backbone_config.backbone",
            "'hf-hub:x/y'",
        ),
        (
            {"towers": [{"vision_config": {"model_args": {"checkpoint_path": "/f"}}}]},
            "towers.vision_config.model_args.checkpoint_path",
            "'/f'",
        ),
        ({"vision_config": {"model_args": ["/f"]}}, "vision_config.model_args", "a list"),
        (
            {"vision_config": {"architecture": "hf-hub:a/b"}},
            "vision_config.architecture",
            "'hf-hub:a/b'",
        ),
        ({"text_config": {"auto_map": {"AutoModel": "a.B"}}}, "text_config.auto_map", "a dict"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files", "a list"),
        (
            {"transformers_weights": "../x.safetensors"},
            "transformers_weights",
            "'../x.safetensors'",
        ),
        ({"attn_implementation": "x/kernel:f"}, "attn_implementation", "'x/kernel:f'"),
        ({"_attn_implementation": {"": "x/y"}}, "_attn_implementation", "a dict"),
        (
            {"text_config": {"experts_implementation": "x/y"}},
            "text_config.experts_implementation",
            "'x/y'",
        ),
        ({"backbone": "a\x1b[2Jb/c\n"}, "backbone", "'a\\\\x1b[2Jb/c\\\\n'"),
    ],
)
def test_a_setting_that_names_a_place_is_refused_wherever_it_stands(
    encoder: Path, tmp_path: Path, setting: dict[str, Any], where: str, shown: str
) -> None:
    folder = copied(encoder, tmp_path / "m", **setting)
    assert refused(folder) == f"{folder}/config.json has {shown} in {where}, {ADVICE}"


@pytest.mark.parametrize(
    "setting",
    [
        {"backbone": "resnet50", "use_timm_backbone": True},
        {"backbone": None, "transformers_weights": None, "auto_map": None, "model_args": None},
        {"attn_implementation": "sdpa", "_name_or_path": "google-bert/bert-base-uncased"},
        {"label2id": {"backbone": 0, "architecture": 1}, "id2label": {"0": "a/b", "1": "c:d"}},
    ],
)
def test_settings_of_ordinary_folders_are_none(setting: dict[str, Any]) -> None:
    config_claims.check_places(Path("nowhere"), setting)


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/other.safetensors", "a\\..\\b", "C:b", 3]
)
def test_parts_of_the_weights_lie_in_the_folder(encoder: Path, tmp_path: Path, shard: Any) -> None:
    folder = copied(encoder, tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "b.safetensors", "c": shard}}))
    shown = "a int" if isinstance(shard, int) else repr(shard)
    assert refused(folder) == f"{index} has {shown} in weight_map, {ADVICE}"


def test_an_adapter_in_the_folder_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = copied(encoder, tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    assert refused(folder) == (
        f"{folder} has an adapter of PEFT (adapter_config.json), which may name other files: merge it into the "
        "model (merge_and_unload) and save that with save_pretrained, or add trust_code=True"
    )


@pytest.mark.parametrize(
    "name", ["RagRetriever", "AutoTokenizer", "pipeline", "BertConfig", "AutoModel"]
)
def test_only_models_are_loaded(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = copied(encoder, tmp_path / "m", architectures=[name], index_path="/other")
    assert refused(folder) == (
        f"{name}, the architecture of {folder}, isn't a model of transformers {transformers.__version__}"
    )


def test_a_folder_is_loaded_without_the_network(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = copied(
        encoder,
        tmp_path / "m",
        architectures=["DepthAnythingForDepthEstimation"],
        model_type="depth_anything",
        backbone="resnet50",
        use_timm_backbone=True,  # this class asks the Hub nevertheless
    )
    assert refused(folder).startswith(
        f"{folder} can't be loaded by transformers {transformers.__version__}: OfflineModeIsEnabled: Cannot reach "
        f"{constants.ENDPOINT}/api/models/resnet50: offline mode is enabled."
    )
    assert not constants.is_offline_mode()


def test_the_network_is_allowed_again_once_the_last_thread_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    entered, leave = threading.Event(), threading.Event()

    def load() -> None:
        with config_claims.offline():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=load)
    with config_claims.offline():
        other.start()
        assert entered.wait(60)
    assert constants.is_offline_mode()
    leave.set()
    other.join()
    assert not constants.is_offline_mode()
