"""DeepCache: on most evaluations, reuse what the deep layers computed on an earlier one.

Ma, Fang, Wang: "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024, arXiv 2312.00858.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .. import schedule as schedules
from ..errors import SettingError
from ..forecast import ABSCISSAE, Forecast, Table, abscissae, forecast_from, table
from ..timeline import Timeline
from .base import is_above, is_int, is_point
from .reuse import ReuseMethod

Rule = Callable[[int, "float | None", "float | None", int], bool]


@dataclass(frozen=True, repr=False)
class DeepCache(ReuseMethod):
    """Settings of DeepCache. A full evaluation stores one tensor, F; a cached one runs only the layers above the cut.

    Args:
        interval: evaluations per full one, 1 (plain) and up; 2 to 5 are usual. Read by ``uniform`` and the quads.
        cut: skip index where cached evaluations enter the decoder: 0 runs least, each step up runs one
            decoder and one encoder layer more. Also ``"auto"`` (the deepest cut whose cached evaluation costs
            at most a tenth of a full one), ``"paper:m"``, ``"helper:i"`` or a decoder layer's path.
        schedule: ``"uniform"``, ``"quad"`` (equation 7 as released), ``"quad_real"``, ``"growing"`` (gaps from ``interval`` on that
            grow by ``growth`` each, after ``warmup``; Spectrum's rule), a list of full evaluations, or a rule ``(i, timestep, sigma, T) -> bool`` asked before the first evaluation
            runs, for each that nothing else makes full (timestep and sigma are None outside a pipeline).
        center, power: of the quads: the evaluation around which they are dense (default 0.3 of the run, the
            paper's 15 of 50), and how strongly (above 1; the paper uses 1.2 to 1.5).
        growth: of ``"growing"``: how much wider each gap is than the one before (Spectrum: 0.75, or 3 at its fastest).
        forecast: F at a cached evaluation. ``"hold"`` is DeepCache: the last full one. ``"linear"``, ``"newton"``, ``"anchored"``,
            ``"chebyshev"`` and ``"taylorseer"`` (see ``unetaccel.forecast``) blend the last few, which are kept: 2 for linear. Settings
            go as ``{"chebyshev": {"blend": 0.5}}``. ``"auto"`` is linear, and hold with samplers that add noise at each step,
            where extrapolation gains nothing.
        abscissa: over what F is extrapolated: ``"log1p_sigma"``, ``"logsnr"``, ``"sigma"``, ``"t"`` or ``"index"``.
        start, end: evaluations outside this window are full; ints are indices, floats shares of the run.
        warmup, tail: so many first and last evaluations are full.
        observe: compare F at full evaluations with what would have been forecast; ``summary()`` tells the error. Nothing is read
            from the device in the call; old and new feature live side by side for a full evaluation.
        refresh: adaptive: where that relative error (root mean square over the pictures) is above this, the plan is too sparse
            there, and the second evaluation from then on is full. Off by default: it waits for the device once per full evaluation,
            for the evaluation before the last, so launches run ahead by one evaluation at most.
        force: cache even on distilled few-step schedulers (LCM, TCD) and runs of 4 evaluations or fewer,
            where it is plain by default.

    Raises:
        SettingError: a value out of range.
    """

    interval: int = 3
    cut: int | str = 0
    schedule: str | Sequence[int] | Rule = "uniform"
    center: int | float | None = None
    power: float = 1.4
    growth: float = 0.75
    forecast: str | Mapping | Forecast = "hold"
    abscissa: str = "log1p_sigma"
    start: int | float = 0.0
    end: int | float = 1.0
    warmup: int = 1
    tail: int = 0
    observe: bool = False
    refresh: float | None = None
    force: bool = False

    headline: ClassVar[tuple[str, ...]] = ("interval", "cut")

    def why_plain(self, timeline: Timeline) -> str | None:
        """Why a call on this timeline is kept plain though caching was asked for, or None."""
        return None if self.force or self.interval == 1 else timeline.few_steps

    def flags(self, timeline: Timeline) -> list[bool]:
        """One flag per evaluation of ``timeline``, true where it is full.

        Raises:
            SettingError: the schedule does not fit that many evaluations.
        """
        T = timeline.evaluations
        if self.why_plain(timeline):
            return [True] * T
        return schedules.flags(T, self._full(timeline), self.start, self.end, self.warmup, self.tail)

    def tables(self, timeline: Timeline, flags: Sequence[bool]) -> Callable[[int], Table]:
        """What the evaluations of a call blend that is full where ``flags`` says so, by the first full one of a stream.

        The scheduler's numbers are read here, once, and only for forecasts that want them.
        """
        forecast = forecast_from(
            self.forecast if self.forecast != "auto" else "hold" if timeline.stochastic else "linear"
        )
        needless = forecast.memory == 1 or all(flags)
        u = [0.0] * len(flags) if needless else abscissae(timeline, self.abscissa)
        return functools.cache(lambda first: table(forecast, u, flags, first))

    def _full(self, timeline: Timeline):
        T = timeline.evaluations
        if callable(self.schedule):
            levels = [known or [None] * T for known in (timeline.read() if timeline.read else ([], []))]
            return lambda i: self.schedule(i, levels[0][i], levels[1][i], T)
        if not isinstance(self.schedule, str):
            return schedules.explicit(T, self.schedule)
        if self.schedule == "uniform" or self.interval == 1:
            return schedules.uniform(T, self.interval)
        if self.schedule == "growing":
            return schedules.growing(T, self.interval, self.growth, self.warmup)
        center = 0.3 if self.center is None else self.center
        center = round(center * T) if isinstance(center, float) else center
        quad = schedules.quad if self.schedule == "quad" else schedules.quad_real
        return quad(T, self.interval, center, self.power)

    def __post_init__(self):
        if not isinstance(self.schedule, str) and isinstance(self.schedule, Iterable):
            # A tuple is hashable, and the caller's list or array stays theirs.
            object.__setattr__(self, "schedule", tuple(getattr(self.schedule, "tolist", lambda: self.schedule)()))
        if isinstance(self.forecast, Mapping):
            object.__setattr__(self, "forecast", forecast_from(self.forecast))
        super().__post_init__()
        if self.forecast != "auto":
            forecast_from(self.forecast)
        if self.center is not None and self.schedule not in ("quad", "quad_real"):
            raise SettingError(
                f"DeepCache(center={self.center!r}): center is read by schedule='quad' and 'quad_real' only: choose one, or leave it out"
            )
        if type(self.start) is type(self.end) and self.start > self.end:
            raise SettingError(f"DeepCache(start={self.start}, end={self.end}): start must not lie after end")

    def _check_interval(self, value):
        """an int of at least 1 (1 is plain sampling, 3 a usual choice)"""
        return is_int(value, 1)

    def _check_cut(self, value):
        """a skip index (0 and up), 'auto', 'paper:m', 'helper:i' or a decoder layer's path"""
        return is_int(value, 0) or isinstance(value, str)

    def _check_schedule(self, value):
        """'uniform', 'quad', 'quad_real', 'growing', a list of evaluation indices, or a rule (i, timestep, sigma, T) -> bool"""
        if isinstance(value, tuple):
            return all(is_int(i, 0) for i in value)
        return callable(value) or (isinstance(value, str) and value in schedules.NAMES)

    def _check_center(self, value):
        """an evaluation index, a share of the run between 0.0 and 1.0, or None"""
        return value is None or is_point(value)

    def _check_power(self, value):
        """a finite number above 1"""
        return isinstance(value, int | float) and 1 < value < math.inf

    def _check_growth(self, value):
        """a number of at least 0"""
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf

    def _check_abscissa(self, value):
        """'log1p_sigma', 'logsnr', 'sigma', 't' or 'index'"""
        return value in ABSCISSAE

    def _check_start(self, value):
        """an evaluation index, or a share of the run between 0.0 and 1.0"""
        return is_point(value)

    _check_end = _check_start

    def _check_warmup(self, value):
        """an int of at least 0"""
        return is_int(value, 0)

    _check_tail = _check_warmup

    def _check_observe(self, value):
        """True or False"""
        return isinstance(value, bool)

    def _check_refresh(self, value):
        """a relative error above 0, such as 0.1, or None"""
        return value is None or is_above(value, 0)

    def _check_force(self, value):
        """True or False"""
        return isinstance(value, bool)


RECOMMENDED = DeepCache(interval=2, cut="auto", schedule="growing", warmup=5, forecast="auto")
"""What ``apply`` does when no method is named: Spectrum's schedule, 14 full evaluations of 50 and 9 of 20, and linear forecasts.

Chosen by measurement on the demo (bench/results/forecasts-demo.json, study "default"). Five full evaluations come first because F
moves fastest there, and because one feature has no slope.
"""
