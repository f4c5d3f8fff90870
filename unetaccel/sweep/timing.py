"""What the rows cost: MACs, bytes, and times taken side by side in one process.

Every time is a ratio to the plain run of the most steps, the *base*, measured shortly before it: rounds go over all rows, the
base before every fourth, each round beginning with another row, so that a machine that slows down for a minute slows down both. Seconds are that ratio times the base's median.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from ..errors import SettingError
from ..handle import Handle
from ..patch import apply
from ..sampling import Settings, sample
from .prompts import Jobs
from .rows import Row
from .spec import Sweep
from .ways import applied, methods_of

ROWS_PER_BASE = 4
MEMORY_STEPS = 12


@dataclass
class Account:
    """What one row costs. ``ratios``: its time over the base's, one per round."""

    pattern: str
    full: int
    cached: int
    macs: float | None
    """Of one picture's whole run, U-Net only; None where they cannot be counted."""
    cached_bytes: int
    """Of a call of ``timing.batch`` pictures, as is the next."""
    peak_memory_bytes: int | None
    ratios: list[float] = field(default_factory=list)


class Stopwatch:
    """Times rows of a sweep on one pipeline.

    Args:
        base: the plain row that all times are ratios to.
    """

    def __init__(self, pipe, sweep: Sweep, jobs: Jobs, base: Row):
        self.pipe, self.sweep, self.base, self._warm = pipe, sweep, base, False
        count = min(sweep.timing.batch, len(jobs))
        self.prompts, self.seeds = (list(x) for x in zip(*(jobs[i] for i in range(count)), strict=True))

    def account(self, row: Row) -> Account:
        """The row's work, counted in a real call (which is its warm-up too)."""
        with self._applied(Row(row.solver, row.steps)), apply(self.pipe, *methods_of(row)) as handle:
            self._call(row.steps)
            summary = handle.summary()
        images, share = len(self.prompts), summary.macs_share
        macs = summary.full_macs and summary.full_macs * share * (summary.full + summary.cached) / images
        with self._applied(row) as handle:
            steps = _few_steps(handle, row.steps)
            memory = peak_memory(lambda: self._call(steps), self.pipe.unet)
        return Account(summary.pattern, summary.full, summary.cached, macs, summary.cached_bytes, memory)

    def round(self, rows: list[Row], turn: int = 0) -> tuple[float, dict[str, float]]:
        """The base's seconds per call, and each row's time over the base's; ``turn`` tells which row comes first."""
        turn, ratios, bases = turn % len(rows), {}, []
        with threads(self.sweep.timing.threads):
            if not self._warm:  # resumed: no row was accounted for in this process
                self.seconds(self.base)
                self._warm = True
            for i, row in enumerate(rows[turn:] + rows[:turn]):
                if i % ROWS_PER_BASE == 0:
                    bases.append(self.seconds(self.base))
                ratios[row.id] = self.seconds(row) / bases[-1]
        return statistics.median(bases), ratios

    def seconds(self, row: Row) -> float:
        """Of one call, applying and removing not counted."""
        with self._applied(row) as handle:
            if handle is not None:
                handle.plan(row.steps)  # plans that take a while are made before the clock starts
            _wait(self.pipe.unet.device)
            start = time.perf_counter()
            self._call(row.steps)
            _wait(self.pipe.unet.device)
            return time.perf_counter() - start

    def _applied(self, row: Row) -> AbstractContextManager[Handle | None]:
        return applied(self.pipe, row, self.sweep.scheduler)

    def _call(self, steps: int) -> None:
        how = Settings(steps, self.sweep.guidance, self.sweep.size, len(self.prompts), self.sweep.negative_prompt)
        sample(self.pipe, self.prompts, self.seeds, how)


def _few_steps(handle: Handle | None, steps: int) -> int:
    """``MEMORY_STEPS``, or all of them where so few would not do: a schedule laid over them all, a late window."""
    few = min(steps, MEMORY_STEPS)
    if handle is None:
        return few
    try:
        alike = all(handle.plan(few)) == all(handle.plan(steps)) and handle.kept(few) == handle.kept(steps)
        return few if alike else steps
    except SettingError:
        return steps


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(work: Callable[[], object], model: torch.nn.Module) -> int | None:
    """Largest size of all tensors alive at one time during ``work``, the model's parameters included, in bytes.

    On CUDA as the allocator counts it, without what lay there before (other models, networks of metrics); on a CPU
    from the profiler's record of every allocation.
    """
    device = next(model.parameters()).device
    gc.collect()
    weights = sum(p.nbytes for p in model.parameters())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + weights
    if device.type != "cpu":
        return None
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _silent_libraries(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        work()
    alive = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak + weights


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """No output of C++ libraries on stderr: the profiler writes two lines each time it runs."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
