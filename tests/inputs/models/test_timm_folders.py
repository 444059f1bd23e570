"""Folders of timm models in the form that the Hub has, made from small models with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_model, stated_pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import Resize
from hasten.testing import models

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm = pytest.importorskip("timm")
SMALL = "test_resnet"
KINDS = ["cat", "dog", "owl"]


def folder_of(path: Path, *, safe: bool = True, **model_config: Any) -> tuple[Path, Any]:
    """Return a folder that timm wrote as it writes them for the Hub, and its module."""
    hub = pytest.importorskip("timm.models._hub")
    if not hub.has_hf_hub():
        pytest.skip("timm writes a folder only with huggingface_hub")
    torch.manual_seed(0)
    module = timm.create_model(SMALL, num_classes=3, in_chans=3).eval()
    hub.save_for_hf(module, path, model_config or None, safe_serialization=safe)
    return path, module


def changed(folder: Path, **more: Any) -> Path:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | more))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(find_model(folder), None, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.seconds
def test_a_folder_from_the_hub_answers_as_timms_module(tmp_path: Path) -> None:
    folder, module = folder_of(tmp_path / "m")
    model = load_model(find_model(folder), None, tmp_path)
    assert model.inputs[0].shape == ("batch", 3, 160, 160)
    x = np.random.default_rng(0).standard_normal((2, 3, 160, 160), np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    (answer,) = onnxruntime.InferenceSession(str(model.path)).run(None, {model.inputs[0].name: x})
    np.testing.assert_allclose(wanted, answer, atol=1e-4)


def test_weights_that_torch_wrote_are_read_too(tmp_path: Path) -> None:
    folder, module = folder_of(tmp_path / "m", safe=False)
    assert (folder / "pytorch_model.bin").is_file()
    assert not (folder / "model.safetensors").exists()
    x = torch.ones(1, 3, 160, 160)
    assert torch.equal(find_model(folder).module()(x), module(x))


def test_its_pictures_are_prepared_as_timm_does_and_its_classes_named(tmp_path: Path) -> None:
    words = {"cat": "a cat", "dog": "a dog"}
    folder, _ = folder_of(tmp_path / "m", label_names=KINDS, label_descriptions=words)
    pipeline = stated_pipeline(find_model(folder))
    assert pipeline is not None
    assert Resize(int(160 / 0.95), "bilinear") in pipeline.steps
    assert pipeline.after == (TopK(3, ("a cat", "a dog", "owl")),)


def test_a_picture_becomes_the_same_numbers_as_by_timms_own_transform(tmp_path: Path) -> None:
    from PIL import Image

    folder, module = folder_of(tmp_path / "m")
    noise = np.random.default_rng(0).integers(0, 256, (180, 210, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "p.png")
    pipeline = stated_pipeline(find_model(folder))
    assert pipeline is not None
    own = pipeline((tmp_path / "p.png").read_bytes())
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    np.testing.assert_allclose(own, transform(Image.fromarray(noise)).numpy(), atol=0.02)


def test_a_folder_of_the_old_form_is_read_too(tmp_path: Path) -> None:
    folder, module = folder_of(tmp_path / "m")
    stated = json.loads((folder / "config.json").read_text())
    flat = stated.pop("pretrained_cfg") | stated
    (folder / "config.json").write_text(json.dumps(flat))
    found = find_model(folder)
    assert stated_pipeline(found) is not None
    x = torch.ones(1, 3, 160, 160)
    assert torch.equal(found.module()(x), module(x))


def test_a_folder_that_transformers_saved_is_read_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    folder, module = folder_of(tmp_path / "m", label_names=KINDS)
    changed(folder, model_args=None)  # transformers 5.24 doesn't read those of timm 1.0.31
    kind = transformers.TimmWrapperForImageClassification
    kind.from_pretrained(folder).save_pretrained(tmp_path / "again")
    found = find_model(tmp_path / "again")
    pipeline = stated_pipeline(found)
    assert pipeline is not None
    assert pipeline.after == (TopK(3, tuple(KINDS)),)
    x = torch.ones(1, 3, 160, 160)
    assert torch.equal(found.module()(x), module(x))


def test_a_folder_of_a_network_that_transformers_made_is_read_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    config = transformers.TimmWrapperConfig(architecture=SMALL, num_labels=3)
    module = transformers.TimmWrapperForImageClassification(config).eval()
    module.save_pretrained(tmp_path)
    x = torch.ones(1, 3, 160, 160)
    assert torch.equal(find_model(tmp_path).module()(x), module(x).logits)


def test_an_onnx_file_in_the_folder_is_read_instead(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m")
    path = models.two_inputs(folder)
    assert load_model(find_model(folder), None, tmp_path).path == path


def test_other_than_three_channels_leave_arrays(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m")
    stated = json.loads((folder / "config.json").read_text())
    changed(folder, pretrained_cfg=stated["pretrained_cfg"] | {"input_size": [1, 64, 64]})
    found = find_model(folder)
    assert stated_pipeline(found) is None
    assert found.hasten_notes == (
        "the bundle takes prepared arrays: pretrained_cfg has 1 channel, but mean=[0.5, 0.5, 0.5] and "
        "std=[0.5, 0.5, 0.5]: state the pipeline yourself",
    )


def test_a_share_that_no_picture_can_be_scaled_by_leaves_arrays(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m")
    stated = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    found = find_model(changed(folder, pretrained_cfg={**stated, "crop_pct": 5e-324}))
    assert stated_pipeline(found) is None
    (note,) = found.hasten_notes
    assert note.startswith(
        "the bundle takes prepared arrays: the preparation in config.json can't be read"
    )


def test_what_cant_be_loaded_is_said(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m")
    place = {"checkpoint_path": "elsewhere.pth"}
    assert refused(changed(folder, model_args=place)) == (
        f"model_args in {folder}/config.json sets checkpoint_path, which isn't allowed"
    )
    assert refused(changed(folder, model_args={"wings": 2})).startswith(
        f"timm {timm.__version__} can't build the {SMALL} of {folder}: "
    )
    assert refused(changed(folder, model_args={}, num_classes=4)).startswith(
        f"{folder}/model.safetensors: the weights don't fit the model: "
    )
    assert refused(changed(folder, architecture="resnet18x")).startswith(
        f"timm {timm.__version__} has no model 'resnet18x'"
    )
    (folder / "model.safetensors").unlink()
    assert refused(changed(folder, architecture=SMALL)) == (
        f"{folder} has neither an ONNX file nor weights: the weights of a timm model are in "
        "model.safetensors or pytorch_model.bin"
    )


def test_weights_that_share_their_numbers_do_not_allow_a_larger_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = folder_of(tmp_path / "folder", safe=False)
    own = module.state_dict()
    longest = max(own.values(), key=lambda each: each.numel()).flatten()
    shared = {
        name: longest[: each.numel()].view(each.shape) for name, each in own.items() if each.dim()
    }
    torch.save(own | shared, folder / "pytorch_model.bin")
    monkeypatch.setattr("hasten.inputs.models.config_claims.LARGEST_BYTES", 0)
    monkeypatch.setattr("hasten.inputs.models.config_claims._MOST_TIMES", 1)
    assert "claims a model of" in refused(folder)
