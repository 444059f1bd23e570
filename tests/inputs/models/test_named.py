import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.bombs import padded, with_little_unasked

from hasten.errors import InputError
from hasten.inputs.models import named
from hasten.inputs.models.source import find_model, load_model, stated_pipeline
from hasten.inputs.pipeline.image import CenterCrop

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm = pytest.importorskip("timm")
SMALL = "test_resnet"


def refused(name: str) -> str:
    with pytest.raises(InputError) as error:
        find_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_without_weights_is_refused() -> None:
    assert refused(f"timm:{SMALL}") == (
        f"timm:{SMALL} names no weights: give a file of weights, "
        f"timm:{SMALL}@weights.safetensors, or timm:{SMALL}@random for random weights, which "
        "show the speed but give meaningless answers; load the library's pretrained weights in a "
        "my.py of yours"
    )


def test_random_weights_are_said() -> None:
    module = find_model("torchvision:squeezenet1_1@random")
    assert not module.training
    assert module.hasten_notes == (
        "the weights of torchvision:squeezenet1_1 are random: its speed is right, but its "
        "answers mean nothing",
    )
    pipeline = stated_pipeline(module)
    assert pipeline is not None
    assert CenterCrop(224) in pipeline.steps


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file_are_the_models_with_their_number_of_classes(
    tmp_path: Path, suffix: str
) -> None:
    own = timm.create_model(SMALL, num_classes=7).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": own.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(own.state_dict(), path)
    module = find_model(f"timm:{SMALL}@{path}")
    x = torch.ones(1, 3, 64, 64)
    assert torch.equal(module(x), own(x))
    assert module.hasten_notes == ()


