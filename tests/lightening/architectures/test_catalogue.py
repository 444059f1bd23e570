"""The catalogue: every line builds, with every knob that it offers, and costs what it says."""

from collections.abc import Iterable
from typing import Any

import pytest

from hasten.errors import InputError
from hasten.lightening.architectures import (
    CATALOGUE,
    build,
    deployed,
    find,
    multiply_adds,
    parameters,
)

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

NAMES = [one.name for one in CATALOGUE]
CLASSIFIERS = [one.name for one in CATALOGUE if one.task == "classify"]
FAMILIES = sorted({one.family for one in CATALOGUE})


def some_later(names: Iterable[str]) -> list[Any]:
    """Leave networks of many branches, which take a second each, to the longer tests."""
    return [
        pytest.param(name, marks=pytest.mark.seconds) if name.startswith("mobileone") else name
        for name in names
    ]


def refusal(name: str, shape: tuple[int, ...], **knobs: float) -> str:
    with pytest.raises(InputError) as refused:
        build(find(name), 4, shape, **knobs)  # type: ignore[arg-type]
    return str(refused.value)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_builds_at_its_least_size_for_grey_images_too(name: str) -> None:
    one = find(name)
    shape = (1, one.least, one.least)
    module = build(one, 7, shape, one.widths[0]).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", some_later(FAMILIES))
def test_a_wider_network_has_more_parameters_and_a_smaller_image_takes_less(name: str) -> None:
    one = find(name)
    shape = (3, 2 * one.least, 2 * one.least)
    madds, size = multiply_adds(one, 5, shape, one.widths[-1])
    if len(one.widths) > 1:
        narrow, less = multiply_adds(one, 5, shape, one.widths[0])
        assert narrow < madds
        assert less < size
    smaller, same = multiply_adds(one, 5, shape, one.widths[-1], one.least)
    assert smaller < madds / 2
    assert same <= size


@pytest.mark.parametrize(
    "name", some_later(["mobilenetv2", "ghostnet", "mobileone-s0", "resnet10", "vit-tiny"])
)
def test_fewer_strides_take_more_multiply_adds(name: str) -> None:
    lines = [one for one in CATALOGUE if one.family == name]
    side = lines[0].least
    costs = [multiply_adds(one, 5, (3, side, side), lines[0].widths[0])[0] for one in lines]
    assert costs[0] * 2 < costs[1] < costs[2] / 2


@pytest.mark.parametrize(
    "name", ["mobilenetv2-s8", "resnet10-s16", "shufflenetv2-s8", "convnext-atto-s8"]
)
def test_a_network_with_fewer_strides_sees_more_positions(name: str) -> None:
    one = find(name)
    sizes: list[tuple[int, ...]] = []
    module = build(one, 5, (3, 64, 64), one.widths[0]).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda _, __, given: sizes.append(tuple(given.shape[2:])))
    with torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    last = 64 // one.stride
    assert (last, last) in sizes
    assert all(size >= (last, last) for size in sizes if size != (1, 1))


@pytest.mark.parametrize(
    "name", [n for n in FAMILIES if n not in ("mobilenetv4-medium", "mobileone-s1")]
)
def test_the_catalogue_says_what_the_published_network_takes(name: str) -> None:
    one = find(name)
    classes = 1000 if one.task == "classify" else 80
    madds, _ = multiply_adds(one, classes, (3, one.pixels, one.pixels))
    assert madds == pytest.approx(one.madds, rel=0.01)
    assert one.promise(one.madds) == one.accuracy
    assert one.promise(one.madds / 2) == one.accuracy - 5


def test_an_estimate_is_near_the_count() -> None:
    for name in ("mobilenetv2", "mobilenetv2-s8", "resnet18-s16", "lcnet", "vit-tiny-s8"):
        one = find(name)
        counted, _ = multiply_adds(one, 43, (3, 64, 64), 0.5)
        assert one.estimate(64, 64, 0.5) == pytest.approx(counted, rel=0.35)


def test_a_smaller_working_size_stands_in_the_place_of_the_users_own() -> None:
    module = build(find("lcnet-s8"), 4, (3, 40, 56), 0.35, pixels=24).eval()
    image = torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        answer = module(image)
        assert answer.shape == (2, 4)
        assert module.inner == (17, 24)
        detail = image.clone()
        detail[:, :, 20:22, 20:22] += 1.0  # averaging skips no pixel
        assert not torch.equal(module(detail), answer)


def test_branches_for_training_are_merged_where_a_network_is_deployed() -> None:
    module = build(find("mobileone-s0-s8"), 4, (3, 16, 16)).eval()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged, exact = deployed(module), module(image)
        gap = (merged(image) - exact).abs().max()
    assert gap <= 1e-3 * exact.abs().max()  # untrained, its answers are large and of unlike sizes
    assert parameters(merged) < parameters(module) / 2


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (build(find("lcnet-s8"), 4, (3, 16, 16), 0.35, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [next(module.parameters()) for module in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_knobs_that_a_network_lacks_are_refused() -> None:
    assert refusal("lcnet", (3, 64, 64), width=0.6) == (
        "lcnet comes in the widths 0.35, 0.5, 0.75, 1, 1.5: got 0.6"
    )
    assert refusal("lcnet", (3, 28, 28)) == (
        "lcnet needs a longer side of at least 64 pixels: got 28"
    )
    assert refusal("lcnet", (3, 64)) == (
        "an input is channels x height x width, such as 3x64x64: got 3x64"
    )
    for name, rest in (("lcnt", "similar names are lcnet, "), ("xyz", "it has mobilenetv2, ")):
        with pytest.raises(InputError) as refused:
            find(name)
        assert str(refused.value).startswith(f"the catalogue has no architecture {name!r}; {rest}")


def test_every_line_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
