"""Where a row stands on each axis of cost, with its spread and the limit that its MACs set."""

from __future__ import annotations

from dataclasses import dataclass

from .results import QualityResult
from .rows import Row, Spread


@dataclass(frozen=True)
class Axis:
    """``sign`` is 1 where more is better."""

    name: str
    label: str
    sign: int


@dataclass(frozen=True)
class Place:
    """A position with its 20th and 80th percentile; ``limit`` is what the MACs alone would allow."""

    x: float
    low: float
    high: float
    limit: float | None = None


def reference(result: QualityResult, solver: str, steps: float | None = None) -> Row | None:
    """The plain run that speedups are drawn against: the one of ``steps``, else the longest that a method was run beside."""
    plain = [row for row in result.rows if row.kind == "plain" and row.solver == solver and row.steps]
    if steps is None:
        beside = {row.steps for row in result.rows if row.kind != "plain" and row.solver == solver}
        plain = [row for row in plain if row.steps in beside] or plain
    else:
        plain = [row for row in plain if row.steps == steps]
    return max(plain, key=lambda row: row.steps, default=None)


def axes(base: Row | None) -> dict[str, Axis]:
    """The axes by name; ``base`` is the reference of the speedup."""
    over = f"plain {base.steps} steps" if base else "the plain run"
    found = Axis("speedup", f"speedup over {over}", 1), Axis("seconds", "seconds per image", -1)
    return {axis.name: axis for axis in (*found, Axis("macs", "MACs per image", -1))}


def places(result: QualityResult, row: Row, base: Row | None) -> dict[str, Place]:
    """The row's place on each axis that it can be put on."""
    found = {}
    share = row.macs / base.macs if row.macs and base and base.macs else None
    spread = _speedup(result, row, base)
    drawn = row.kind != "plain"  # the plain run's limit says nothing about a method
    if spread:
        limit = 1 / share if share and drawn else None
        found["speedup"] = Place(spread.median, spread.low, spread.high, limit)
    if row.seconds:
        limit = base.seconds.median * share if share and drawn and base.seconds else None
        found["seconds"] = Place(row.seconds.median, row.seconds.low, row.seconds.high, limit)
    if row.macs:
        found["macs"] = Place(row.macs, row.macs, row.macs)
    return found


def _speedup(result: QualityResult, row: Row, base: Row | None) -> Spread | None:
    """To ``base``. A measured ratio is kept, since ratios within one repeat spread less than ratios of medians."""
    plain = result.plain(row)
    if not base or not base.seconds:
        return row.speedup
    if row is base:
        return Spread(1.0, 1.0, 1.0)
    if row.speedup and plain and plain.seconds and row is not plain:
        return row.speedup.scaled(base.seconds.median / plain.seconds.median)
    if not row.seconds:
        return None
    median, low, high = (base.seconds.median / s for s in (row.seconds.median, row.seconds.high, row.seconds.low))
    return Spread(median, low, high)
