"""Trying candidates: sampling held-out prompts, judging the pictures, and timing side by side. The pipeline is left as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median

import numpy as np

from ..methods import Method
from ..patch import apply
from ..sampling import Settings, sample
from ..timeline import of_steps
from .budgets import Budget
from .candidates import Candidate
from .judging import Judge, Score

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
        on_steps: called after each scheduler step with its share of a plain one's MACs.
    """

    def __init__(self, pipe, jobs: tuple[list[str], list[int]], how: Settings, budget: Budget, judge: Judge, on_steps):
        self.pipe, self.jobs, self.how = pipe, jobs, how
        self.budget, self.judge, self.on_steps = budget, judge, on_steps
        self.evaluations = lru_cache(None)(lambda steps: of_steps(pipe.scheduler, steps).evaluations)
        self._bases: dict[str, np.ndarray] = {}
        self._found: dict[tuple, Trial] = {}
        self._times: dict[tuple, float] = {}

    def cached(self, candidate: Candidate) -> Trial:
        """The candidate on the held-out prompts."""
        key = _key(candidate, self.how.steps, candidate.edits)
        if key not in self._found:
            base = self.base(candidate.edits)
            score = self.judge.score(self._sampled(candidate, self.how.steps, candidate.edits), base)
            found = Trial(self.how.steps, candidate.macs, score, None, candidate.edits, candidate)
            self._found[key] = self._judged(found)
        return self._found[key]

    def plain(self, steps: int, edits: tuple[Method, ...] = ()) -> Trial:
        """A run of fewer steps without caching."""
        key = _key(None, steps, edits)
        if key not in self._found:
            macs = self.evaluations(steps) / self.evaluations(self.how.steps)
            score = self.judge.score(self._sampled(None, steps, edits), self.base(edits))
            self._found[key] = self._judged(Trial(steps, macs, score, None, edits))
        return self._found[key]

    def base(self, edits: tuple[Method, ...]) -> np.ndarray:
        """The pictures that others are set beside: all steps, no caching."""
        if repr(edits) not in self._bases:
            self._bases[repr(edits)] = self._sampled(None, self.how.steps, edits)
        return self._bases[repr(edits)]

    def near(self, share: float) -> int:
        """The steps of the plain run whose cost is nearest to this share of the whole one's."""
        whole = self.evaluations(self.how.steps)
        return min(self.shorter, key=lambda steps: abs(self.evaluations(steps) / whole - share))

    @property
    def shorter(self) -> range:
        """Steps of plain runs, those of the whole one last."""
        return range(min(LEAST_STEPS, self.how.steps), self.how.steps + 1)

    def timed(self, *trials: Trial) -> list[Trial]:
        """The trials with their times, also among ``all``."""
        ways = [(trial.candidate, trial.steps, trial.edits) for trial in trials]
        self._time([way for way in ways if _key(*way) not in self._times])
        found = [
            self._judged(replace(trial, time=self._times[_key(*way)])) for trial, way in zip(trials, ways, strict=True)
        ]
        self._found |= {_key(*way): trial for way, trial in zip(ways, found, strict=True)}
        return found

    def time_of(self, candidate: Candidate | None, steps: int, edits: tuple[Method, ...]) -> float:
        """Its time over that of the plain run."""
        way = (candidate, steps, edits)
        if _key(*way) not in self._times:
            self._time([way])
        return self._times[_key(*way)]

    def _time(self, ways: list[tuple]) -> None:
        """Times over that of the plain run without any method: whole calls of the first batch in turns, median of their ratios."""
        if not ways:
            return
        for way in ways:
            self._seconds(*way)  # warm
        rounds = []
        for _ in range(REPEATS):
            plain = self._seconds(None, self.how.steps, ())
            rounds.append([self._seconds(*way) / plain for way in ways])
        self._times |= {_key(*way): median(ratios) for way, ratios in zip(ways, zip(*rounds, strict=True), strict=True)}

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

    def _sampled(self, candidate: Candidate | None, steps: int, edits: tuple[Method, ...], jobs=None) -> np.ndarray:
        methods, cost = (*edits, *([candidate.method] if candidate else [])), candidate.macs if candidate else 1.0
        return run(self.pipe, methods, jobs or self.jobs, replace(self.how, steps=steps), lambda: self.on_steps(cost))

    def _seconds(self, candidate: Candidate | None, steps: int, edits: tuple[Method, ...]) -> float:
        start = time.perf_counter()
        self._sampled(candidate, steps, edits, tuple(part[: self.how.batch] for part in self.jobs))
        return time.perf_counter() - start


def run(pipe, methods: Sequence[Method], jobs, how: Settings, on_step: Callable[[], None] | None = None) -> np.ndarray:
    """Pictures (N, H, W, 3), with the methods applied meanwhile."""
    with apply(pipe, *methods) if methods else nullcontext():
        return sample(pipe, *jobs, how, on_step)


def _key(candidate: Candidate | None, steps: int, edits: tuple[Method, ...]) -> tuple:
    return repr(edits), steps, candidate and (candidate.cut, candidate.full, candidate.points)
