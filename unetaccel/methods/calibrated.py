"""Calibrated caching: the plan and the forecast that a measurement of the model found best."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import SettingError
from ..forecast import Table, table
from ..plans import Fitted, best_plans, squared_error
from ..profile import Profile, load_profile
from ..timeline import Timeline
from .base import is_above, is_int
from .reuse import ReuseMethod


@dataclass(frozen=True, repr=False)
class Calibrated(ReuseMethod):
    """DeepCache with a plan from a dynamic programme and fitted forecasts, both from a profile of the model.

    The plan is the best of all with its number of full evaluations, for forecasts from two features; F at a cached
    evaluation is the affine combination of the last ``points`` full ones that fitted the measurement best.

    Args:
        profile: a ``Profile``, or the path of one (see ``unetaccel.calibrate``).
        full: full evaluations of a run of as many steps as were measured, or their share; runs of fewer steps have the same share.
            None is the profile's.
        cut: a skip index that was measured; None is the profile's.
        points: features that F is forecast from, each of which is kept; 1 holds. None is the profile's.
        observe: compare F at full evaluations with what would have been forecast; ``summary()`` tells the error beside the
            predicted one. Nothing is read from the device in the call.
        refresh: adaptive: where that error (root mean square over the pictures) is above so many times the predicted one, the
            second evaluation from then on is full; 2 is a sensible value. Off by default: it waits for the device once per full
            evaluation, for the evaluation before the last, so launches run ahead by one evaluation at most.

    Raises:
        SettingError: a value that the profile does not hold.
        WeightsError: the profile cannot be read.
    """

    profile: Profile | str | PathLike
    full: int | float | None = None
    cut: int | None = None
    points: int | None = None
    observe: bool = True
    refresh: float | None = None
    loaded: Profile = field(init=False, repr=False, compare=False, default=None)

    headline: ClassVar[tuple[str, ...]] = ("full", "cut")
    example: ClassVar[str] = "{profile: profile.yaml}"

    def __post_init__(self):
        if not isinstance(self.profile, Profile | str | PathLike):
            raise SettingError(
                f"Calibrated(profile)={self.profile!r}: expected a profile, or the path of one (unetaccel.calibrate makes them)"
            )
        loaded = self.profile if isinstance(self.profile, Profile) else _loaded(*_stamped(self.profile))
        object.__setattr__(self, "loaded", loaded)
        for name in ("full", "cut", "points"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(loaded, name))
        super().__post_init__()

    def __repr__(self) -> str:
        name = "" if isinstance(self.profile, Profile) else f"{Path(self.profile).name!r}, "
        refresh = "" if self.refresh is None else f", refresh={self.refresh}"
        return f"Calibrated({name}full={self.full}, cut={self.cut}, points={self.points}{refresh})"

    def check_model(self, base: dict) -> None:
        """Raise ``SettingError`` for a U-Net that the profile was not made for."""
        self.loaded.check_model(base)

    def flags(self, timeline: Timeline) -> list[bool]:
        """One flag per evaluation of ``timeline``, true where it is full.

        Raises:
            SettingError: timesteps that were not measured.
        """
        full = set(self._plan(self._indices(timeline)))
        return [i in full for i in range(timeline.evaluations)]

    def tables(self, timeline: Timeline, flags: Sequence[bool]) -> Callable[[int], Table]:
        """What the evaluations of a call blend, by the first full one of a stream."""
        forecast = self._forecast(self._indices(timeline))
        return lambda first: _table(forecast, tuple(flags), first)

    def predicted(self, timeline: Timeline, flags: Sequence[bool]) -> list[float]:
        """Predicted relative error of F at every evaluation, were it forecast from the full ones before; 0 for the first."""
        return list(_predicted(self._forecast(self._indices(timeline)), tuple(flags)))

    def limits(self, timeline: Timeline, flags: Sequence[bool]) -> list[float] | None:
        """By evaluation, ``refresh`` times the predicted error."""
        if self.refresh is None:
            return None
        return [self.refresh * error for error in self.predicted(timeline, flags)]

    def _indices(self, timeline: Timeline) -> tuple[int, ...]:
        timesteps = timeline.read()[0] if timeline.read else []
        if len(timesteps) != timeline.evaluations:
            if timeline.evaluations == self.loaded.evaluations and not timesteps:
                return tuple(range(timeline.evaluations))  # a loop of one's own that names none
            raise SettingError(
                f"a profile of {self.loaded.evaluations} evaluations needs the timesteps of this call, which are not known: give them, "
                "handle.run(50, timesteps=...)"
            )
        return tuple(self.loaded.indices(timesteps))

    def _gram(self, indices: tuple[int, ...]) -> np.ndarray:
        chosen = list(indices)
        return self.loaded.grams[self.cut][:, chosen][:, :, chosen]

    def _forecast(self, indices: tuple[int, ...]) -> Fitted:
        """The fit for a call that visits these of the measured evaluations; made once for each kind of call."""
        made, kind = self.loaded.__dict__.setdefault("_forecasts", {}), (self.cut, self.points, indices)
        if kind not in made:
            made[kind] = Fitted(self._gram(indices), self.points)
        return made[kind]

    def _plan(self, indices: tuple[int, ...]) -> list[int]:
        """The full evaluations of a call that visits these of the measured ones; made once for each kind of call."""
        T = len(indices)
        share = self.full if isinstance(self.full, float) else self.full / self.loaded.evaluations
        k = max(1, round(share * T))
        points = min(self.points, 2)
        if self.loaded.evaluations == T and points == min(self.loaded.points, 2):
            return list(nearest(self.loaded.plans[self.cut], k).full)
        warmup = 1 if indices[0] == 0 else entering(k)
        made = self.loaded.__dict__.setdefault("_made", {})  # with the profile: it takes a second or so
        kind = self.cut, points, indices, warmup
        if kind not in made:
            gram, u = self._gram(indices), [self.loaded.call.abscissae[i] for i in indices]
            made[kind] = best_plans(gram, u, Fitted(gram, points), warmup=warmup)
        return nearest(made[kind], k)[0]

    def _check_full(self, value):
        """an int from 1 to the profile's number of evaluations, or a share of them between 0.0 and 1.0"""
        if isinstance(value, float):
            return 0 < value <= 1
        return is_int(value, 1) and value <= self.loaded.evaluations

    def _check_cut(self, value):
        """a skip index that the profile was measured at"""
        return is_int(value, 0) and value in self.loaded.grams

    def _check_points(self, value):
        """an int from 1 to 4"""
        return is_int(value, 1) and value <= 4

    def _check_observe(self, value):
        """True or False"""
        return isinstance(value, bool)

    def _check_refresh(self, value):
        """a number above 0, such as 2, or None"""
        return value is None or is_above(value, 0)


