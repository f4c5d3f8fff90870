"""One case measured: every variant built, checked, and only then timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..errors import CheckError, SettingError, UnetAccelError, check_count
from ..skips import resolve_cut, skip_table
from ..sweep.timing import peak_memory
from .ceilings import Rates, Works, works
from .gate import Check, References, distance
from .jobs import Job, Walk
from .machine import clocks
from .rows import Row, row_of
from .runners import Runner
from .timers import Loop, Marks, interleaved
from .variants import Variant, fresh_compiler

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Raises:
        SettingError: a number is not an int, or too small; an interval of 1 is the plain run.
    """

    intervals: tuple[int, ...] = (2, 3, 5)
    cuts: tuple[int, ...] = (0,)
    steps: int = 50
    repeats: int = 5

    def __post_init__(self):
        for name in ("steps", "repeats"):
            check_count(name, getattr(self, name))
        if not self.intervals or min(self.intervals) < 2:
            raise SettingError(
                f"intervals must be of at least 2 (the plain run is measured anyway), got {self.intervals}"
            )
        if not self.cuts:
            raise SettingError("at least one cut is needed: 0 is where cached steps run least")


@dataclass(frozen=True)
class Way:
    """A variant at a cut and an interval, ready to run; plain ones have neither."""

    variant: Variant
    runner: Runner = field(repr=False)
    cut: int | None
    interval: int | None
    check: Check
    peak_bytes: int | None
    """Most memory in use while it was built and checked, weights included (CUDA)."""
    cached_bytes: int

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        return self.variant.name, self.cut, self.interval


@dataclass(frozen=True)
class Measured:
    """Of one job."""

    job: Job
    rows: list[Row]
    skipped: dict[str, str]
    """Variants that cannot run here, each with the reason."""
    works: Works
    clocks: list[dict | None]
    """Before and after the timing."""


def measure(
    job: Job, variants: list[Variant], settings: Settings, rates: Rates, say: Say = lambda text: None
) -> Measured:
    """Build, check and time ``variants`` on one job.

    Raises:
        CheckError: a variant computes something else than its reference: nothing is timed.
        SettingError: this U-Net has no such cut.
    """
    table = skip_table(job.unet)
    for cut in settings.cuts:
        resolve_cut(cut, table)
    counted = works(job, settings.cuts)
    with fresh_compiler():
        ways, skipped = checked_ways(job, variants, settings, say)
        before = clocks(job.device)
        loops = timed(job, ways, settings, say)
        after = clocks(job.device)
    found = {way.key: loops[way.key] for way in ways}
    rows = [row_of(way, found, counted, rates) for way in ways]
    return Measured(job, rows, skipped, counted, [before, after])


def checked_ways(job: Job, variants: list[Variant], settings: Settings, say: Say) -> tuple[list[Way], dict[str, str]]:
    """Every way that can run here, compared with its reference, and the variants that cannot, each with the reason.

    Raises:
        CheckError: one of them is wrong; the message names it.
    """
    say(f"{job.name}: references")
    references = References(job, settings.cuts, settings.intervals)
    ways, skipped = [], {}
    for variant in variants:
        reason = variant.why_not(job)
        for cut in (settings.cuts if variant.caches else (None,)) if reason is None else ():
            say(f"{job.name}: {variant.title}" + ("" if cut is None else f", cut {cut}"))
            try:
                ways += _built(job, variant, cut, settings, references)
            except CheckError:
                raise
            except UnetAccelError as error:
                reason = str(error)
            except RuntimeError as error:  # a compiler's, or of memory: the others may still be timed
                if variant.name == "plain" or isinstance(error, getattr(torch, "AcceleratorError", ())):
                    raise
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if reason is not None:
            skipped[variant.name] = reason
    return ways, skipped


def _built(job: Job, variant: Variant, cut: int | None, settings: Settings, references: References) -> list[Way]:
    """A variant at one cut, built once and checked at every interval."""
    made: list[Way] = []

    def build() -> None:
        runner = variant.build(job, cut)
        for interval in settings.intervals if variant.caches else (None,):
            start = partial(runner.loop, references.walk, interval)
            check = references.check((cut, interval), references.runs(job, start))
            made.append(Way(variant, runner, cut, interval, check, None, runner.cached_bytes()))

    peak = _peak(build, job)
    for way in made:
        if not way.check.passed:
            raise CheckError(
                f"{job.name}: {_title(way)} is wrong: its latents are {way.check.error:.3g} off the reference, where rounding in "
                f"{job.dtype} may reach {way.check.tolerance:g}. Nothing was timed"
            )
    return [replace(way, peak_bytes=peak) for way in made]


def _peak(work: Callable[[], None], job: Job) -> int | None:
    if job.device.type == "cuda":
        return peak_memory(work, job.unet)
    work()
    return None


def timed(job: Job, ways: list[Way], settings: Settings, say: Say) -> dict[tuple, list[Loop]]:
    """Whole loops of every way, in turn within each repeat.

    Raises:
        CheckError: a way's last latents are not those of its first loop, so running side by side changes what it computes.
    """
    walk, first, last = Walk(settings.steps, job.device), {}, {}

    def run(way: Way) -> Loop:
        with way.runner.loop(walk, way.interval) as unet:
            marks = Marks(job.device)
            latents = job.sample(unet, walk, marks=marks)
        first.setdefault(way.key, latents)
        last[way.key] = latents
        return Loop.of(marks)

    say(f"{job.name}: {settings.repeats} repeats of {len(ways)} loops of {settings.steps} steps")
    loops = interleaved({way.key: partial(run, way) for way in ways}, settings.repeats)
    for way in ways:
        moved = distance(*(job.part(found[way.key], walk, 0) for found in (last, first)))
        if not moved <= way.check.tolerance:
            raise CheckError(
                f"{job.name}: {_title(way)} gave other latents in its last loop than in its first ({moved:.3g} apart, from the "
                "same noise). Nothing is reported"
            )
    return loops


def _title(way: Way) -> str:
    where = "" if way.cut is None else f" (interval {way.interval}, cut {way.cut})"
    return f"{way.variant.title}{where}"
