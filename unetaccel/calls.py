"""Knowing when a pipeline call begins, sets its timesteps, makes a step, and ends or raises.

While a pipeline is accelerated its class is a same-named subclass whose ``__call__`` opens a Run;
during the call its scheduler is a second face of itself (sharing ``__dict__``) that reports
``set_timesteps`` and ``step``. Both are put back: the scheduler after each call, the class on removal.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from contextlib import contextmanager

import torch

from .accelerated import AcceleratedUNet, Face
from .errors import UnsupportedModelError
from .run import Run, current_run
from .timeline import Timeline, of_scheduler, timesteps_before


class AcceleratedPipeline:
    """Mixed into the pipeline's class while a method is applied."""

    __slots__ = ()


def watch_calls(pipe) -> None:
    """Make each call of ``pipe`` a Run of the accelerated U-Net in it; harmless where that is so already."""
    if not isinstance(pipe, AcceleratedPipeline):
        pipe.__class__ = _pipeline_class(type(pipe))


def unwatch_calls(pipe) -> None:
    """Undo ``watch_calls``; harmless where there is nothing to undo."""
    if isinstance(pipe, AcceleratedPipeline):
        pipe.__class__ = type(pipe).__base__


@functools.cache
def _pipeline_class(cls: type) -> type:
    @functools.wraps(cls.__call__)
    def call(self, *args, **kwargs):
        with _pipeline_run(self):
            return cls.__call__(self, *args, **kwargs)

    @functools.wraps(cls.__call__)
    def generate(self, *args, **kwargs):  # for pipelines of users' own that yield as they go
        with _pipeline_run(self):
            return (yield from cls.__call__(self, *args, **kwargs))

    @property
    def components(self) -> dict:
        # from_pipe takes models of exactly the class that it expects: another pipeline is given the plain ones.
        return {k: v._unetaccel.original if isinstance(v, Face) else v for k, v in cls.components.fget(self).items()}

    members = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__call__": generate if inspect.isgeneratorfunction(cls.__call__) else call,
        **({"components": components} if hasattr(cls, "components") else {}),
    }
    if hasattr(cls, "get_timesteps"):
        members["get_timesteps"] = _noting_timesteps(cls.get_timesteps)
    return type(cls.__name__, (cls, AcceleratedPipeline), members)  # in this order the layout is the same


def _noting_timesteps(get_timesteps: Callable) -> Callable:
    """Image-to-image pipelines ask this method of theirs which timesteps their ``strength`` leaves."""

    @functools.wraps(get_timesteps)
    def noting(self, *args, **kwargs):
        result = get_timesteps(self, *args, **kwargs)
        run = current_run(getattr(self.unet, "_unetaccel", None))
        if run is not None:
            run.visits = len(result[0] if isinstance(result, tuple) else result)
        return result

    return noting


@contextmanager
def _pipeline_run(pipe):
    unet = pipe.unet
    if isinstance(getattr(unet, "_orig_mod", None), AcceleratedUNet):
        raise UnsupportedModelError(
            "pipe.unet was wrapped by torch.compile after apply, which would leave it plain. "
            "Put it back (pipe.unet = pipe.unet._orig_mod) and use unetaccel.apply(..., compile=True)"
        )
    if not isinstance(unet, AcceleratedUNet):  # the user has put another U-Net there since
        yield
        return
    with unet._unetaccel.run(
        lambda: _timeline(pipe), guided=lambda: getattr(pipe, "do_classifier_free_guidance", False)
    ) as run:
        found = pipe.scheduler
        observed = _observed(found, run)
        # Not by plain assignment: pipelines write their config when a component is set.
        object.__setattr__(pipe, "scheduler", observed)
        try:
            yield
        finally:
            if pipe.scheduler is observed:
                over = isinstance(found, ObservedScheduler) and found._run.closed  # of a generator that ended first
                object.__setattr__(pipe, "scheduler", found._plain if over else found)


def _timeline(pipe) -> Timeline:
    """The timesteps that the loop will visit: most pipelines say how many, some before ``denoising_end`` cuts them."""
    scheduler, run = pipe.scheduler, current_run(pipe.unet._unetaccel)
    count = getattr(pipe, "_num_timesteps", None) or run.visits
    start, end = (getattr(pipe, f"_denoising_{side}", None) for side in ("start", "end"))
    if not _is_share(end):
        return of_scheduler(scheduler, count)
    stop, begin = timesteps_before(scheduler, end), getattr(scheduler, "begin_index", None)
    if begin is None:
        begin = timesteps_before(scheduler, start) if _is_share(start) else 0
    return of_scheduler(scheduler, min(count or stop, stop - begin), stop)


def _is_share(value: object) -> bool:
    """As SDXL pipelines ask it of ``denoising_start`` and ``denoising_end``."""
    return isinstance(value, float) and 0 < value < 1


class ObservedScheduler:
    """Mixed into the scheduler's class for the length of one pipeline call; copies of it are plain schedulers."""

    __slots__ = ()

    def __deepcopy__(self, memo):
        return copy.deepcopy(self._plain, memo)

    def __copy__(self):
        return copy.copy(self._plain)

    def __reduce_ex__(self, protocol):
        return self._plain.__reduce_ex__(protocol)


def _observed(scheduler, run: Run) -> ObservedScheduler:
    """A face of ``scheduler`` that tells ``run`` when timesteps are set and when a step is made."""
    plain = scheduler._plain if isinstance(scheduler, ObservedScheduler) else scheduler
    cls = _observed_class(type(plain))
    observed = cls.__new__(cls)
    object.__setattr__(observed, "__dict__", plain.__dict__)
    object.__setattr__(observed, "_plain", plain)
    object.__setattr__(observed, "_run", run)
    return observed


@functools.cache
def _observed_class(cls: type) -> type:
    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self, *args, **kwargs):
        result = cls.set_timesteps(self, *args, **kwargs)
        self._run.restart()
        return result

    @functools.wraps(cls.step)
    def step(self, *args, **kwargs):
        result = cls.step(self, *args, **kwargs)
        output = args[0] if args else kwargs.get("model_output")
        self._run.step(len(output) if isinstance(output, torch.Tensor) and output.ndim else None)
        return result

    members = {
        "__slots__": ("_plain", "_run"),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "set_timesteps": set_timesteps,
        "step": step,
    }
    return type(cls.__name__, (ObservedScheduler, cls), members)
