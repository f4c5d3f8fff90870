"""What tuning found: the chosen plan, what else was tried, and the plain runs of equal cost beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..profile import Profile, save_profile
from .budgets import Budget
from .candidates import Front
from .judging import Judge, Score
from .trials import Trial


@dataclass(frozen=True, eq=False)
class Tuned:
    """The outcome of ``unetaccel.tune``.

    Attributes:
        budget: what was asked for.
        judge: what pictures were judged by.
        chosen: the best candidate that keeps to the budget.
        trials: all candidates that were tried on the held-out prompts, by cost.
        rivals: runs without caching and of fewer steps that were tried, by cost.
        rival: the one that costs as much as the chosen candidate: as many MACs, or for a budget of time as much time.
        fewest: for a floor the shortest run without caching that was found to meet it; None if only that of all steps does.
        fronts: of each cut, and each set of edits, the candidates as predicted.
        profile: applies the chosen plan by default; it does not hold edits of skips.
        held_out: number of pictures judged by.
        seconds: that tuning took.
    """

    budget: Budget
    judge: Judge = field(repr=False)
    chosen: Trial
    trials: tuple[Trial, ...] = field(repr=False)
    rivals: tuple[Trial, ...] = field(repr=False)
    rival: Trial
    fewest: Trial | None
    fronts: tuple[Front, ...] = field(repr=False)
    profile: Profile = field(repr=False)
    held_out: int
    seconds: float

    @property
    def plain_is_ahead(self) -> bool:
        """Whether a run without caching does as well for as little."""
        if self.budget.is_floor:
            return self.fewest is not None and self.fewest.macs <= self.chosen.macs
        return self.rival.score.mean >= self.chosen.score.mean

    def save(self, path: str | Path) -> Path:
        """Write the profile, see ``save_profile``; ``unetaccel.apply(pipe, path)`` then applies the chosen plan."""
        return save_profile(self.profile, path)

    def as_dict(self) -> dict:
        """Everything but pictures and Gram matrices, ready for JSON; a score of None stands for equal pictures."""
        return {
            "budget": str(self.budget),
            "measure": self.judge.name,
            "held_out": self.held_out,
            "seconds": round(self.seconds, 1),
            "chosen": trial_dict(self.chosen),
            "plain_is_ahead": self.plain_is_ahead,
            "rival": trial_dict(self.rival),
            "fewest_plain_steps": self.fewest and trial_dict(self.fewest),
            "trials": [trial_dict(trial) for trial in self.trials],
            "rivals": [trial_dict(trial) for trial in self.rivals],
            "predicted": [
                {"cut": c.cut, "full": c.full, "points": c.points, "edits": [*map(repr, c.edits)],
                 "macs": round(c.macs, 4), "error": round(c.error, 6)}
                for front in self.fronts for c in front
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        kind = "at least" if self.budget.is_floor else "at most"
        head = f"tuned for {self.budget} ({kind}), {self.chosen.steps} steps, {self.held_out} held-out pictures, {self.seconds:.0f} s"
        return "\n".join([head, *self._table(), *self.conclusions()])

    def _table(self) -> list[str]:
        rows = sorted((*self.trials, *self.rivals), key=lambda trial: trial.macs)
        several = any(trial.edits for trial in rows)
        cells = [("", "", "MACs", "time", f"{self.judge.name}, mean", "lowest", "error of F")]
        for trial in rows:
            mark = ">" if trial is self.chosen else "+" if trial.meets else ""
            time = "" if trial.time is None else f"{trial.time:.2f}x"
            score, error = trial.score, trial.candidate and f"{trial.candidate.error:.1%}"
            cells.append((mark, described(trial, several), f"{trial.macs:.1%}", time, self.judge.text(score.mean),
                          self.judge.text(score.lowest), error or ""))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left = (str.ljust, str.ljust, *[str.rjust] * 5)
        lines = [
            "  ".join(put(cell, width) for put, cell, width in zip(left, row, widths, strict=True)) for row in cells
        ]
        return [line.rstrip() for line in lines]

    def conclusions(self) -> list[str]:
        """For people: what was chosen, and what it is worth beside plain runs."""
        chosen, rival, text = self.chosen, self.rival, self.judge.text
        cost = f"{chosen.macs:.1%} of the plain run's MACs, {chosen.time:.2f} of its time"
        found = [
            f"chosen (>): {described(chosen, True)}: {text(chosen.score.mean)} for {cost}; + also keeps to the budget"
        ]
        base = f"without caching {'and with the same edits ' if chosen.edits else ''}"
        found.append(
            f"{base}{rival.steps} steps cost as much ({rival.macs:.1%}, {rival.time:.2f}): {text(rival.score.mean)}"
        )
        if self.budget.is_floor:
            needed = "only the whole run meets the floor" if self.fewest is None else (
                f"{self.fewest.steps} steps are the fewest found to meet the floor ({self.fewest.macs:.1%})")  # fmt: skip
            found.append(base + needed)
        if self.plain_is_ahead:
            better = self.fewest if self.budget.is_floor else rival
            found.append(f"So caching does not pay here: sample {better.steps} steps without it.")
        if chosen.edits:
            found.append(
                f"The profile holds no edits: apply both, unetaccel.apply(pipe, {', '.join(map(repr, chosen.edits))}, 'profile.yaml')"
            )
        return found


def described(trial: Trial, edits: bool = False) -> str:
    """One way to sample in words; with its ``edits`` of skips where some ways have any."""
    c = trial.candidate
    way = (
        f"plain, {trial.steps} steps"
        if c is None
        else f"cut {c.cut}, {c.full} of {c.evaluations} full, {_points(c.points)}"
    )
    return way + (", " + " + ".join(map(repr, trial.edits)) if edits and trial.edits else "")


def _points(count: int) -> str:
    return "held" if count == 1 else f"{count} points"


def trial_dict(trial: Trial) -> dict:
    """Numbers of a trial, ready for JSON and YAML."""
    c = trial.candidate
    plan = {} if c is None else {"cut": c.cut, "full": c.full, "points": c.points, "predicted_error": round(c.error, 6)}
    found = {**plan, "steps": trial.steps, "edits": [repr(edit) for edit in trial.edits], "macs": round(trial.macs, 4)}
    return {**found, "time": trial.time and round(trial.time, 3), **_score(trial.score), "meets": trial.meets}


def _score(score: Score) -> dict:
    return {name: round(v, 4) if math.isfinite(v) else None for name, v in vars(score).items()}


def by_cost(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    return tuple(sorted(trials, key=lambda trial: trial.macs))
