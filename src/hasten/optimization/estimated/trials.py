"""Candidates for an absent device: made, judged on this host, estimated by the device's tools."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import amount, lost_in_words
from hasten.engines.base import Artifact
from hasten.engines.estimates import Estimate
from hasten.errors import CandidateError, InputError, NotCovered
from hasten.measure.accuracy import unanswered
from hasten.measure.candidate import Single, Trial
from hasten.measure.exactness import unchanged_in_words
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.optimization.trials import DOUBT, Trials
from hasten.passes.base import Skipped

ROUTED = "device"
"""Folder beside an artifact that the device's tools write to."""


class Estimation(Trials):
    """The original on this host, and the trials of all candidates beside it.

    Attributes:
        exact: The original as a candidate on this host, from `begin` on.
        exact_artifact: Artifact that was built from the original.
    """

    exact: Single
    exact_artifact: Artifact

    @property
    def host(self) -> Workbench:
        """Return the workbench of this host, where the original runs."""
        return dataclasses.replace(self.bench, target=Target.host())

    def begin(self, originals: Sequence[Single]) -> None:
        """Run the original on the search split, with the first engine of this host that can.

        Raises:
            InputError: no engine can, or the original's own answers aren't finite.
        """
        why = []
        for candidate in originals:
            try:
                opened = self.host.open(candidate)
            except CandidateError as error:
                why.append(f"{candidate.label}: {error}")
                continue
            self.exact, self.exact_artifact = candidate, opened.artifact
            try:
                self.answer(opened)
            except CandidateError as error:
                raise unanswered(error) from error
            finally:
                opened.worker.kill()
            return
        raise InputError(f"no engine of this host runs the model: {'; '.join(why)}")

    def judge(self, candidate: Single) -> Trial:
        """Make a candidate and score it on the search split, unless the journal has it."""
        known = self.done.get(candidate.key)
        if known is not None:
            return known
        trial = Trial(candidate)
        try:
            opened = self.bench.open(candidate)
        except (Skipped, NotCovered) as skipped:
            return self.keep(dataclasses.replace(trial, skipped=str(skipped)))
        except CandidateError as error:
            return self.keep(dataclasses.replace(trial, failure=str(error)))
        trial = dataclasses.replace(
            trial, artifact=opened.artifact, properties=dict(opened.properties)
        )
        try:
            if candidate.exact:
                scores, changed = self.compared(opened)
                trial = dataclasses.replace(trial, scores=scores, changed=changed)
            else:
                trial = dataclasses.replace(trial, scores=self.scores(opened))
        except CandidateError as error:
            trial = dataclasses.replace(trial, failure=str(error))
        finally:
            opened.worker.kill()
        return self.keep(trial)

    def fall_out(self, trial: Trial, why: str) -> None:
        """Record that a candidate can't ship after all."""
        self.keep(dataclasses.replace(trial, failure=why))

    def estimate(self, trial: Trial) -> Trial:
        """Have the device's tools estimate a judged candidate, once."""
        if trial.estimate is not None or trial.failure or trial.skipped:
            return trial
        engine = trial.candidate.engine
        try:
            artifact = self.artifact(trial)
            folder = artifact.path.parent / ROUTED
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            estimate = self.bench.estimate(engine, artifact, folder)
        except CandidateError as error:
            return self.keep(dataclasses.replace(trial, failure=str(error)))
        written = tuple(sorted(p for p in folder.rglob("*") if p.is_file()))
        artifact = dataclasses.replace(artifact, files=(*artifact.files, *written))
        return self.keep(dataclasses.replace(trial, artifact=artifact, estimate=estimate))

    def ask_further(self, trial: Trial) -> Trial:
        """Have the device's tools compute the figures that are needed for a winner only.

        Raises:
            CandidateError: a tool failed or hung.
        """
        assert trial.estimate is not None
        artifact = self.artifact(trial)
        folder = artifact.path.parent / ROUTED
        folder.mkdir(exist_ok=True)
        further = self.bench.further_figures(trial.candidate.engine, artifact, folder)
        figures = {**trial.estimate.figures, **further}
        estimate = dataclasses.replace(trial.estimate, figures=figures)
        written = (p for p in sorted(folder.rglob("*")) if p.is_file())
        files = tuple(dict.fromkeys((*artifact.files, *written)))
        artifact = dataclasses.replace(artifact, files=files)
        return self.keep(dataclasses.replace(trial, artifact=artifact, estimate=estimate))

    def made_as(self, judged: Trial, candidate: Single) -> Trial:
        """Build a judged candidate's equivalent for another engine, and copy the scores."""
        known = self.done.get(candidate.key)
        if known is not None:
            return known
        trial = Trial(candidate, scores=judged.scores)
        try:
            model = self.bench.transform(candidate.passes)
            folder = self.bench.folder / "artifacts" / candidate.key
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            artifact = self.bench.build(candidate.engine, model, folder)
        except (Skipped, NotCovered) as skipped:
            return self.keep(dataclasses.replace(trial, skipped=str(skipped)))
        except CandidateError as error:
            return self.keep(dataclasses.replace(trial, failure=str(error)))
        return self.keep(dataclasses.replace(trial, artifact=artifact))

    def artifact(self, trial: Trial) -> Artifact:
        """Return a trial's artifact, rebuilt where a stopped run's files are gone.

        Raises:
            CandidateError: it can't be built any more.
        """
        if trial.artifact is not None and trial.artifact.path.exists():
            return trial.artifact
        model = self.bench.transform(trial.candidate.passes)
        folder = self.bench.folder / "artifacts" / f"{trial.candidate.key}-again"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return self.bench.build(trial.candidate.engine, model, folder)

    def opened_exact(self) -> OpenWorker:
        """Open the original on this host.

        Raises:
            InputError: it fails.
        """
        try:
            return self.host.open_built(self.exact.engine, self.exact_artifact, fresh=False)
        except CandidateError as error:
            raise InputError(f"the original model fails: {error}") from error

    @contextlib.contextmanager
    def opened(self, trial: Trial) -> Iterator[OpenWorker]:
        """Open a trial's artifact on this host.

        Raises:
            CandidateError: it can't be opened.
        """
        opened = self.bench.open_built(trial.candidate.engine, self.artifact(trial))
        try:
            yield opened
        finally:
            opened.worker.kill()

    def able(self, trial: Trial) -> bool:
        """Whether a judged trial stayed under the limit on the whole search split."""
        whole = trial.scores is not None and len(trial.scores) == len(self.samples)
        return (
            whole and not trial.failure and float(self.drops(trial).mean()) < self.promise.max_drop
        )

    def surely_passes(self, trial: Trial, units: Array) -> bool:
        """Whether a candidate would be certified on this host even if the search split flattered it.

        Args:
            trial: Trial of the candidate.
            units: Number of each search sample's draw, `(n,)`, as the certificate counts draws.
        """
        return self.able(trial) and self.probably_certified(
            trial, units, self._sealed_draws, doubt=DOUBT
        )

    def estimated(self) -> list[Trial]:
        """Return the trials that the device's tools estimated, fastest first where ranked."""
        found = [t for t in self.done.values() if t.estimate and not t.failure]
        return sorted(found, key=lambda t: (ranked(t)[1] == "bytes", rank(t), self.risk(t)))

    def outcome(self, trial: Trial) -> str:
        """Describe the outcome of a trial in one line."""
        if trial.skipped:
            return f"skipped: {trial.skipped}"
        if trial.failure:
            return f"failed: {trial.failure}"
        if not trial.scores:
            return "not judged"
        if trial.exact:
            return f"exact: {unchanged_in_words(len(self.samples))}"
        points = 100 * float(self.drops(trial).mean())
        early = ", left early" if len(trial.scores) < len(self.samples) else ""
        return f"{lost_in_words(points)} on {amount(len(trial.scores), 'sample')}{early}"


def ranked(trial: Trial) -> tuple[float, str]:
    """Return the figure that trials are compared by (less is better), and its unit.

    Where the tools give no rank, that figure is the size in bytes.
    """
    estimate: Estimate | None = trial.estimate
    if estimate is None:
        return float("inf"), ""
    if estimate.rank is not None:
        return estimate.rank, estimate.unit
    sizes = [value for name, value in estimate.figures.items() if name.endswith("bytes")]
    artifact = trial.artifact
    return (sizes or [0.0 if artifact is None else float(artifact.size_bytes)])[0], "bytes"


def rank(trial: Trial) -> float:
    """Return the figure that trials are compared by; less is better."""
    return ranked(trial)[0]


def comparable(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that the device's tools rank; where none is ranked, all, by size."""
    return [t for t in trials if ranked(t)[1] != "bytes"] or list(trials)
