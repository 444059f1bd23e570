"""Networks of each kind, pruned to a latency by made-up costs."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.lightening.pruning.networks import KINDS, Residual, conv, costs, made, silence, squares
from torch import nn

from hasten.core.records import from_record, to_record
from hasten.errors import CandidateError, InputError
from hasten.lightening.pruning.channels import Prunable, Pruned, schedule
from hasten.lightening.pruning.importance import Losses, importance, loss_values, sensitivity
from hasten.lightening.pruning.layers import Sample, answers, layers
from hasten.lightening.pruning.plan import PruningPlan, apply
from hasten.lightening.pruning.structure import groups


def halved(module: nn.Module, sample: Sample, share: float = 0.6, **settings: object) -> Pruned:
    """Prune to a share of the made-up latency."""
    table = costs(module, sample)
    target_ns = share * table.predicted_ns(layers(module, sample))
    network = Prunable(module, sample, squares(sample), **settings)  # type: ignore[arg-type]
    return network.to(table, target_ns)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_network_answers_with_fewer_channels_and_the_original_is_untouched(
    kind: str,
) -> None:
    module, sample = made(kind)
    before = copy.deepcopy(module.state_dict())
    first = next(module.parameters())
    first.grad = torch.ones_like(first)
    wanted = answers(module, sample)
    pruned = halved(module, sample, blocks=False)
    given = answers(pruned.module, sample)
    assert [tensor.shape for tensor in given] == [tensor.shape for tensor in wanted]
    assert all(bool(tensor.isfinite().all()) for tensor in given)
    assert pruned.predicted_ns <= 0.6 * pruned.before_ns
    assert pruned.macs_after < pruned.macs_before
    assert pruned.kept
    assert all(after < channels for channels, after in pruned.kept.values())
    kinds = [layer.shape.kind for layer in layers(module, sample)]
    assert [layer.shape.kind for layer in layers(pruned.module, sample)] == kinds
    assert bool(first.grad.all())
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_of_each_layer_is_a_multiple_of_the_snap(kind: str) -> None:
    module, sample = made(kind)
    pruned = halved(module, sample, blocks=False)
    heads = {layer.name for layer in layers(module, sample) if layer.shape.kind == "attention"}
    counts = [n for name, (_, n) in pruned.kept.items() if name not in heads and "qkv" not in name]
    assert counts
    assert all(count % 8 == 0 for count in counts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_makes_the_same_network_of_a_fresh_original(kind: str) -> None:
    module, sample = made(kind)
    pruned = halved(module, sample)
    plan = from_record(PruningPlan, to_record(pruned.plan))
    assert plan == pruned.plan
    again = apply(KINDS[kind](), plan)
    again.load_state_dict(pruned.module.state_dict())
    for one, other in zip(answers(again, sample), answers(pruned.module, sample), strict=True):
        assert torch.equal(one, other)


def test_plans_of_several_steps_make_one() -> None:
    module, sample = made("residual")
    table = costs(module, sample)
    now_ns = table.predicted_ns(layers(module, sample))
    step, plan = module, PruningPlan()
    for target_ns in schedule(now_ns, 0.5 * now_ns, 3):
        pruned = Prunable(step, sample, squares(sample)).to(table, target_ns)
        step, plan = pruned.module, plan.then(pruned.plan)
    whole = apply(module, plan)
    assert table.predicted_ns(layers(whole, sample)) <= 0.5 * now_ns
    for one, other in zip(answers(whole, sample), answers(step, sample), strict=True):
        assert torch.equal(one, other)


def test_the_channels_left_out_are_those_that_nothing_depends_on() -> None:
    module, sample = made("separable")
    dead = range(0, 64, 2)
    reader = module.get_submodule("3.0")
    assert isinstance(reader, nn.Conv2d)
    with torch.no_grad():
        reader.weight[:, ::2] = 0
    wanted = answers(module, sample)
    pruned = halved(module, sample, 0.75, keep=("0.0",), blocks=False)
    (cut,) = [cut for cut in pruned.plan.cuts if cut.name == "1.0"]
    assert not set(range(64)) - set(cut.kept) - set(dead)
    assert torch.allclose(answers(pruned.module, sample)[0], wanted[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_outputs_are_made_of_stays(kind: str) -> None:
    module, sample = made(kind)
    last = {"two-headed": {"coarse", "fine"}, "transformer": {"head"}}.get(kind)
    found = groups(module, sample)
    outputs = {m.name for group in found for m in group.members if m.axis == "outputs"}
    assert found
    assert not outputs & (
        last or {name for name in dict(module.named_modules()) if "linear" in name}
    )


def test_layers_that_are_to_be_kept_are_left_alone() -> None:
    module, sample = made("residual")
    free, kept = groups(module, sample), groups(module, sample, keep=("0.0",))
    (stream,) = set(free) - set(kept)
    assert {"0.0", "1.second.0", "2.second.0"} <= {member.name for member in stream.members}
    pruned = halved(module, sample, 0.8, keep=("1.first.0",), blocks=False)
    assert pruned.kept
    assert "1.first.0" not in pruned.kept


class Order(nn.Module):
    """Gives what doesn't show how many channels there are, or not which."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.first, self.counts = conv(3, 16), counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.first(x)
        return given.sort(1).values if self.counts else given.cumsum(1).square().amin(1)


