"""Calibration: plain runs of a few prompts, from which plans and forecasts for all numbers of full evaluations follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .environment import environment
from .errors import SettingError, check_count
from .forecast import abscissae
from .layouts import layout_of
from .methods.base import Method, is_int
from .patch import apply, plain_unet
from .plans import Fitted, best_plans, plan_errors
from .profile import Call, Planned, Profile
from .recording import Record
from .sampling import Settings, sample
from .timeline import Timeline, of_steps
from .weights import base_of

MOST_POINTS, MOST_EVALUATIONS = 4, 200
MOVES = ("beta_schedule", "beta_start", "beta_end", "timestep_spacing", "prediction_type", "rescale_betas_zero_snr",
         "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "algorithm_type", "solver_order", "steps_offset")  # fmt: skip
"""Of a scheduler's configuration: what a profile writes down for its readers. What counts are the timesteps."""


def calibrate(
    pipe,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    *,
    steps: int = 50,
    guidance: float | None = None,
    cuts: Sequence[int] = (0, 1),
    full: int | None = None,
    points: int = 3,
    size: tuple[int, int] | None = None,
    batch: int = 4,
    edits: Sequence[Method] = (),
    on_step: Callable[[], None] | None = None,
) -> Profile:
    """Sample plainly, watch F at several cuts, and find the best plan of each number of full evaluations.

    Two prompts give nearly the plans of sixteen. The Gram matrices of F are all that is kept: at most 65,536 fixed coordinates
    of every sample's F, and of one batch at a time.

    Args:
        pipe: with nothing applied; its scheduler is the one that is calibrated for.
        prompts, seeds: of one length; by default the seeds are 0, 1, 2, ...
        steps: inference steps. Runs whose timesteps are a subset of these (half as many steps, image-to-image) can use it too.
        cuts: skip indices to watch.
        full: how many full evaluations runs have by default; None is a third of them.
        points: features that F is forecast from, 1 to 4.
        size: height and width of the pictures, in pixels.
        batch: pictures per pipeline call.
        edits: methods that edit skips, applied in the runs: F changes with them. The profile does not hold them.
        on_step: called after each scheduler step.

    Raises:
        SettingError: no prompt, a cut that is not there, too few or too many steps, or an edit that is none.
    """
    prompts, seeds = list(prompts), list(range(len(prompts)) if seeds is None else seeds)
    if not prompts or len(prompts) != len(seeds):
        raise SettingError(
            f"calibrate needs prompts and a seed for each, got {len(prompts)} prompts and {len(seeds)} seeds"
        )
    check_count("steps", steps)
    check_points(points)
    unet = plain_unet(pipe)
    skips = layout_of(unet).skips
    strange = [b for b in cuts if b not in range(len(skips))]
    if strange or not cuts:
        raise SettingError(f"cuts={list(cuts)}: this U-Net has the skips 0 to {len(skips) - 1}; name at least one")
    timeline = of_steps(pipe.scheduler, steps)
    _check_evaluations(steps, timeline.evaluations, full)
    if strange := [method for method in edits if getattr(method, "role", None) != "skips"]:
        raise SettingError(f"edits are methods that edit skips, such as SkipTuning(0.8), got {strange[0]!r}")
    record, grams = Record(tuple(cuts)), []
    how = Settings(steps, guidance, size, batch)
    with apply(pipe, record, *edits):  # it sees F before they do, as the cache does
        for i in range(0, len(prompts), batch):
            sample(pipe, prompts[i : i + batch], seeds[i : i + batch], how, on_step)
            grams.append(record.taken(timeline.evaluations))
    gram = {b: np.concatenate([found[b] for found in grams]) for b in cuts}
    call = _call(pipe.scheduler, steps, guidance, timeline)
    plans = {b: planned(gram[b], call.abscissae, points) for b in cuts}
    return Profile(
        model=base_of(unet, skips),
        call=call,
        samples={"prompts": len(prompts), "seeds": [int(seed) for seed in seeds], "size": size and list(size)},
        grams=gram,
        plans=plans,
        cut=cuts[0],
        full=min(plans[cuts[0]], key=lambda k: abs(k - (full or timeline.evaluations / 3))),
        points=points,
        versions=environment(unet.device)["packages"],
    )


def check_points(points: object) -> None:
    """Raise ``SettingError`` unless F can be forecast from so many features."""
    if not is_int(points, 1) or points > MOST_POINTS:
        raise SettingError(f"points must be an int from 1 to {MOST_POINTS}, got {points!r}")


def planned(gram: np.ndarray, u: Sequence[float], points: int) -> dict[int, Planned]:
    """By number of full evaluations, the best plan for forecasts from two features, and its error with ``points``."""
    found = best_plans(gram, u, Fitted(gram, min(points, 2)))
    return rated(gram, u, {k: full for k, (full, _) in found.items()}, points)


def rated(gram: np.ndarray, u: Sequence[float], plans: dict[int, Sequence[int]], points: int) -> dict[int, Planned]:
    """The plans, by number of full evaluations, with the error of forecasts from ``points`` features."""
    forecast, found = Fitted(gram, points), {}
    for k, full in plans.items():
        errors = plan_errors(gram, u, full, forecast)
        found[k] = Planned(tuple(full), math.sqrt(errors.sum() / max(len(errors) - k, 1)))
    return found


def with_points(profile: Profile, points: int) -> Profile:
    """The same measurement, planned for forecasts from ``points`` features."""
    u, alike = (
        profile.call.abscissae,
        min(points, 2) == min(profile.points, 2),
    )  # plans differ for one feature and for more
    plans = {
        b: rated(gram, u, {k: plan.full for k, plan in profile.plans[b].items()}, points)
        if alike
        else planned(gram, u, points)
        for b, gram in profile.grams.items()
    }
    return replace(profile, plans=plans, points=points)


def _check_evaluations(steps: int, evaluations: int, full: int | None) -> None:
    if evaluations < 2:
        raise SettingError(
            f"steps={steps} makes one evaluation, and there is nothing to reuse: calibrate for 2 or more"
        )
    if evaluations > MOST_EVALUATIONS:
        raise SettingError(
            f"steps={steps} makes {evaluations} evaluations, and plans are made for {MOST_EVALUATIONS} at most: calibrate for fewer"
        )
    if full is not None and not (is_int(full, 1) and full <= evaluations):
        raise SettingError(f"full must be an int from 1 to the {evaluations} evaluations, got {full!r}")


def _call(scheduler, steps: int, guidance: float | None, timeline: Timeline) -> Call:
    config = {name: value for name in MOVES if (value := scheduler.config.get(name)) is not None}
    timesteps, _ = timeline.read()
    return Call(
        type(scheduler).__name__, config, steps, guidance, tuple(timesteps), tuple(abscissae(timeline, "log1p_sigma"))
    )
