"""How each variant runs: one object per variant and cut, prepared once, for any interval and any number of loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Protocol

import torch

from ..errors import SettingError
from ..handle import Handle
from ..methods import DeepCache
from ..patch import apply
from ..skips import resolve_cut, skip_table
from .jobs import Job, Walk


class Runner(Protocol):
    """A variant that is ready to run."""

    def loop(self, walk: Walk, interval: int | None) -> AbstractContextManager[Callable]:
        """For one sampling loop: what to call, the U-Net with its ControlNet before it."""

    def cached_bytes(self) -> int:
        """What it kept between evaluations of the latest loop."""


class Plain:
    """The U-Net as it is."""

    def __init__(self, job: Job, cut: None = None):
        self.network = job.together(job.unet)

    def loop(self, walk: Walk, interval: None) -> AbstractContextManager[Callable]:
        return nullcontext(self.network)

    def cached_bytes(self) -> int:
        return 0


class Ours:
    """Our two views, of one ``apply``: the plan is a rule, so every interval runs the same two graphs."""

    def __init__(self, job: Job, cut: int, **options: object):
        self._interval = 1
        self._handle = apply(job.unet, DeepCache(cut=cut, schedule=self._is_full, force=True), **options)
        self._network = accelerated(job, self._handle)

    def _is_full(self, i: int, timestep: float | None, sigma: float | None, evaluations: int) -> bool:
        return i % self._interval == 0

    @contextmanager
    def loop(self, walk: Walk, interval: int) -> Iterator[Callable]:
        self._interval = interval
        with self._handle.run(len(walk), timesteps=walk.scheduler.timesteps):
            yield self._network
        _refuse_eager(self._handle)

    def cached_bytes(self) -> int:
        return self._handle.summary().cached_bytes


class PlainOurs(Plain):
    """A run of ours that reuses nothing: what caching gains in the same mode of execution is measured against it."""

    def __init__(self, job: Job, cut: None = None, *, compile: str):
        self._handle = apply(job.unet, DeepCache(interval=1), compile=compile)
        self.network = accelerated(job, self._handle)

    @contextmanager
    def loop(self, walk: Walk, interval: None) -> Iterator[Callable]:
        with self._handle.run(len(walk), timesteps=walk.scheduler.timesteps):
            yield self.network
        _refuse_eager(self._handle)


def accelerated(job: Job, handle: Handle) -> Callable:
    """What to call in a run of ``handle``."""
    return job.together(handle.unet, job.controlnet and handle.controlnet(job.controlnet))


def _refuse_eager(handle: Handle) -> None:
    """Raise if evaluations that should have been replayed were not: their times would stand under another name."""
    log = handle._engine.log
    if log is not None and log.eager:
        raise SettingError(f"not recorded: {'; '.join(log.eager)}")


class Official:
    """The package DeepCache 0.1.1, enabled for good on a copy of the U-Net that shares its weights.

    Raises:
        SettingError: none of the helper's branches is this cut.
    """

    def __init__(self, job: Job, cut: int):
        from DeepCache import DeepCacheSDHelper

        self._job, self._branch = job, _branch(job, cut)
        self._pipe = SimpleNamespace(unet=self._prepared(job), scheduler=None)
        self._helper = DeepCacheSDHelper(pipe=self._pipe)
        self._helper.set_params(cache_interval=1, cache_branch_id=self._branch)
        self._helper.enable()

    def _prepared(self, job: Job) -> torch.nn.Module:
        return job.twin()

    @contextmanager
    def loop(self, walk: Walk, interval: int) -> Iterator[Callable]:
        self._pipe.scheduler = walk.scheduler  # it finds the step by the timestep's value
        self._helper.set_params(cache_interval=interval, cache_branch_id=self._branch)
        yield self._job.together(self._pipe.unet)

    def cached_bytes(self) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self._kept)}
        return sum(storages.values())

    @property
    def _kept(self) -> dict:
        return self._helper.cached_output


class BlocksCompiled(Official):
    """The same, with the transformer blocks compiled: what its users can have without a graph of the whole."""

    def _prepared(self, job: Job) -> torch.nn.Module:
        unet = job.twin()
        unet.compile_repeated_blocks(fullgraph=True)
        return unet


def _branch(job: Job, cut: int) -> int:
    """The helper's number for a cut."""
    table = skip_table(job.unet)
    for branch in range(3 * len(table)):
        try:
            if resolve_cut(f"helper:{branch}", table) == cut:
                return branch
        except SettingError:
            break
    raise SettingError(f"no cache_branch_id of DeepCacheSDHelper is cut {cut} of this U-Net")


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)
