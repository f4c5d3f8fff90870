"""Engine: what one ``apply`` knows. The plain U-Net, the methods, the views, and the runs in flight."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from . import timeline as timelines
from .compiled import check_compilable, compiled_views
from .costs import auto_cut
from .errors import SettingError, check_count
from .methods import DeepCache, Method
from .overlay import has_foreign_forward, refuse_replaced_forward
from .run import Report, Run, active, current_run
from .skips import Skip, resolve_cut, skip_table
from .timeline import Timeline
from .views import Views, build_views


class Engine:
    """Decides, for each call of the accelerated U-Net, which view runs. Holds no state of a sampling call.

    Args:
        unet: the user's U-Net; never written to.
        methods: at least one method, at most one of them a reuse method.
        compile: options of ``torch.compile``, or None.

    Raises:
        UnsupportedModelError, SettingError: the methods do not fit this U-Net.
    """

    def __init__(self, unet: nn.Module, methods: tuple[Method, ...], compile: dict | None = None):
        self.original = unet
        self.methods = methods
        self.reuse = _reuse(methods)
        self.table = skip_table(unet)
        if has_foreign_forward(unet) and not hasattr(unet, "_hf_hook"):
            refuse_replaced_forward([unet], {id(unet): "the U-Net"})
        self.cut = auto_cut(unet) if self.reuse.cut == "auto" else resolve_cut(self.reuse.cut, self.table)
        self.removed = False
        self.remove: Callable[[], None] = lambda: setattr(self, "removed", True)
        """Puts everything back; set by ``patch.apply``."""
        self.last: Run | None = None
        self.costs: dict = {}
        self._forward = type(unet).forward
        self._names = list(inspect.signature(self._forward).parameters)[1:]
        self._compile = compile
        self._idle: list[Views] = [self._build()]  # built now, so that what cannot work fails here
        self._lock = threading.Lock()
        self._warned = False

    @property
    def skip(self) -> Skip:
        return self.table[self.cut]

    def evaluate(self, args: tuple, kwargs: dict) -> object:
        """One call of the accelerated U-Net."""
        run = None if self.removed else current_run(self)
        if run is None:
            self._warn_outside()
            return self._forward(self.original, *args, **kwargs)
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if len(inputs) < len(args) + len(kwargs) or not {"sample", "timestep"} <= inputs.keys():
            return self._forward(self.original, *args, **kwargs)  # a TypeError, in Python's own words
        return run.evaluate(inputs, lambda **inputs: self._run_plain(run, inputs))

    def _run_plain(self, run: Run, inputs: dict) -> object:
        if self._compile is None:
            return self._forward(self.original, **inputs)
        return run.fresh_views().run_plain(inputs)

    def _build(self) -> Views:
        if self._compile is None:
            return build_views(self.original, self.cut)
        check_compilable(self.original)  # again whenever the model has changed
        return compiled_views(self.original, self.cut, self._compile)

    def _warn_outside(self) -> None:
        if self.removed or self._warned:
            return
        self._warned = True
        warnings.warn(
            "unetaccel: the accelerated U-Net was called outside a sampling call and runs plain. "
            "Call the pipeline given to apply, or wrap your loop in `with handle.run(evaluations):`.",
            stacklevel=2,
        )

    @contextmanager
    def run(self, timeline: Callable[[], Timeline], streams: int | None = None) -> Iterator[Run]:
        """One sampling call: evaluations inside the block belong to it, in this thread."""
        run = Run(self, self.reuse, self._borrow, timeline, streams)
        self.last = run
        try:
            with active(run):
                yield run
        finally:
            if run.views is not None:
                with self._lock:
                    self._idle.append(run.views)
            run.views = None

    def _borrow(self) -> Views:
        """Views that no other thread is using; new ones if none is idle or the model has changed."""
        with self._lock:
            while self._idle:
                views = self._idle.pop()
                if views.are_current():
                    return views
        return self._build()

    def report(self) -> Report | None:
        """Of the latest sampling call."""
        return self.last.report if self.last else None

    def plan(self, steps: int, scheduler=None) -> list[bool]:
        """The flags that a call of ``steps`` inference steps (evaluations, without a scheduler) would have."""
        check_count("plan(steps)", steps)
        return self.reuse.flags(timelines.of_steps(scheduler, steps) if scheduler is not None else Timeline(steps))


def _reuse(methods: tuple[Method, ...]) -> DeepCache:
    strangers = [m for m in methods if not isinstance(m, Method)]
    if strangers or not methods:
        raise SettingError(
            f"apply takes methods such as unetaccel.DeepCache(interval=3), but got {strangers or 'none'}: "
            "unetaccel.apply(pipe, unetaccel.DeepCache(interval=3))"
        )
    reuse = [m for m in methods if m.role == "reuse"]
    if len(reuse) > 1:
        raise SettingError(f"at most one reuse method can be applied at a time, got {len(reuse)}: {reuse}")
    return reuse[0]
