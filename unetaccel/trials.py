"""Trying candidates: sampling held-out prompts, judging the pictures, and timing side by side. The pipeline is left as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median

import numpy as np

from .budgets import Budget
from .candidates import Candidate
from .judging import Judge, Score
from .methods import Method
from .patch import apply
from .sampling import Settings, sample
from .timeline import of_steps

REPEATS = 3
LEAST_STEPS = 2
"""Of plain runs: some solvers cannot do one step."""


@dataclass(frozen=True)
class Trial:
    """One way to sample that was tried on the held-out prompts.

    Attributes:
        steps: inference steps.
        macs: share of the MACs of the plain run.
        score: likeness is to the run of all steps without caching, with the same edits of skips.
        meets: whether it keeps to the budget; None for one of time where it was not timed.
        edits: of skips.
        candidate: None for a run without caching.
        time: share of the plain run's time, whole calls side by side, median; None if it was not timed.
    """

    steps: int
    macs: float
    score: Score
    meets: bool | None
    edits: tuple[Method, ...] = field(default=(), repr=False)
    candidate: Candidate | None = field(default=None, repr=False)
    time: float | None = None


class Trials:
    """Tries each way once, however often it is asked for.

    Args:
        jobs: held-out prompts and seeds.
        on_steps: called with the share of a plain run's cost after each scheduler step.
    """

    def __init__(self, pipe, jobs: tuple[list[str], list[int]], how: Settings, budget: Budget, judge: Judge, on_steps):
        self.pipe, self.jobs, self.how, self.budget, self.judge, self.on_steps = (
            pipe,
            jobs,
            how,
            budget,
            judge,
            on_steps,
        )
        self.evaluations = lru_cache(None)(lambda steps: of_steps(pipe.scheduler, steps).evaluations)
        self._bases: dict[str, np.ndarray] = {}
        self._found: dict[tuple, Trial] = {}
        self._times: dict[tuple, float] = {}

    def cached(self, candidate: Candidate) -> Trial:
        """The candidate on the held-out prompts."""
        key = _key(candidate, self.how.steps, candidate.edits)
        if key not in self._found:
            base = self.base(candidate.edits)
            score = self.judge.score(self._sampled(_methods(candidate), self.how.steps, candidate.macs), base)
            found = Trial(self.how.steps, candidate.macs, score, None, candidate.edits, candidate)
            self._found[key] = self._judged(found)
        return self._found[key]

    def plain(self, steps: int, edits: tuple[Method, ...] = ()) -> Trial:
        """A run of fewer steps without caching."""
        key = _key(None, steps, edits)
        if key not in self._found:
            macs = self.evaluations(steps) / self.evaluations(self.how.steps)
            score = self.judge.score(self._sampled(edits, steps, 1.0), self.base(edits))
            self._found[key] = self._judged(Trial(steps, macs, score, None, edits))
        return self._found[key]

    def base(self, edits: tuple[Method, ...]) -> np.ndarray:
        """The pictures that others are set beside: all steps, no caching."""
        if repr(edits) not in self._bases:
            self._bases[repr(edits)] = self._sampled(edits, self.how.steps, 1.0)
        return self._bases[repr(edits)]

    def near(self, share: float) -> int:
        """The steps of the plain run whose cost is nearest to this share of the whole one's."""
        steps = range(min(LEAST_STEPS, self.how.steps), self.how.steps + 1)
        return min(steps, key=lambda s: abs(self.evaluations(s) / self.evaluations(self.how.steps) - share))

    def timed(self, trial: Trial) -> Trial:
        """The trial with its time, also among ``all``."""
        ways = (trial.candidate, trial.steps, trial.edits)
        self._found[_key(*ways)] = found = self._judged(replace(trial, time=self.seconds_share(*ways)))
        return found

    def seconds_share(self, candidate: Candidate | None, steps: int, edits: tuple[Method, ...]) -> float:
        """Time over the plain run's without any method: whole calls of the first batch in turns, median of ``REPEATS`` ratios."""
        methods, key = _methods(candidate) if candidate else edits, _key(candidate, steps, edits)
        if key not in self._times:
            self._seconds(methods, steps)  # warm
            ratios = [self._seconds(methods, steps) / self._seconds((), self.how.steps) for _ in range(REPEATS)]
            self._times[key] = median(ratios)
        return self._times[key]

    @property
    def all(self) -> tuple[Trial, ...]:
        return tuple(self._found.values())

    def _judged(self, trial: Trial) -> Trial:
        kind, limit = self.budget.kind, self.budget.limit
        if kind == "time":
            meets = None if trial.time is None else trial.time <= limit
        else:
            meets = trial.macs <= limit if kind == "macs" else trial.score.mean >= limit
        return replace(trial, meets=meets)

    def _sampled(self, methods: Sequence[Method], steps: int, macs: float) -> np.ndarray:
        return run(self.pipe, methods, self.jobs, replace(self.how, steps=steps), lambda: self.on_steps(macs))

    def _seconds(self, methods: Sequence[Method], steps: int) -> float:
        first = tuple(part[: self.how.batch] for part in self.jobs)
        start = time.perf_counter()
        run(self.pipe, methods, first, replace(self.how, steps=steps), lambda: self.on_steps(1.0))
        return time.perf_counter() - start


def run(pipe, methods: Sequence[Method], jobs, how: Settings, on_step: Callable[[], None] | None = None) -> np.ndarray:
    """Pictures (N, H, W, 3), with the methods applied meanwhile."""
    with apply(pipe, *methods) if methods else nullcontext():
        return sample(pipe, *jobs, how, on_step)


def _key(candidate: Candidate | None, steps: int, edits: tuple[Method, ...]) -> tuple:
    return repr(edits), steps, candidate and (candidate.cut, candidate.full, candidate.points)


def _methods(candidate: Candidate) -> tuple[Method, ...]:
    return (*candidate.edits, candidate.method)
