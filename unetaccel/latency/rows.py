"""A measured way as numbers: per step, per loop, and beside what its work allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from ..schedule import pattern
from .ceilings import Rates, Works
from .timers import Loop, spread

if TYPE_CHECKING:
    from .measure import Way

Spread = dict[str, float]
"""``median``, ``p20`` and ``p80``."""


@dataclass(frozen=True)
class Row:
    """Times are in seconds; ratios are taken within each repeat."""

    variant: str
    title: str
    baseline: str
    interval: int | None
    cut: int | None
    pattern: str
    full: Spread
    """One full evaluation of the U-Net, over the steps of all repeats."""
    cached: Spread | None
    loop: Spread
    """The whole loop, guidance and scheduler's arithmetic included."""
    steps_per_second: Spread
    speedup: Spread
    """Over the plain, eager loop."""
    speedup_in_mode: Spread | None
    """Over the plain loop in the same mode of execution; None for that loop itself."""
    ceiling: float
    """The speedup that the MACs allow: those of a plain loop over those of this one (a ControlNet's as this variant runs it)."""
    of_ceiling: Spread | None
    """``speedup_in_mode`` over ``ceiling``."""
    floor: dict[str, float]
    """Seconds that the U-Net's MACs take at the measured matmul rate, and its bytes at the measured copy rate."""
    of_matmul_rate: float
    """``floor["macs"]`` over the loop's time."""
    peak_bytes: int | None
    cached_bytes: int
    check: dict[str, float]

    def as_dict(self) -> dict:
        """Plain data, ready for JSON."""
        return asdict(self)


def row_of(way: Way, loops: Mapping[tuple, list[Loop]], counted: Works, rates: Rates) -> Row:
    """The row of one way.

    Args:
        loops: of all ways, by their key; those of one repeat stand at the same place.
        counted: the work of its evaluations.
    """
    full, cached = counted.full, counted.cached if way.variant.shortens else counted.beside_whole
    own = loops[way.key]
    steps = len(own[0].evaluations)
    plan = [way.interval is None or i % way.interval == 0 for i in range(steps)]
    works = [full if is_full else cached[way.cut] for is_full in plan]
    macs, bytes = sum(w.macs for w in works), sum(w.bytes for w in works)
    ceiling = steps * full.macs / macs
    wholes = [loop.whole for loop in own]
    in_mode = None if way.interval is None else _ratios(loops.get((way.variant.baseline, None, None)), own)
    return Row(
        variant=way.variant.name,
        title=way.variant.title,
        baseline=way.variant.baseline,
        interval=way.interval,
        cut=way.cut,
        pattern=pattern(plan),
        full=_evaluations(own, plan, True),
        cached=None if all(plan) else _evaluations(own, plan, False),
        loop=spread(wholes),
        steps_per_second=spread([steps / whole for whole in wholes]),
        speedup=spread(_ratios(loops["plain", None, None], own)),
        speedup_in_mode=in_mode and spread(in_mode),
        ceiling=ceiling,
        of_ceiling=in_mode and spread([ratio / ceiling for ratio in in_mode]),
        floor={"macs": macs / rates.macs, "bytes": bytes / rates.bytes},
        of_matmul_rate=macs / rates.macs / median(wholes),
        peak_bytes=way.peak_bytes,
        cached_bytes=way.cached_bytes,
        check={"error": way.check.error, "tolerance": way.check.tolerance, "moved": way.check.moved},
    )


def _evaluations(loops: list[Loop], plan: list[bool], full: bool) -> Spread:
    return spread([s for loop in loops for s, kind in zip(loop.evaluations, plan, strict=True) if kind is full])


def _ratios(base: list[Loop] | None, own: list[Loop]) -> list[float] | None:
    """How many times as long the base took, per repeat; None without one (it may not run here)."""
    return base and [b.whole / o.whole for b, o in zip(base, own, strict=True)]
