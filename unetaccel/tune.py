"""Tuning: from a floor of quality, or a ceiling of cost, to a plan that was tried on held-out prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .calibrate import check_points
from .errors import SettingError
from .methods import Method
from .profile import Profile
from .sampling import Settings, check_size
from .tuning.budgets import Budget, budget_from
from .tuning.candidates import Front, fronts
from .tuning.judging import Judge, Metric, judge_of
from .tuning.search import fewest_plain_steps, meet_floor, nearest, plain_steps_in_time, spend_macs, spend_time
from .tuning.trials import Trial, Trials
from .tuning.tuned import Tuned, by_cost, described, trial_dict

MOST_CALIBRATED = 8
"""Prompts that calibrate; more hardly move plans."""
LEAST_HELD_OUT = 2
DRAWN = (0.14, 0.22, 0.34, 0.5)
"""Shares of full evaluations that are tried at each cut in any case, so that the front is measured too."""
DRAWN_PLAIN = (0.2, 0.35, 0.5, 0.7)
"""Shares of MACs at which runs without caching are tried in any case."""
Progress = Callable[[float, str], None]


def tune(
    pipe,
    prompts: Sequence[str],
    *,
    budget: Budget | str | Mapping,
    steps: int = 50,
    guidance: float | None = None,
    cuts: Sequence[int] = (0, 1),
    points: Sequence[int] = (1, 2, 3),
    held_out: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    edits: Sequence[Sequence[Method]] = ((),),
    metric: Metric | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 4,
    on_progress: Progress | None = None,
) -> Tuned:
    """Find the cheapest calibrated plan that keeps a floor of quality, or the best within a ceiling of cost.

    The first prompts calibrate: from the Gram matrices of F follow the predicted errors of all plans (cut x number of full
    evaluations x features that F is forecast from). Others, held out, are then sampled for the few candidates that bisection asks
    for, and for runs of fewer steps without caching: those that cost as much, and the shortest that meets the floor.

    >>> tuned = unetaccel.tune(pipe, prompts, budget="psnr=45")
    >>> print(tuned); tuned.save("profile.yaml")

    Args:
        pipe: with nothing applied; left as it was, whatever happens.
        prompts: half of them, at most 8, calibrate, and the others are held out; all calibrate, at most 8, if ``held_out`` names others.
        budget: ``"psnr=45"``, ``"ssim=0.95"``, ``"labels=0.99"`` or ``"metric=..."`` are floors of the mean over the held-out
            pictures; ``"macs=0.4"`` and ``"time=0.5"`` ceilings, as shares of the plain run's, under which the best by ``metric`` wins, or
            by PSNR. See ``Budget``.
        steps, guidance, size: of the calls to tune for; the scheduler is the pipeline's.
        cuts: skip indices to choose from.
        points: numbers of features to forecast F from, to choose from, each 1 (hold) to 4. As many are kept in memory.
        seeds: one for each prompt, then one for each held-out one; by default 0, 1, 2, ...
        edits: sets of skip methods to choose from, as ``[(), (SkipTuning(0.9),)]``. Each is calibrated, and likeness is to the run without
            caching under the same edits: it tells what caching loses, not which edit is better. Labels and metrics can tell that.
        metric: ``(images, plain) -> N numbers``, more is better, of float32 arrays (N, H, W, 3) in [0, 1].
        batch: pictures per pipeline call; times are of such calls.
        on_progress: called with the share that is done, as far as it can be told beforehand, and with what is being done.

    Raises:
        SettingError: a setting that cannot be, too few prompts, or a budget that no candidate keeps: the message tells the best one.
        UnsupportedModelError: see ``apply``; or a U-Net whose MACs cannot be counted.
    """
    start, budget, how = time.perf_counter(), budget_from(budget), Settings(steps, guidance, size, batch)
    check_size(pipe, size)
    points, edits = _checked_points(points), _checked_edits(edits)
    calibrated, judged = split(prompts, held_out, seeds)
    judge = judge_of(budget, metric, judged[0])
    meter = _Meter(on_progress, how, len(calibrated[0]), len(judged[0]), len(edits), len(cuts))
    found: list[Front] = []
    for each in edits:
        meter.says(f"calibrating{' with ' + ', '.join(map(repr, each)) if each else ''}")
        found += fronts(pipe, calibrated, how, cuts, points, each, lambda: meter.adds(1))
    trials = Trials(pipe, judged, how, budget, judge, meter.adds)
    meter.says("trying candidates")
    chosen = _choose(found, trials)
    meter.says("trying runs of fewer steps")
    fewest = fewest_plain_steps(trials, chosen.edits) if budget.is_floor else None
    _draw(found, trials, chosen)
    meter.says("timing")
    in_time = budget.kind == "time"
    as_long = plain_steps_in_time(trials, chosen.time, chosen.edits) if in_time else trials.near(chosen.macs)
    chosen, rival = trials.timed(chosen, trials.plain(as_long, chosen.edits))
    fewest = fewest and trials.plain(fewest.steps, chosen.edits)  # timed, if it is the rival too
    meter.ends()
    cached = by_cost(trial for trial in trials.all if trial.candidate)
    plain = by_cost(trial for trial in trials.all if not trial.candidate)
    profile = _profile(budget, judge, chosen, rival, fewest, len(judged[0]))
    seconds = time.perf_counter() - start
    return Tuned(budget, judge, chosen, cached, plain, rival, fewest, tuple(found), profile, len(judged[0]), seconds)


Jobs = tuple[list[str], list[int]]


def split(prompts: Sequence[str], held_out: Sequence[str] | None, seeds: Sequence[int] | None) -> tuple[Jobs, Jobs]:
    """Prompts and seeds to calibrate with, and those to judge by.

    Raises:
        SettingError: too few, not one seed for each, or one and the same picture on both sides.
    """
    if isinstance(prompts, str) or isinstance(held_out, str):
        raise SettingError("tune needs lists of prompts, got a single text")
    own, other = list(prompts), list(held_out or ())
    count = min(MOST_CALIBRATED, len(own) if held_out is not None else len(own) // 2)
    seeds = list(range(len(own) + len(other)) if seeds is None else seeds)
    if len(seeds) != len(own) + len(other):
        raise SettingError(
            f"tune needs a seed for each of {len(own)} prompts and {len(other)} held-out ones, got {len(seeds)}"
        )
    judged = (other, seeds[len(own) :]) if held_out is not None else (own[count:], seeds[count : len(own)])
    if count < 1 or len(judged[0]) < LEAST_HELD_OUT:
        raise SettingError(
            f"tune calibrates with some prompts and judges by others, at least {LEAST_HELD_OUT}, got {len(own)} prompts and "
            f"{len(other)} held-out ones: give at least 3 prompts, better 16"
        )
    both = set(zip(own[:count], seeds, strict=False)) & set(zip(*judged, strict=True))
    if both:
        raise SettingError(
            f"{next(iter(both))} is to calibrate and to be held out: give it another seed, or leave it out of one"
        )
    return (own[:count], seeds[:count]), judged


def _checked_points(points: Sequence[int]) -> tuple[int, ...]:
    points = tuple(points) if isinstance(points, Sequence) else (points,)
    for count in points:
        check_points(count)
    if not points:
        raise SettingError("points names no number of features to forecast F from: give (1, 2, 3), or some of them")
    return tuple(sorted(set(points)))


def _checked_edits(edits: Sequence[Sequence[Method]]) -> tuple[tuple[Method, ...], ...]:
    if not isinstance(edits, Sequence) or not edits or not all(isinstance(each, Sequence) for each in edits):
        raise SettingError(
            f"edits must be a list of sets of skip methods, such as [(), (SkipTuning(0.9),)], got {edits!r}"
        )
    for method in (method for each in edits for method in each):
        if getattr(method, "role", None) != "skips":
            raise SettingError(f"edits are methods that edit skips, such as SkipTuning(0.9), got {method!r}")
    return tuple(tuple(each) for each in edits)


def _choose(found: list[Front], trials: Trials) -> Trial:
    budget = trials.budget
    if budget.kind in ("labels", "metric"):
        _check_plain(found, trials)
    search = {"macs": spend_macs, "time": spend_time}.get(budget.kind, meet_floor)
    chosen = search(found, trials)
    if chosen is not None:
        return chosen
    if not budget.is_floor:
        least = min((c for front in found for c in front), key=lambda c: c.macs)
        needs = f"{least.macs:.3f} of the plain run's MACs"
        if budget.kind == "time":
            needs += f", {trials.time_of(least, trials.how.steps, least.edits):.3f} of its time"
        raise SettingError(
            f"budget {budget}: the cheapest candidate, cut {least.cut} with {least.full} of {least.evaluations} full, takes {needs}: "
            "allow as much, or sample fewer steps"
        )
    best = max((trial for trial in trials.all if trial.candidate), key=lambda trial: trial.score.mean)
    raise SettingError(
        f"budget {budget}: no candidate reaches it on {len(trials.jobs[0])} held-out pictures. The best is {described(best, True)}: "
        f"{trials.judge.text(best.score.mean)}, for {best.macs:.1%} of the plain run's MACs. Ask for less, name deeper cuts, or sample plainly"
    )


def _check_plain(found: list[Front], trials: Trials) -> None:
    """Raise where the run without caching does not meet the floor itself."""
    sets = {repr(front[0].edits): front[0].edits for front in found}.values()
    best = max(trials.judge.score(trials.base(each), trials.base(each)).mean for each in sets)
    if best < trials.budget.limit:
        kind = trials.budget.kind
        raise SettingError(
            f"budget {trials.budget}: the run without caching itself reaches {best:.4g} on {len(trials.jobs[0])} held-out pictures: "
            f"ask for {kind}={math.floor(best * 1000) / 1000:g} at most, or take psnr"
        )


def _draw(found: list[Front], trials: Trials, chosen: Trial) -> None:
    """Try what a figure of the fronts needs."""
    for front in found:
        for share in DRAWN:
            trials.cached(nearest(front, share))
    for share in DRAWN_PLAIN:
        trials.plain(trials.near(share), chosen.edits)


def _profile(budget: Budget, judge: Judge, chosen: Trial, rival: Trial, fewest: Trial | None, held_out: int) -> Profile:
    method = chosen.candidate.method
    told = {"budget": str(budget), "measure": judge.name, "held_out": held_out, "chosen": trial_dict(chosen),
            "rival": trial_dict(rival), "fewest_plain_steps": fewest and fewest.steps}  # fmt: skip
    return replace(method.loaded, cut=method.cut, full=method.full, tuned=told)


class _Meter:
    """How far tuning is, by scheduler steps of whole calls; how many trials there will be is guessed beforehand."""

    def __init__(self, tell: Progress | None, how: Settings, calibrated: int, judged: int, sets: int, cuts: int):
        runs = sets * (1 + 2.5 * cuts) + 4  # of the held-out pictures, as dear as plain ones
        self._tell, self._text, self._done = tell, "", 0.0
        self._total = how.steps * (sets * math.ceil(calibrated / how.batch) + runs * math.ceil(judged / how.batch) + 6)

    def says(self, text: str) -> None:
        self._text = text
        self.adds(0)

    def adds(self, cost: float) -> None:
        self._done += cost
        if self._tell:
            self._tell(min(self._done / self._total, 0.99), self._text)

    def ends(self) -> None:
        if self._tell:
            self._tell(1.0, "done")