@pytest.mark.parametrize("counts", [False, True], ids=["their order", "their number"])
def test_channels_whose_order_or_number_shows_in_the_answers_stay(counts: bool) -> None:
    assert groups(Order(counts), (torch.randn(2, 3, 8, 8),)) == ()


def test_a_block_that_does_nothing_goes_before_channels_do() -> None:
    module, sample = made("residual")
    idle = module.get_submodule("2")
    assert isinstance(idle, Residual)
    silence(idle.second[1])
    wanted = answers(module, sample)
    pruned = halved(module, sample, 0.75)
    assert pruned.plan == PruningPlan(skipped=("2",))
    assert torch.allclose(answers(pruned.module, sample)[0], wanted[0], atol=1e-6)


def test_a_target_out_of_reach_says_what_the_least_is() -> None:
    module, sample = made("plain")
    with pytest.raises(
        CandidateError, match=r"^pruning can't reach 3\.18e-06 ms: the lowest latency is "
    ):
        halved(module, sample, 0.0001)


def test_a_model_that_cannot_be_traced_is_refused_in_one_line() -> None:
    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(3, 16), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.first(x))
            return found.argmax(1)

    sample = (torch.randn(1, 3, 8, 8),)
    with pytest.raises(InputError, match=r"^the model can't be traced for pruning: [^\n]*$"):
        groups(Chooser(), sample)


def test_a_model_that_cannot_run_the_sample_is_refused() -> None:
    module, _ = made("plain")
    with pytest.raises(InputError, match=r"^the model can't run the sample: [^\n]*$"):
        groups(module, (torch.randn(1, 4, 16, 16),))


def test_a_loss_without_a_gradient_is_refused() -> None:
    module, sample = made("residual")

    def distance_to_itself(module: nn.Module) -> list[torch.Tensor]:
        now = module(*sample)
        return [(now - now.detach()).square().mean()]

    with pytest.raises(InputError, match=r"the loss has a gradient of 0 everywhere"):
        importance(module, distance_to_itself, groups(module, sample))


@pytest.mark.parametrize("kind", ["separable", "two-headed"])
def test_a_channels_importance_is_what_the_loss_moves_without_it_to_first_order(kind: str) -> None:
    module, (x,) = made(kind)
    module, sample = module.double(), (x.double(),)
    found = groups(module, sample)
    losses: Losses = sensitivity([sample])
    matters = importance(module, losses, found)
    (before,) = loss_values(module, losses)
    for group in found:
        faded = copy.deepcopy(module)
        with torch.no_grad():
            for member in group.members:
                if member.axis == "inputs":
                    weight = faded.get_submodule(member.name).weight
                    assert isinstance(weight, torch.Tensor)
                    weight[:, list(member.indices[1])] *= 0.999
        (after,) = loss_values(faded, losses)
        moved = abs(after - before) / 0.001
        assert moved == pytest.approx(matters[group.root][1] ** 0.5, rel=0.05, abs=1e-5)


def test_a_schedule_goes_down_by_equal_shares() -> None:
    assert schedule(8.0, 1.0, 3) == pytest.approx((4.0, 2.0, 1.0))
    with pytest.raises(
        InputError, match=r"pruning needs at least 1 step and a target below 0\.000 ms"
    ):
        schedule(1.0, 2.0, 3)
