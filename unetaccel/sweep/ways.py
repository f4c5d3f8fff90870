"""Putting a row's solver and methods on a pipeline, and taking them off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..handle import Handle
from ..methods import DeepCache, Method
from ..overlay import has_foreign_forward
from ..patch import apply
from ..sampling import set_scheduler
from ..settings import method_from
from .rows import Row


def methods_of(row: Row) -> tuple[Method, ...]:
    """Our methods of a row; for a plain one and for the official helper, the ones that count the same work."""
    if row.kind == "plain":
        return (DeepCache(interval=1),)
    if row.kind == "peer":
        [settings] = row.methods.values()
        return (DeepCache(interval=settings["interval"], cut=f"helper:{settings['branch']}", force=True),)
    return tuple(method_from(name, settings) for name, settings in row.methods.items())


@contextmanager
def applied(pipe, row: Row, scheduler: Mapping | None = None) -> Iterator[Handle | None]:
    """``pipe`` as the row wants it, and as it was afterwards. Yields the handle of our methods, if any.

    Args:
        scheduler: what differs from the pipeline's configuration of it, see ``sampling.set_scheduler``.
    """
    own = pipe.scheduler
    try:
        set_scheduler(pipe, row.solver, overrides=scheduler)
        if row.kind == "plain":
            yield None
        elif row.kind == "peer":
            [settings] = row.methods.values()
            with official_deepcache(pipe, **settings):
                yield None
        else:
            with apply(pipe, *methods_of(row)) as handle:
                yield handle
    finally:
        pipe.scheduler = own


@contextmanager
def official_deepcache(pipe, interval: int, branch: int) -> Iterator[None]:
    """The package DeepCache 0.1.1 enabled on ``pipe``; what its ``disable`` leaves on the modules is taken off too."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
        for module in pipe.unet.modules():
            if not has_foreign_forward(module):
                module.__dict__.pop("forward", None)
