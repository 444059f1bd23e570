"""Folders whose `config.json` claims what the folder doesn't have: files elsewhere, repositories, or sizes."""

import json
import os
import threading
import tracemalloc
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
    (folder / "model.safetensors").hardlink_to(source / "model.safetensors")
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
    "shard",
    ["../other.safetensors", "/other.safetensors", "a\\..\\b", "C:b", "..", "sub/a.safetensors", 3],
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


def made(kind: str, settings: dict[str, Any], folder: Path, **more: Any) -> Path:
    """Return a folder of a small model with random weights, whose configuration was changed then."""
    config_of = kind.removesuffix("Model").removesuffix("ForImageClassification") + "Config"
    config = getattr(transformers, config_of)(**settings)
    getattr(transformers, kind)(config).save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | more))
    return folder


@pytest.mark.parametrize("value", [1_000_000_000, 1e9, 10**400])
@pytest.mark.parametrize("where", ["num_hidden_layers", "text_config.depths", "num_labels"])
def test_more_layers_and_labels_than_weights_are_refused_before_any_is_made(
    encoder: Path, tmp_path: Path, where: str, value: float
) -> None:
    setting: Any = {where: value}
    if "." in where:
        setting = {"text_config": {"depths": [2, value]}}
    folder = copied(encoder, tmp_path / "m", **setting)
    shown = "1e15 or more" if value > 1e15 else f"{value:,}"
    most = "65,536" if where == "num_labels" else "1,000"
    assert refused(folder) == (
        f"{folder}/config.json claims {shown} in {where}, and the folder's weights are for {most} at most: if you "
        "trust it, add trust_code=True"
    )


@pytest.mark.parametrize(
    ("where", "value", "shown"),
    [
        ("depths", [1000] * 1000, "1,000,000"),
        ("depths", [[900, 100]] * 1000, "1,000,000"),
        ("attention_types", [[["global"], 1000]] * 1000, "1,000,000"),
        ("attention_types", [[["global"], 10**10]], "10,000,000,000"),
        ("depths", [float("nan"), *[1000] * 1000], "1,000,000"),
        ("depths", [10**400, 0.5, 1], "1e15 or more"),
    ],
)
def test_lists_of_many_layers_are_refused_before_any_is_made(
    encoder: Path, tmp_path: Path, where: str, value: Any, shown: str
) -> None:
    message = refused(copied(encoder, tmp_path / "m", **{where: value}))
    assert f"/config.json claims {shown} in {where}, and " in message


def test_a_distance_in_pictures_is_no_number_of_layers(tmp_path: Path) -> None:
    sizes = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    config = transformers.GLPNConfig(depths=[1] * 4, max_depth=10_000, **sizes)  # in millimetres
    transformers.GLPNForDepthEstimation(config).save_pretrained(tmp_path)
    assert find_model(tmp_path).module().config.max_depth == 10_000


def test_experts_that_are_rows_of_a_tensor_may_be_many(tmp_path: Path) -> None:
    """Doge states 16,384, also where it has none."""
    config = transformers.DogeConfig(**{**SMALL, "vocab_size": 20_000})
    transformers.DogeForSequenceClassification(config).save_pretrained(tmp_path)
    assert find_model(tmp_path).module().config.num_experts == 16_384


def test_empty_tensors_are_for_no_labels_and_layers(tmp_path: Path) -> None:
    """They take no bytes, whatever their other dimensions are."""
    from safetensors.torch import load_file, save_file

    folder = made("BertModel", SMALL, tmp_path / "m", num_labels=10**9, id2label=None)
    kept = load_file(folder / "model.safetensors")
    empty = {f"empty{number}": torch.zeros(10**12, 0) for number in range(2000)}
    save_file(kept | empty, folder / "model.safetensors", {"format": "pt"})
    assert (
        "claims 1,000,000,000 in num_labels, and the folder's weights are for 65,536 "
        in refused(folder)
    )
    stored = config_claims.stored(folder)
    assert (stored.tensors, stored.longest) == (len(kept), 64)


def test_what_a_second_configuration_claims_takes_no_memory(tmp_path: Path) -> None:
    """Transformers makes the configuration of this model of both files."""
    small = {"num_key_value_heads": 1, "head_dim": 8, "layer_types": ["full_attention"]}
    folder = made(
        "Qwen3_5TextModel", SMALL | small, tmp_path / "m", architectures=["JevForDecision"]
    )
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"text_config": stated}))
    slots = {"num_slots": 10**9, "verbalizers": [], "ranges": {}}
    (folder / "judge_config.json").write_text(json.dumps({"slots": slots}))
    (folder / "calibration.json").write_text(json.dumps({"per_kind": {}}))
    assert refused(folder) == (
        f"{folder} has judge_config.json, of which transformers makes another configuration than config.json: save the "
        "model with save_pretrained, or if you trust it, add trust_code=True"
    )


