"""Train one network for a time, evaluate it on the way, and let a stopped training continue."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from hasten.core.progress import Listener, Progress, nobody
from hasten.core.tensors import Array
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.splits import units_of
from hasten.inputs.metrics.base import Metric
from hasten.lightening.training import features
from hasten.lightening.training.chance import Chance, same_answer
from hasten.lightening.training.checkpoint import State
from hasten.lightening.training.examples import Batch, Examples
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective
from hasten.lightening.training.teacher import Teacher
from hasten.lightening.training.threads import chosen_threads

LOOKS = 8
"""Number of evaluations in a training, the last one at its end."""
_SAVED_S = 60.0
_EARLY = 0.375
"""Share of a training after which a network should be better than chance."""
_LEAST_RATE = 0.05
"""Learning rate of the first steps, as a share of the highest."""
_LARGEST_GRADIENT = 5.0

Doomed = Callable[[float, float], str | None]
"""Function from the share of the training that is done, and its score, to a reason to stop."""
BeforeStep = Callable[[float], None]
"""Function that is called with the share of the training that is done, before each step."""


@dataclass(frozen=True)
class Recipe:
    """Duration and learning rate of a training.

    Attributes:
        seconds: Longest duration, in seconds; the learning rate falls by the clock, so a host that
            is slower for a while costs only steps.
        epochs: Largest number of passes over the data; the learning rate falls by them instead if
            they end before the time.
        batch: Number of samples per step.
        rate: Highest learning rate, of AdamW; the rate rises for a while and falls as a cosine.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the training in which the rate rises.
        averaging: Decay per step of the moving average of weights; it begins lower.
        mixed: Share of batches whose samples are mixed in pairs.
        seed: Seed of orders, mixes and dropout.

    Source: cosine, Loshchilov and Hutter, arXiv:1608.03983; AdamW, arXiv:1711.05101.
    """

    seconds: float = 1800.0
    epochs: float = 100.0
    batch: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    averaging: float = 0.998
    mixed: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """Result of a training. The network holds the averaged weights with the best score.

    Attributes:
        score: Best mean score on the held-out samples.
        curve: Share of the training and score at each evaluation, as pairs.
        steps: Number of steps taken.
        epochs: Number of passes over the data.
        seconds: Time spent on training over all sessions, in seconds.
        note: Reason why the training ended before its time; None if it didn't.
        caution: Caution that the score is near chance, with what to do; None if it isn't.
    """

    score: float
    curve: tuple[tuple[float, float], ...]
    steps: int
    epochs: float
    seconds: float
    note: str | None
    caution: str | None = None


@dataclass
class Trainer:
    """Training of one network.

    Attributes:
        network: Network that learns; its module is changed in place.
        teacher: Teacher to learn from; None if labels alone teach.
        data: Samples to train on.
        judged: Held-out samples that measure the training; never those that certify.
        metric: Metric that scores the held-out samples.
        objective: Objective that training minimizes.
        recipe: Duration and learning rate.
        checkpoint: File to write the state to, and to continue from if it exists.
        listen: Callback that is told of the steps.
        name: Name of the network for people.
        doomed: Function that decides at each evaluation whether to stop early.
        reference: Network whose answers the metric may compare with; the teacher by default.
        before_step: Function that may change the network before each step, as pruning does.
        settled: Share of the training from which on weights are kept: before it, the network isn't
            yet what it is to become.
    """

    network: Network
    teacher: Teacher | None
    data: Dataset
    judged: Dataset
    metric: Metric
    objective: Objective
    recipe: Recipe
    checkpoint: Path
    listen: Listener = nobody
    name: str = "training"
    doomed: Doomed = lambda share, score: None
    reference: Network | None = None
    before_step: BeforeStep = lambda share: None
    settled: float = 0.0
    _exact: list[dict[str, Array]] = field(default_factory=list)
    _chance: Chance | None = None
    _warned: bool = False

    def train(self) -> Training:
        """Train, or continue a stopped training, without changing the caller's random state.

        Raises:
            CandidateError: the loss wasn't finite before the first evaluation with finite answers.
            InputError: the data can't be read, nothing can be learned, or the disk is full.
        """
        device = self.network.device
        with torch.random.fork_rng(self._cuda()), chosen_threads(device) as self._threads:
            return self._train()

    def _cuda(self) -> list[torch.device]:
        """Return the GPU that the network trains on, if any, in a list."""
        device = self.network.device
        return [device] if device.type == "cuda" else []

    def _train(self) -> Training:
        recipe, module = self.recipe, self.network.module
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        batch = max(1, min(recipe.batch, len(self.data)))
        self._examples = Examples(self.data, batch, recipe.mixed, recipe.seed)
        self._average = AveragedModel(module, multi_avg_fn=self._fold, use_buffers=True)
        self._optimizer = torch.optim.AdamW(
            _groups(module, recipe.weight_decay), lr=recipe.rate, foreach=True
        )
        self._layers = self._shared()
        state = State.read(self.checkpoint)
        if state is None:
            torch.manual_seed(recipe.seed)
            state = self._state(None, [], 0, 0.0)
        else:
            self._restore(state)
        try:
            if state.note is None:
                state = self._learn(state)
        except BaseException:
            module.zero_grad(set_to_none=True)
            raise
        return self._finished(state)

    def _learn(self, state: State) -> State:
        """Take steps until the time or the epochs are over, or until there is a reason to stop."""
        began = saved = time.monotonic()
        step, curve, best, note = state.step, list(state.curve), state.best, state.note
        looked_s = 0.0
        share = max(self._share(step, state.seconds), curve[-1][0] if curve else 0.0)
        while share < 1 and note is None:
            self.before_step(share)
            begun = share
            loss = self._step(step, share)
            if not math.isfinite(loss):
                note = f"the loss was {loss} at step {step + 1}"
            else:
                step += 1
            spent = state.seconds + time.monotonic() - began
            share = self._share(step, spent + looked_s)
            outcome = None
            if self._due(share, curve) or (note is not None and step and not curve):
                look = time.monotonic()
                score = self._score()
                looked_s = time.monotonic() - look
                if not math.isfinite(score):
                    note = note or f"its answers weren't finite after step {step}"
                else:
                    # A step that began before the network was settled trained another one.
                    at = share if begun >= self.settled else min(share, self._unsettled)
                    if at >= self.settled and score >= self._best_of(curve):
                        best = copy.deepcopy(self._average.module.state_dict())
                    curve.append((at, score))
                    outcome = f"{self.name}: {100 * score:.1f}% after {step} steps"
                    self._warn(score, step, share)
                    if note is None and share < 1:
                        note = self.doomed(share, score)
            if outcome or note or time.monotonic() - saved > _SAVED_S:
                spent = state.seconds + time.monotonic() - began
                self._state(best, curve, step, spent, note).write(self.checkpoint)
                saved = time.monotonic()
            if outcome or note or step % 10 == 0:
                said = f"{outcome}; {note}" if outcome and note else outcome
                self._tell(step, share, said or (note and f"{self.name}: {note}"))
        spent = state.seconds + time.monotonic() - began
        return self._state(best, curve, step, spent, note)

    @property
    def _unsettled(self) -> float:
        """Largest share of the training at which the network isn't settled yet."""
        return math.nextafter(self.settled, -math.inf)

    def _best_of(self, curve: Sequence[tuple[float, float]]) -> float:
        """Return the best score of weights that may be kept; minus infinity without any."""
        return max((score for at, score in curve if at >= self.settled), default=-math.inf)

    def _share(self, step: int, spent_s: float) -> float:
        """Return the finished share of the training: of the time or the epochs, the larger."""
        steps = math.ceil(self.recipe.epochs * self._examples.steps)
        return min(1.0, max(step / steps, spent_s / self.recipe.seconds))

    @staticmethod
    def _due(share: float, curve: Sequence[tuple[float, float]]) -> bool:
        """Return whether the next evaluation is due."""
        last = curve[-1][0] if curve else 0.0
        return math.floor(share * LOOKS + 1e-9) > math.floor(last * LOOKS + 1e-9)

    def _step(self, step: int, share: float) -> float:
        """Take one step and return the loss."""
        module = self.network.module.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(share)
        batch = self._examples.at(step, self.network.device)
        with self._threads.step():
            return self._learn_from(batch, module)

    def _learn_from(self, batch: Batch, module: torch.nn.Module) -> float:
        """Apply the gradient of a batch and return the loss; apply nothing that isn't finite."""
        loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT)
        if not bool(torch.isfinite(norm)):
            return float(norm)
        self._optimizer.step()
        self._average.update_parameters(module)
        return value

    def _loss(self, batch: Batch) -> torch.Tensor:
        weight, objective = self.objective.feature_weight, self.objective
        if self.teacher is None or not self._layers or weight == 0:
            outputs = self.network(batch.inputs)
            wanted = None if self.teacher is None else self.teacher.answers(batch)
            return objective.of(batch, outputs, wanted)
        teacher = self.teacher.network
        with features.watched(self.network.module, self._layers) as own:
            outputs = self.network(batch.inputs)
        with features.watched(teacher.module, self._layers) as others, torch.no_grad():
            wanted = teacher(batch.inputs)
        apart = features.apart(own(), others())
        if weight >= 1:
            return apart
        return (1 - weight) * objective.of(batch, outputs, wanted) + weight * apart

    def _shared(self) -> tuple[str, ...]:
        if self.teacher is None or self.objective.feature_weight == 0:
            return ()
        inputs = self._examples.at(0, self.network.device).inputs
        return features.shared_layers(self.network, self.teacher.network, inputs)

    def _rate(self, share: float) -> float:
        """Return the learning rate at a share of the training: it rises, then falls as a cosine."""
        warm = self.recipe.warmup
        if share < warm:
            return self.recipe.rate * max(_LEAST_RATE, share / warm)
        along = (share - warm) / (1 - warm)
        return self.recipe.rate * 0.5 * (1 + math.cos(math.pi * along))

    def _fold(
        self,
        averaged: Sequence[torch.Tensor],
        current: Sequence[torch.Tensor],
        count: torch.Tensor | int,
    ) -> None:
        """Move the average towards the current weights, faster during the first steps."""
        decay = min(self.recipe.averaging, (1 + int(count)) / (10 + int(count)))
        for mean, now in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(now.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(now)

    def _score(self) -> float:
        """Return the averaged network's mean held-out score; NaN if an answer isn't finite."""
        network = replace(self.network, module=self._average.module)
        examples = Examples(self.judged, self._examples.batch)
        self._ask_reference(examples)
        return self._mean(network.answers(examples.in_order()))

    def _ask_reference(self, examples: Examples) -> None:
        """Keep the reference's answers to the held-out samples, if there is a reference."""
        reference = self.reference or (self.teacher.network if self.teacher else None)
        if not self._exact and reference is not None:
            self._exact.extend(reference.answers(examples.in_order()))

    def _mean(self, answers: Iterable[dict[str, Array]]) -> float:
        """Return the mean score of answers to the held-out samples; NaN if one isn't finite."""
        scores: list[Array] = []
        at = 0
        for number, outputs in enumerate(answers):
            exact = self._exact[number] if self._exact else outputs
            size = len(next(iter(outputs.values())))
            rows = self.judged.labels
            labels = None if rows is None else rows[at : at + size]
            if not all(np.isfinite(a).all() for a in outputs.values() if a.dtype.kind == "f"):
                return math.nan
            scores.append(self.metric.score(outputs, exact, labels))
            at += size
        return mean_score(self.metric, scores, self.judged)

    def _caution(self, score: float, step: int, share: float) -> str | None:
        """Return a caution if the network gives classes and its score is near chance."""
        if self.objective.kind != "classes" or self.metric.over_set:
            return None
        self._ask_reference(Examples(self.judged, self._examples.batch))
        if not self._exact:
            return None
        if self._chance is None:
            self._chance = Chance(self._mean(same_answer(self._exact)), self._mean(self._exact))
        return self._chance.caution(score, step, step / self._examples.steps / share)

    def _warn(self, score: float, step: int, share: float) -> None:
        """Tell once, early in the training, that the network has learned nothing so far."""
        if self._warned or share < _EARLY:
            return
        self._warned = True
        caution = self._caution(score, step, share)
        if caution is not None:
            doing = Progress("train", self.name, step, max(step, round(step / share)))
            self.listen(replace(doing, news=f"warning: {self.name}: {caution}"))

    def _state(
        self,
        best: dict[str, torch.Tensor] | None,
        curve: list[tuple[float, float]],
        step: int,
        seconds: float,
        note: str | None = None,
    ) -> State:
        return State(
            module=self.network.module.state_dict(),
            average=self._average.state_dict(),
            optimizer=self._optimizer.state_dict(),
            generators=[torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda())],
            best=best,
            curve=curve,
            step=step,
            seconds=seconds,
            note=note,
        )

    def _restore(self, state: State) -> None:
        self.network.module.load_state_dict(state.module)
        self._average.load_state_dict(state.average)
        self._optimizer.load_state_dict(state.optimizer)
        host, *others = state.generators
        torch.set_rng_state(host)
        for device, generator in zip(self._cuda(), others, strict=False):
            torch.cuda.set_rng_state(generator, device)

    def _finished(self, state: State) -> Training:
        if state.best is None:
            raise CandidateError(
                f"{self.name}: {state.note}, and there are no earlier weights to keep"
            )
        self.network.module.load_state_dict(state.best)
        self.network.module.eval()
        score = self._best_of(state.curve)
        return Training(
            score=score,
            curve=tuple(state.curve),
            steps=state.step,
            epochs=state.step / self._examples.steps,
            seconds=state.seconds,
            note=state.note,
            caution=self._caution(score, state.step, 1.0),
        )

    def _tell(self, done: int, share: float, outcome: str | None = None) -> None:
        total = max(done, round(done / share) if share else 0)
        self.listen(Progress("train", self.name, done, total, outcome))


def mean_score(metric: Metric, parts: Sequence[Array], judged: Dataset) -> float:
    """Return the mean score of held-out samples.

    Args:
        metric: Metric that scores them.
        parts: Results of its `score` for one chunk after another, in order.
        judged: The held-out samples.
    """
    whole = np.concatenate(parts)
    if metric.over_set:
        whole = metric.over(whole, judged.labels, units_of(judged))
    return float(whole.mean())


def _groups(module: torch.nn.Module, decay: float) -> list[dict[str, object]]:
    """Return parameter groups that exempt biases and normalizations, with one axis, from decay."""
    learnt = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]
