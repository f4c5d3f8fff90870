"""The plain runs that cost as much as a row: of as many MACs, and of as much time."""

from __future__ import annotations

from statistics import median

from .rows import Row
from .timing import Account

NEAR = 0.05
"""A plain run within this share of the time that a row takes counts as one of equal time: clocks are no better."""


def anchor(row: Row) -> Row:
    """The short plain run that, with the row's own plain run, tells how plain time grows with steps."""
    return row.plain(max(1, row.steps // 5))


def rivals(rows: list[Row], accounts: dict[str, Account], wanted: tuple[str, ...]) -> dict[str, dict[str, Row]]:
    """The plain runs that stand beside each row, as far as the times that are taken can tell them.

    A run of equal time is taken from those of equal MACs and the sweep's own where one is ``NEAR``, so that a sweep does
    not draw 21, 22 and 23 steps for the clock's sake.

    Returns:
        ``{row id: {"equal_macs": row, "equal_time": row}}``.
    """
    told = [row for row in rows if row.kind != "plain" and _told(row, accounts)]
    found: dict[str, dict[str, Row]] = {row.id: {} for row in told}
    if "equal_macs" in wanted:
        for row in told:
            own, whole = accounts[row.id].macs, accounts[row.plain().id].macs
            if own and whole:
                found[row.id]["equal_macs"] = row.plain(_steps(row.steps * own / whole, row.steps))
    if "equal_time" in wanted:
        pool = [*(r for r in rows if r.kind == "plain"), *(r for pair in found.values() for r in pair.values())]
        there = sorted(dict.fromkeys(pool), key=lambda r: r.steps)  # one order in every process, whatever hashes say
        for row in told:
            steps = _steps_in_time(row, accounts)
            near = [r for r in there if r.solver == row.solver and r.steps <= row.steps]
            best = min(near, key=lambda r: abs(r.steps - steps), default=None)
            if best is None or abs(best.steps - steps) > NEAR * steps:
                best = row.plain(_steps(steps, row.steps))
            found[row.id]["equal_time"] = best
    return found


def _told(row: Row, accounts: dict[str, Account]) -> bool:
    needed = [r.id for r in (row, row.plain(), anchor(row))]
    return all(name in accounts and accounts[name].ratios for name in needed)


def _steps_in_time(row: Row, accounts: dict[str, Account]) -> float:
    """Plain steps in the row's time: a call is an offset (text, decoding) and so much a step."""
    short = anchor(row)
    t, t1, t0 = (median(accounts[r.id].ratios) for r in (row, row.plain(), short))
    per_step = (t1 - t0) / (row.steps - short.steps) if row.steps > short.steps else t1 / row.steps
    return short.steps + (t - t0) / per_step if per_step > 0 else float(row.steps)


def _steps(count: float, most: int) -> int:
    return min(max(1, round(count)), most)
