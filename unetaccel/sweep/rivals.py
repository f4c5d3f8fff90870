"""The plain runs that cost as much as a row: of as many MACs, and of as much time."""

from __future__ import annotations

from statistics import median

from .rows import Row
from .timing import Account


def anchor(row: Row) -> Row:
    """The short plain run that, with the row's own plain run, tells how plain time grows with steps."""
    return row.plain(max(1, row.steps // 5))


def rivals(row: Row, accounts: dict[str, Account], wanted: tuple[str, ...]) -> dict[str, Row]:
    """The plain runs that stand beside ``row``: ``{"equal_macs": row, "equal_time": row}``, as far as they can be told."""
    if row.kind == "plain":
        return {}
    own, whole, short = (accounts[r.id] for r in (row, row.plain(), anchor(row)))
    found = {}
    if "equal_macs" in wanted and own.macs and whole.macs:
        found["equal_macs"] = row.plain(_steps(row.steps * own.macs / whole.macs, row.steps))
    if "equal_time" in wanted:
        found["equal_time"] = row.plain(_steps(_steps_in(row, own, whole, short), row.steps))
    return found


def _steps_in(row: Row, own: Account, whole: Account, short: Account) -> float:
    """Plain steps in the row's time: a call is an offset (text, decoding) and so much a step."""
    t, t1, t0 = (median(a.ratios) for a in (own, whole, short))
    steps = anchor(row).steps
    per_step = (t1 - t0) / (row.steps - steps) if row.steps > steps else t1 / row.steps
    return steps + (t - t0) / per_step if per_step > 0 else row.steps


def _steps(count: float, most: int) -> int:
    return min(max(1, round(count)), most)