def test_links_to_weights_count_once(encoder: Path, tmp_path: Path) -> None:
    folder = copied(encoder, tmp_path / "m")
    before = config_claims.stored(folder)
    (folder / "inner").mkdir()
    (folder / "inner" / "hard.safetensors").hardlink_to(folder / "model.safetensors")
    for number in range(10):
        (folder / f"link{number}.safetensors").symlink_to("model.safetensors")
    assert config_claims.stored(folder) == before


@pytest.mark.parametrize("name", ["a.safetensors", "config.json", "part"])
def test_a_pipe_in_a_folder_isnt_waited_for(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = copied(encoder, tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "config.json":  # then it isn't a folder of Hugging Face
        assert not isinstance(find_model(folder), Folder)
        return
    with pytest.raises(InputError) as error:
        find_model(folder)
    assert str(error.value) == (
        f"{folder}/{name} is a pipe or a device, not a file: save what comes from it to a file, and give that"
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_of_more_parts_than_its_weights_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, nested: bool
) -> None:
    """Its numbers have names that say nothing, or are multiplied."""
    most = config_claims._MOST_BUILT if nested else 2048
    monkeypatch.setattr(config_claims, "_MOST_BUILT", most)
    claim = {"inner_group_num": 1000, "num_hidden_groups": 1000, "num_hidden_layers": 1000}
    settings = SMALL | {"embedding_size": 16}
    folder = made(
        "AlbertModel", settings, tmp_path / "m", **(claim if nested else {"inner_group_num": 10**9})
    )
    tensors = config_claims.stored(folder).tensors
    assert refused(folder) == (
        f"{folder}/config.json claims a model of more than {most:,} modules and parameters, and the folder's weights "
        f"have {tensors:,} tensors: if you trust it, add trust_code=True"
    )
    assert torch.nn.Linear(1, 1).weight.numel() == 1  # others may be built as before


@pytest.mark.parametrize(
    ("kind", "settings", "claim"),
    [
        ("BertModel", SMALL, {"vocab_size": 10**9}),
        ("BertModel", SMALL, {"max_position_embeddings": 10**9}),
        ("BertModel", SMALL, {"intermediate_size": 10**9}),
        (
            "ViTForImageClassification",
            {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            {"image_size": 60_000},
        ),
        (
            "ASTModel",
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 32},
            {"max_length": 10**6, "num_mel_bins": 10_000},
        ),
    ],
)
def test_a_model_larger_than_its_weights_takes_no_memory(
    tmp_path: Path, kind: str, settings: dict[str, Any], claim: dict[str, Any]
) -> None:
    folder = made(kind, settings, tmp_path / "m", **claim)
    size = (folder / "model.safetensors").stat().st_size
    begin, end = (
        f"{folder}/config.json claims a model of ",
        (
            f" bytes, and the folder's weights of {size:,} bytes are for {(256 << 20) + 8 * size:,} at most: if you "
            "trust it, add trust_code=True"
        ),
    )
    message = refused(folder)
    assert message.startswith(begin), message
    assert message.endswith(end), message
    assert int(message[len(begin) : -len(end)].replace(",", "")) > 1 << 30


@pytest.mark.parametrize("trusted", [False, True])
def test_weights_that_a_file_lacks_take_no_memory_unless_they_are_trusted(
    encoder: Path, tmp_path: Path, *, trusted: bool
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(encoder, tmp_path / "m", vocab_size=8 << 20)  # rows of 64 bytes
    kept = load_file(folder / "model.safetensors")
    del kept["embeddings.word_embeddings.weight"]
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    message = refused(folder, trust_code=trusted)
    if trusted:  # then the memory was taken
        assert message == (
            f"{folder} lacks 1 weights of BertModel, such as embeddings.word_embeddings.weight: save the whole model "
            "with save_pretrained"
        )
    else:
        assert message.startswith(f"{folder}/config.json claims a model of 536,")


CONVOLUTIONS = {
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
    "num_stages": 2,
    "image_size": 32,
}


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (
            {"image_size": 60_000},
            "a made-up sample of this model would take 4.12e+04 MiB: give data=",
        ),
        (
            {"image_size": [10**300, 10**300]},
            "a made-up sample of this model would take 4.398e+12 MiB: give data=",
        ),
        ({"image_size": -1}, "{config} has num_channels and image_size [3, -1, -1]: give data="),
        (
            {"image_size": ["a", 2]},
            "{config} has num_channels and image_size [3, 'a', 2]: give data=",
        ),
    ],
)
def test_a_picture_as_large_as_a_configuration_claims_takes_no_memory(
    tmp_path: Path, claim: dict[str, Any], said: str
) -> None:
    folder = made("ConvNextModel", CONVOLUTIONS, tmp_path / "m")
    found = find_model(folder)
    assert isinstance(found, Folder)
    module = found.module()
    changed = Folder(folder, {**found.config, **claim}, None)
    with pytest.raises(InputError) as error:
        changed.made_up(module)
    assert str(error.value) == said.format(config=folder / "config.json")


def test_a_sound_as_long_as_a_configuration_claims_takes_no_memory(tmp_path: Path) -> None:
    class Listening:
        main_input_name = "input_values"

    folder = Folder(tmp_path, {"num_mel_bins": 10_000, "max_length": 10**6}, None)
    with pytest.raises(InputError) as error:
        folder.made_up(Listening())
    assert str(error.value) == "a made-up sample of this model would take 3.815e+04 MiB: give data="


def timms(folder: Path, **more: Any) -> Path:
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("timm.models._hub")
    module = timm.create_model("test_resnet", num_classes=3)
    hub.save_for_hf(module, folder, safe_serialization=True)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | more))
    return folder


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (
            {"num_classes": 10**9},
            "{folder}/config.json claims 1,000,000,000 in num_classes, and the folder's weights are for 65,536 at "
            "most: if you trust it, add trust_code=True",
        ),
        (
            {"model_args": {"layers": [1, 1, 10**9, 1]}},
            "{folder}/config.json claims 1,000,000,000 in model_args.layers, and the folder's weights are for 1,000 "
            "at most: if you "
            "trust it, add trust_code=True",
        ),
        (
            {"model_args": {"in_chans": 10**9}},
            "{folder}/model.safetensors: the weights don't fit the model: ['size mismatch for conv1.0.weight: "
            "copying a param with shape torch.Size([16, 3, 3, 3]) from checkpoint, the shape in current model is "
            "torch.Size([16, 1000000000, 3, 3]).']",
        ),
    ],
)
def test_timm_builds_no_more_than_the_weights(
    tmp_path: Path, claim: dict[str, Any], said: str
) -> None:
    folder = timms(tmp_path / "m", **claim)
    assert refused(folder) == said.format(folder=folder)


