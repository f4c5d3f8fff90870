"""What tuning chooses from: cut x number of full evaluations x features that F is forecast from, with predicted costs and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..calibrate import calibrate, with_points
from ..errors import UnsupportedModelError
from ..methods import Calibrated, Method
from ..patch import apply
from ..profile import Profile
from ..sampling import Settings, sample

LEVEL = 1.01
"""Predicted errors within this factor are level: then fewer features are kept. On the demo 5% less error are 2 to 3 dB."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One calibrated plan, before it is tried.

    Attributes:
        evaluations: of the whole run; ``full`` of them are full.
        error: predicted root-mean-square relative error of F at the others. It compares plans of one cut only.
        macs: share of the plain run's.
        edits: of skips, applied with it.
        method: what is applied.
    """

    cut: int
    full: int
    points: int
    evaluations: int
    error: float
    macs: float
    edits: tuple[Method, ...] = field(repr=False)
    method: Calibrated = field(repr=False)


Front = tuple[Candidate, ...]
"""Candidates of one cut and one set of edits, by cost; each predicted to be better than all cheaper ones."""


def fronts(
    pipe,
    jobs: tuple[list[str], list[int]],
    how: Settings,
    cuts: Sequence[int],
    points: Sequence[int],
    edits: tuple[Method, ...],
    on_step: Callable[[], None] | None = None,
) -> list[Front]:
    """One calibration under these edits, and the candidates that follow from it, for each cut.

    Args:
        jobs: prompts and seeds to calibrate with.

    Raises:
        SettingError: see ``calibrate``.
        UnsupportedModelError: the model's MACs cannot be counted.
    """
    measured = calibrate(
        pipe, *jobs, steps=how.steps, guidance=how.guidance, cuts=cuts, points=max(points), size=how.size, batch=how.batch,
        edits=edits, on_step=on_step,
    )  # fmt: skip
    profiles = [with_points(measured, p) for p in sorted(points)]
    found = []
    for b in cuts:
        share = _cached_share(pipe, jobs, how, b, profiles[-1], edits)
        found.append(_front([_candidates(profile, b, share, edits) for profile in profiles]))
    return found


def _candidates(profile: Profile, b: int, share: float, edits: tuple[Method, ...]) -> dict[int, Candidate]:
    """By number of full evaluations. All of them full is the plain run, and no candidate."""
    T, found = profile.evaluations, {}
    for k, plan in profile.plans[b].items():
        if k < T:
            macs = (k + (T - k) * share) / T
            method = Calibrated(profile, full=k, cut=b)
            found[k] = Candidate(b, k, profile.points, T, plan.error, macs, edits, method)
    return found


def _front(by_points: list[dict[int, Candidate]]) -> Front:
    """Of each number of full evaluations the fewest points that are level with the best; and of these what no cheaper one beats."""
    found: list[Candidate] = []
    for k in sorted(by_points[0]):
        alike = [candidates[k] for candidates in by_points if k in candidates]
        least = min(c.error for c in alike)
        best = next(c for c in alike if c.error <= LEVEL * least)
        if not found or best.error < found[-1].error:
            found.append(best)
    return tuple(found)


def _cached_share(pipe, jobs, how: Settings, b: int, profile: Profile, edits: tuple[Method, ...]) -> float:
    """MACs of a cached evaluation over those of a full one, from one call of one picture."""
    with apply(pipe, *edits, Calibrated(profile, full=min(profile.plans[b]), cut=b)) as handle:
        sample(pipe, jobs[0][:1], jobs[1][:1], how)
        share = handle.summary().cached_macs_share
    if share is None:
        raise UnsupportedModelError(
            "the MACs of this U-Net's evaluations cannot be counted, and tuning weighs plans by them: choose one yourself, "
            "unetaccel.apply(pipe, Calibrated(profile, full=..., cut=...))"
        )
    return share