def _stamped(path: str | PathLike) -> tuple[str, int]:
    path = Path(path).expanduser()
    return str(path), path.stat().st_mtime_ns if path.is_file() else 0


@functools.lru_cache(maxsize=8)
def _loaded(path: str, stamp: int) -> Profile:
    """A profile's file, read once as long as it is not written again; plans that are made for other calls stay with it."""
    return load_profile(path)


@functools.lru_cache(maxsize=64)
def _table(forecast: Fitted, flags: tuple[bool, ...], first: int) -> Table:
    """Kept from call to call: fits take some milliseconds."""
    return table(forecast, [0.0] * len(flags), flags, first)


@functools.lru_cache(maxsize=64)
def _predicted(forecast: Fitted, flags: tuple[bool, ...]) -> tuple[float, ...]:
    full, found = [], []
    for j, flag in enumerate(flags):
        found.append(math.sqrt(squared_error(forecast.gram, forecast.weights(flags, full, j), j)) if full else 0.0)
        full += [j] * flag
    return tuple(found)


def entering(full: int) -> int:
    """How many of ``full`` evaluations come first in calls that begin later than the measured ones, as from a picture.

    What these begin with has not come by the measured way, and F moves as fast as at any beginning. Where few are full there are
    none to spare (bench/forecasts.py, image to image).
    """
    return max(1, min(4, full // 3))


def nearest(plans: dict, k: int):
    """The plan of ``k`` full evaluations, or of as many as come closest: gaps have a longest length."""
    return plans[min(plans, key=lambda count: abs(count - k))]
