"""Engine: what one ``apply`` knows. The plain U-Net, the methods, the views, and the runs in flight."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from . import timeline as timelines
from .compiled import compiled_views
from .costs import auto_cut
from .errors import SettingError, UnsupportedModelError, check_count
from .execution import EAGER, Execution
from .graphs import Log
from .halves import Halves
from .inputs import input_names
from .layouts import layout_of
from .methods import DeepCache, GuidanceReuse, Method, ReuseMethod
from .overlay import has_foreign_forward, refuse_replaced_forward
from .precompute import precomputed_views
from .run import Report, Run, active, current_run
from .skip_edits import SkipEdits
from .skips import Skip, resolve_cut
from .timeline import Timeline
from .views import Views, make_views
from .weights import base_of


class Engine:
    """Decides, for each call of the accelerated U-Net, which view runs. Holds no state of a sampling call.

    Args:
        unet: the user's U-Net; never written to.
        methods: at least one method, at most one of them a reuse method.
        how: evaluations are run.

    Raises:
        UnsupportedModelError, SettingError: the methods do not fit this U-Net.
    """

    def __init__(self, unet: nn.Module, methods: tuple[Method, ...], how: Execution = EAGER):
        self.original = unet
        self.methods = methods
        self.layout = layout_of(unet)
        _check_methods(methods)
        reuse = _only(ReuseMethod, methods)
        self.edits = SkipEdits([m for m in methods if m.role == "skips"], self.layout, unet)
        self.reuse = reuse or DeepCache(interval=1)
        self.guidance = _only(GuidanceReuse, methods)
        if has_foreign_forward(unet) and not hasattr(unet, "_hf_hook"):
            refuse_replaced_forward([unet], {id(unet): "the U-Net"})
        if reuse:
            reuse.check_model(base_of(unet, self.layout.skips))
        self.cut = self._cut(unet) if reuse else None
        """Where cached evaluations enter; None if nothing is reused."""
        self.removed = False
        self.remove: Callable[[], None] = lambda: setattr(self, "removed", True)
        """Puts everything back; set by ``patch.apply``."""
        self.last: Run | None = None
        self.costs: dict = {}
        self._forward = type(unet).forward
        self._names = input_names(unet)
        self.how = how
        self.log = Log() if how.graphs else None
        """Of recordings."""
        self.controlnets: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()
        """The evaluators of ControlNets beside it that are in use, by the ``id`` of each (which they hold)."""
        self._idle: list[Views] = [self._build()]  # built now, so that what cannot work fails here
        self._lock = threading.Lock()
        self._warned = False

    def _cut(self, unet: nn.Module) -> int:
        if self.layout.uncut:
            raise UnsupportedModelError(self.layout.uncut)
        return auto_cut(unet) if self.reuse.cut == "auto" else resolve_cut(self.reuse.cut, self.layout.skips)

    @property
    def skip(self) -> Skip | None:
        return None if self.cut is None else self.layout.skips[self.cut]

    def evaluate(self, args: tuple, kwargs: dict) -> object:
        """One call of the accelerated U-Net."""
        run = None if self.removed else current_run(self)
        if run is None:
            return self._evaluate_outside(args, kwargs)
        inputs = self._named(args, kwargs)
        if len(inputs) < len(args) + len(kwargs) or not {"sample", "timestep"} <= inputs.keys():
            return self._forward(self.original, *args, **kwargs)  # a TypeError, in Python's own words
        return run.evaluate(inputs, lambda **inputs: self._run_plain(run, inputs))

    def _named(self, args: tuple, kwargs: dict) -> dict:
        """The arguments of a call by the names that inputs have here."""
        here = {own: name for name, own in self._names.items()}
        return {**dict(zip(self._names, args, strict=False)), **{here.get(k, k): v for k, v in kwargs.items()}}

    def _run_plain(self, run: Run, inputs: dict) -> object:
        if not (self.how.compiles or self.how.precompute or self.edits):
            return self._forward(self.original, **{self._names.get(k, k): v for k, v in inputs.items()})
        return run.run_plain(inputs)

    def _build(self) -> Views:
        if self.how.compiles:
            return compiled_views(self.original, self.cut, self.edits.sites, self.how, self.log)
        if self.how.precompute:
            return precomputed_views(self.original, self.cut, self.edits.sites, self.how)
        return make_views(self.original, self.cut, self.edits.sites(self.original), self.how)

    def _evaluate_outside(self, args: tuple, kwargs: dict) -> object:
        """A call that belongs to no sampling call: nothing is reused; skips are edited all the same."""
        if self.removed:
            return self._forward(self.original, *args, **kwargs)
        if self.edits.need_timeline:
            raise SettingError(
                "a method with a time schedule was applied, but this call of the U-Net belongs to no sampling call. Call the "
                "pipeline given to apply, or wrap your loop in `with handle.run(50, timesteps=..., sigmas=...):`"
            )
        if self.cut is not None:
            self._warn_outside()
        if not self.edits:
            return self._forward(self.original, *args, **kwargs)
        views = self._borrow()
        try:
            return views.run_plain(self._named(args, kwargs))
        finally:
            self._give_back(views)

    def _warn_outside(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            "unetaccel: the accelerated U-Net was called outside a sampling call and runs plain. "
            "Call the pipeline given to apply, or wrap your loop in `with handle.run(evaluations):`.",
            stacklevel=2,
        )

    @contextmanager
    def run(
        self, timeline: Callable[[], Timeline], streams: int | None = None, guided: Callable[[], bool] = lambda: False
    ) -> Iterator[Run]:
        """One sampling call: evaluations inside the block belong to it, in this thread."""
        halves = Halves(self.guidance, guided) if self.guidance else None
        run = Run(self, self.reuse, self._borrow, timeline, streams, self.edits.strengths, halves, self.how.kernels)
        self.last = run
        try:
            with active(run):
                yield run
        finally:
            if run.views is not None:
                self._give_back(run.views)
            run.views = None

    def _give_back(self, views: Views) -> None:
        views.forget()
        with self._lock:
            if not self.removed:
                self._idle.append(views)

    def let_go(self) -> None:
        """Of what was made to evaluate with: nothing will be."""
        with self._lock:
            self._idle.clear()

    def _borrow(self) -> Views:
        """Views that no other thread is using; new ones if none is idle or the model has changed."""
        with self._lock:
            while self._idle:
                views = self._idle.pop()
                if views.are_current():
                    views.sites.refresh()
                    views.forget()
                    return views
        return self._build()

    def report(self) -> Report | None:
        """Of the latest sampling call."""
        return self.last.report if self.last else None

    def plan(self, steps: int, scheduler=None) -> list[bool]:
        """The flags that a call of ``steps`` inference steps (evaluations, without a scheduler) would have."""
        return self.reuse.flags(_timeline(steps, scheduler))

    def kept(self, steps: int, scheduler=None) -> int:
        """How many features a stream keeps in such a call; none if it is all full."""
        timeline = _timeline(steps, scheduler)
        flags = self.reuse.flags(timeline)
        return 0 if all(flags) else self.reuse.tables(timeline, flags)(0).slots


def _timeline(steps: int, scheduler) -> Timeline:
    check_count("plan(steps)", steps)
    return timelines.of_steps(scheduler, steps) if scheduler is not None else Timeline(steps)


def _check_methods(methods: tuple[Method, ...]) -> None:
    strangers = [m for m in methods if not isinstance(m, Method)]
    if strangers:
        raise SettingError(
            f"apply takes methods such as unetaccel.DeepCache(interval=3), but got {strangers}: "
            "unetaccel.apply(pipe, unetaccel.DeepCache(interval=3))"
        )


def _only(kind: type[Method], methods: tuple[Method, ...]) -> Method | None:
    """The method of this kind, if any; two of them would contradict each other."""
    found = [m for m in methods if isinstance(m, kind)]
    if len(found) > 1:
        raise SettingError(f"at most one {found[0].role} method can be applied at a time, got {len(found)}: {found}")
    return found[0] if found else None
