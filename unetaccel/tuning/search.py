"""Searching the candidates for the best that keeps to a budget, with few trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..methods import Method
from .candidates import Candidate, Front
from .trials import Trial, Trials

TIMINGS = 4
"""At most so many candidates of one cut are timed."""


def first_passing(count: int, passes: Callable[[int], bool]) -> int:
    """By bisection an index that passes and whose left neighbour does not, if there is one; ``count`` if the last fails.

    Where passing is monotone that is the first one that passes. In any case at most log2(count) + 1 indices are looked at.
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def meet_floor(fronts: Sequence[Front], trials: Trials) -> Trial | None:
    """The cheapest candidate that meets the floor: cheap cuts first, and of the others only what would cost less."""
    best: Trial | None = None
    for front in sorted(fronts, key=lambda front: front[0].macs):
        cheaper = [c for c in front if best is None or c.macs < best.macs]
        if not cheaper or (best is not None and not trials.cached(cheaper[-1]).meets):
            continue
        first = first_passing(len(cheaper), lambda i: trials.cached(cheaper[i]).meets)  # noqa: B023 - called at once
        if first < len(cheaper):
            best = trials.cached(cheaper[first])
    return best


def spend_macs(fronts: Sequence[Front], trials: Trials) -> Trial | None:
    """The best of what each cut can afford."""
    limit = trials.budget.limit
    dearest = [[c for c in front if c.macs <= limit][-1:] for front in fronts]
    return max((trials.cached(c) for [c] in filter(None, dearest)), key=lambda trial: trial.score.mean, default=None)


def spend_time(fronts: Sequence[Front], trials: Trials) -> Trial | None:
    """The best of what each cut can do in the time."""
    dearest = [
        dearest_in_time(front, trials.budget.limit, lambda c: trials.time_of(c, trials.how.steps, c.edits))
        for front in fronts
    ]
    found = trials.timed(*(trials.cached(c) for c in dearest if c is not None))
    return max(found, key=lambda trial: trial.score.mean, default=None)


def dearest_in_time(front: Front, limit: float, time_of: Callable[[Candidate], float]) -> Candidate | None:
    """The candidate with the most full evaluations that was measured to take at most ``limit`` of the plain run's time.

    The time of a call is linear in its full evaluations, so each measurement, with the plain run's, tells which to take next.
    """
    measured: dict[int, float] = {}
    guess = ([c for c in front if c.macs <= limit] or front[:1])[-1]
    while guess.full not in measured and len(measured) < TIMINGS:
        measured[guess.full] = ratio = time_of(guess)
        slope = (1 - ratio) / (guess.evaluations - guess.full)
        fit = [c for c in front if 1 - slope * (c.evaluations - c.full) <= limit]
        guess = (fit or front[:1])[-1]
    return max((c for c in front if measured.get(c.full, limit + 1) <= limit), key=lambda c: c.full, default=None)


def fewest_plain_steps(trials: Trials, edits: tuple[Method, ...]) -> Trial | None:
    """The shortest run without caching that bisection finds to meet the floor; None if only that of all steps does."""
    steps = trials.shorter[:-1]
    first = first_passing(len(steps), lambda i: trials.plain(steps[i], edits).meets)
    return trials.plain(steps[first], edits) if first < len(steps) else None


def plain_steps_in_time(trials: Trials, share: float, edits: tuple[Method, ...]) -> int:
    """Steps of the run without caching that takes this share of the plain run's time: part of a call's does not depend on steps."""
    whole, guess = trials.how.steps, trials.near(share)
    slope = (1 - trials.time_of(None, guess, edits)) / max(whole - guess, 1)
    steps = whole - round((1 - share) / slope) if slope > 0 else guess
    return min(max(steps, trials.shorter[0]), whole)


def nearest(front: Front, share: float) -> Candidate:
    """The candidate whose full evaluations are nearest to this share of all."""
    return min(front, key=lambda c: abs(c.full / c.evaluations - share))