def test_a_picture_as_large_as_timms_settings_claim_takes_no_memory(tmp_path: Path) -> None:
    folder = timms(tmp_path / "m")
    stated = json.loads((folder / "config.json").read_text())
    stated["pretrained_cfg"]["input_size"] = [3, 60_000, 60_000]
    (folder / "config.json").write_text(json.dumps(stated))
    found = find_model(folder)
    assert isinstance(found, Folder)
    with pytest.raises(InputError) as error:
        found.made_up(found.module())
    assert str(error.value) == "a made-up sample of this model would take 4.12e+04 MiB: give data="


def test_json_that_is_nested_too_deeply_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = copied(encoder, tmp_path / "model")
    said = "can't be read as JSON: maximum recursion depth exceeded"
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    assert refused(folder).startswith(f"{folder}/model.safetensors.index.json {said}")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=said):
        find_model(folder)


def test_an_architecture_is_shown_without_control_characters(encoder: Path, tmp_path: Path) -> None:
    folder = copied(encoder, tmp_path / "model", architectures=["\x1b[2J\n"])
    assert refused(folder).startswith(
        f"transformers {transformers.__version__} has no \\x1b[2J\\n, the architecture of {folder}: "
    )


def test_a_long_name_above_many_settings_takes_no_memory_for_each(tmp_path: Path) -> None:
    config = {"K" * 50_000: {f"a{number}": 1 for number in range(5_000)}}
    config["K" * 50_000]["num_layers"] = 10**9
    tracemalloc.start()
    try:
        config_claims.check_places(tmp_path, config)
        with pytest.raises(InputError) as error:
            config_claims.check_counts(tmp_path, config, config_claims.Stored(1, 1, 4))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 << 20  # before, 250 MB
    assert f"claims 1,000,000,000 in {'K' * 100}, and" in str(error.value)
