"""Nothing is timed before it is known to be right: final latents of short runs, beside a reference that shares no code with them.

The reference of a cached run is the plain U-Net, run in full at every step, whose F is replaced by that of the latest full step
just where the decoder layer at the cut takes it in. So it needs neither views nor the package DeepCache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from ..errors import CheckError
from ..skips import Skip, skip_table
from .jobs import Job, Walk

TOLERANCE = {torch.float32: 2e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Largest distance to the reference that rounding may explain: sixteen units in the last place of float16 and bfloat16, in which
every layer's output is rounded; and what sums in another order have done to float32, with room to spare."""
SEEDS = (1, 0)
"""The first run of a variant compiles or captures; the second shows that it follows what it is given."""


@dataclass(frozen=True)
class Check:
    """Distances are ``|a - b| / |b|`` of what the U-Net added to the latents."""

    error: float
    """To the reference, the larger of those of ``SEEDS``."""
    tolerance: float
    """What rounding may explain, and at most half of ``moved``: the check has to tell a cached run from a plain one."""
    moved: float
    """Of the reference to the plain run: what a variant that caches nothing would be off by."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


Key = tuple[int | None, int | None]
"""Cut and interval."""
PLAIN: Key = (None, None)


class References:
    """Final latents that variants must arrive at, of short runs that refresh twice at the longest interval.

    Raises:
        CheckError: they are not finite.
    """

    def __init__(self, job: Job, cuts: Iterable[int], intervals: Iterable[int]):
        self.walk = Walk(2 * max(intervals, default=1) + 2, job.device)
        self.tolerance = tolerance(job.dtype, job.device)
        self._found: dict[Key, list[torch.Tensor]] = {
            PLAIN: self.runs(job, lambda: nullcontext(job.together(job.unet)))
        }
        table, twin = skip_table(job.unet), job.twin()
        for cut, interval in product(cuts, intervals):
            self._found[cut, interval] = self.runs(job, partial(substituted, job, twin, table[cut], interval))
        if not all(torch.isfinite(x).all() for runs in self._found.values() for x in runs):
            raise CheckError(f"{job.name}: the reference is not finite in {job.dtype}, so nothing can be checked")

    def runs(self, job: Job, start: Callable[[], AbstractContextManager]) -> list[torch.Tensor]:
        """The U-Net's part of the final latents for each of ``SEEDS``; ``start`` gives what to call in one loop."""
        found = []
        for seed in SEEDS:
            with start() as unet:
                latents = job.sample(unet, self.walk, seed)
            found.append(job.part(latents, self.walk, seed))
        return found

    def moved(self, key: Key) -> float:
        return max(map(distance, self._found[key], self._found[PLAIN]))

    def check(self, key: Key, runs: Iterable[torch.Tensor]) -> Check:
        """One variant's ``runs``, beside those that it must arrive at."""
        error, moved = max(map(distance, runs, self._found[key])), self.moved(key)
        return Check(error, self.tolerance if key == PLAIN else min(self.tolerance, moved / 2), moved)


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """``TOLERANCE``, or float16's where convolutions in float32 run in TF32, which has as many bits."""
    tf32 = device.type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return TOLERANCE[torch.float16 if tf32 else dtype]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """``|found - expected| / |expected|``; infinite if either holds a NaN, which no comparison would notice."""
    found, expected = found.double(), expected.double()
    ratio = ((found - expected).norm() / expected.norm()).item()
    return ratio if math.isfinite(ratio) else math.inf


@contextmanager
def substituted(job: Job, unet: nn.Module, skip: Skip, interval: int) -> Iterator[Callable]:
    """For one loop of ``job``, its copy ``unet`` takes F at every evaluation but each ``interval``-th from the latest of those."""
    kept, count = None, 0

    def substitute(resnet: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        nonlocal kept, count
        name = next((k for k in ("input_tensor", "hidden_states") if k in kwargs), None)
        both = kwargs[name] if name else args[0]  # F and the skip, (N, C, H, W)
        if count % interval == 0:
            kept = both[:, : skip.hidden].clone()
        count += 1
        both = torch.cat([kept, both[:, skip.hidden :]], dim=1)
        return (args, {**kwargs, name: both}) if name else ((both, *args[1:]), kwargs)

    hook = unet.get_submodule(skip.entry).register_forward_pre_hook(substitute, with_kwargs=True)
    try:
        yield job.together(unet)
    finally:
        hook.remove()