@pytest.mark.parametrize(
    "name",
    [
        "levit_128s",  # distilled: it has two classifiers
        pytest.param("deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_two_classifiers_have_the_number_of_classes_of_the_weights(
    tmp_path: Path, name: str
) -> None:
    own = timm.create_model(name, num_classes=7).eval()
    torch.save(own.state_dict(), tmp_path / "w.pth")
    module = find_model(f"timm:{name}@{tmp_path / 'w.pth'}")
    x = torch.ones(1, 3, 224, 224)
    assert torch.equal(module(x), own(x))


def without_weights(name: str, **more: Any) -> Any:
    """Return a module of torchvision with weights at random."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return models.get_model(name, weights=None, **more).eval()


DETECTORS = [
    "ssdlite320_mobilenet_v3_large",
    pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", marks=pytest.mark.slow),
    pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.slow),
    pytest.param("keypointrcnn_resnet50_fpn", marks=pytest.mark.slow),
    pytest.param("retinanet_resnet50_fpn", marks=pytest.mark.slow),
    pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
]


@pytest.mark.seconds
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_own_weights_are_taken_and_what_to_do_is_said_before_an_export(
    tmp_path: Path, name: str
) -> None:
    own = without_weights(name, weights_backbone=None, num_classes=4)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    module = find_model(f"torchvision:{name}@{tmp_path / 'w.pth'}")
    stored = module.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in own.state_dict().items())
    with pytest.raises(InputError) as error:
        load_model(module, None, tmp_path)
    assert str(error.value) == (
        f"torchvision:{name} is a detector, and torch's exporter can't follow how it chooses "
        "boxes: export it in your own code by the older exporter, torch.onnx.export(module, (x,), "
        "'model.onnx', dynamo=False), and give that file"
    )


@pytest.mark.seconds
@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"]
)
def test_a_segmenters_weights_are_taken_with_and_without_the_head_for_training(
    tmp_path: Path, name: str
) -> None:
    heads = {} if name.startswith("lraspp") else {"aux_loss": True}
    own = without_weights(name, weights_backbone=None, num_classes=4, **heads)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    module = find_model(f"torchvision:{name}@{tmp_path / 'w.pth'}")
    x = torch.ones(1, 3, 64, 64)
    assert torch.equal(module(x)["out"], own(x)["out"])
    assert "aux" not in module(x)


@pytest.mark.parametrize("heads", [True, False])
def test_a_checkpoint_may_lack_the_heads_of_training(tmp_path: Path, heads: bool) -> None:
    own = without_weights("googlenet", aux_logits=heads, init_weights=False, num_classes=4)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    module = find_model(f"torchvision:googlenet@{tmp_path / 'w.pth'}")
    x = torch.ones(1, 3, 64, 64)
    assert torch.equal(module(x), own(x))
    assert module.hasten_notes == (
        "torchvision:googlenet is built with transform_input=False: with torchvision's own "
        "weights, which were trained with it, load it in a my.py",
    )


def test_a_network_without_classes_takes_its_weights(tmp_path: Path) -> None:
    own = without_weights("raft_small")
    torch.save(own.state_dict(), tmp_path / "w.pth")
    module = find_model(f"torchvision:raft_small@{tmp_path / 'w.pth'}")
    assert torch.equal(next(iter(module.state_dict().values())), next(iter(own.parameters())))


@pytest.mark.seconds
def test_a_named_model_needs_no_data_to_be_exported(tmp_path: Path) -> None:
    model = load_model(find_model(f"timm:{SMALL}@random"), None, tmp_path)
    assert model.inputs[0].shape == ("batch", 3, 160, 160)


def pickled(path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)


def other(path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, path)


def empty(path: Path) -> None:
    torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (pickled, "can't be read as weights without running code that it contains: "),
        (other, "the weights don't fit the model: "),
        (empty, "contains no named weights: save the module's state_dict()"),
    ],
)
def test_files_that_hold_no_weights_of_the_model(tmp_path: Path, write: Any, said: str) -> None:
    write(tmp_path / "w.pth")
    assert said in refused(f"timm:{SMALL}@{tmp_path / 'w.pth'}")


def test_a_checkpoint_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    path = tmp_path / "w.pth"
    other(path)
    said = padded(path, "w/data/9")
    assert refused(f"timm:{SMALL}@{path}") == f"{path} can't be unpacked safely: {said}"


class Long:
    """A type whose name is as long as a stranger likes."""


Long.__qualname__ = Long.__name__ = "L" * 1001


def test_a_checkpoint_with_a_long_name_of_a_type_is_refused_before_torch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], Long.__name__, Long, raising=False)
    path = tmp_path / "w.pth"
    torch.save({"weight": Long()}, path)
    assert refused(f"timm:{SMALL}@{path}") == f"{path} names a type by more than 1000 characters"


def test_names_that_arent_there(tmp_path: Path) -> None:
    assert refused("timm:resnet18x").startswith(f"timm {timm.__version__} has no model 'resnet18x'")
    assert refused("torchvision:squeezenet9") == "torchvision has no model 'squeezenet9'"
    assert (
        refused(f"timm:{SMALL}@{tmp_path}/no.pth") == f"no such file of weights: {tmp_path}/no.pth"
    )


def test_other_names_are_left_to_others() -> None:
    assert not named.is_named("my.py:net")
    assert not named.is_named("model.onnx")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: torch.zeros(1).expand(1 << 33, 8),
            "have the shape [8589934592, 8], of 274,877,906,944 bytes, but the file has 4: call .contiguous() on it",
        ),
        (
            lambda: torch.zeros(1 << 40, 8, device="meta"),
            "are sparse, quantized, or on torch's meta device",
        ),
        (
            lambda: torch.zeros(1 << 10, 8).to_sparse(),
            "are sparse, quantized, or on torch's meta device",
        ),
    ],
    ids=["expanded", "meta", "sparse"],
)
def test_weights_that_claim_more_memory_than_they_have_are_refused(
    made: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"linear.weight": made()}, path)
    with pytest.raises(InputError) as error:
        named.read_weights(path)
    assert str(error.value) == (
        f"{path} can't be used: its weights 'linear.weight' {said}; save the module's state_dict() with plain tensors"
    )


def test_what_all_weights_claim_beyond_a_file_is_bounded_together(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    masks = {str(number): torch.ones(1).expand(1 << 11, 1 << 11) for number in range(5)}
    torch.save(masks, path)
    with pytest.raises(
        InputError, match=r"its weights '4' have the shape \[2048, 2048\], of 16,777"
    ):
        named.read_weights(path)
    del masks["4"], masks["3"]
    torch.save(masks, path)
    assert named.read_weights(path)["2"].shape == (1 << 11, 1 << 11)


@pytest.mark.seconds
def test_a_network_without_a_head_gets_that_of_the_weights(tmp_path: Path) -> None:
    tuned = timm.create_model("vit_small_patch14_dinov2", num_classes=7)
    path = tmp_path / "tuned.pt"
    torch.save(tuned.state_dict(), path)
    assert named.load(f"timm:vit_small_patch14_dinov2@{path}").num_classes == 7


def test_weights_may_share_their_numbers_and_repeat_a_few(tmp_path: Path) -> None:
    path, own = tmp_path / "weights.bin", torch.arange(1 << 20).reshape(1 << 10, 1 << 10)
    torch.save({"a": own, "b": own, "c": own.t(), "d": torch.ones(1).expand(512, 512)}, path)
    assert named.read_weights(path)["d"].shape == (512, 512)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_number_of_classes_is_taken_from_no_weights_of_another_form(
    library: str, tmp_path: Path
) -> None:
    """Rows of no numbers take no bytes of a file, but those of a model would."""
    path = tmp_path / "weights.bin"
    if library == "timm":
        name, key = SMALL, timm.create_model(SMALL).pretrained_cfg["classifier"]
    else:
        name, key = "squeezenet1_1", "classifier.1"
    torch.save(
        {f"{key}.weight": torch.zeros(1 << 40, 0), f"{key}.bias": torch.zeros(1 << 18)}, path
    )
    assert "the weights don't fit the model" in refused(f"{library}:{name}@{path}")
