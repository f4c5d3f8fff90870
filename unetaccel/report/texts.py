"""Numbers as people read them."""

from __future__ import annotations

import math

from .rows import Score, Spread

NONE = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """Rounded to ``digits``, without an exponent for everyday sizes."""
    if value is None:
        return NONE
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def score(found: Score | None) -> str:
    """``41.2 ± 0.8``, as precise as its spread."""
    if found is None:
        return NONE
    if found.identical:
        return "identical"
    if not found.sd:
        return significant(found.value, 4)
    decimals = max(0, min(5, 1 - math.floor(math.log10(found.sd))))
    return f"{found.value:.{decimals}f} ± {found.sd:.{decimals}f}"


def times(spread: Spread | None) -> str:
    """``2.32x (2.30 to 2.34)``."""
    if spread is None:
        return NONE
    return f"{spread.median:.2f}x " + ("(timed once)" if spread.once else f"({spread.low:.2f} to {spread.high:.2f})")


def percent(spread: Spread | None) -> str:
    """``99% (97% to 103%)``."""
    return NONE if spread is None else f"{spread.median:.0%} ({spread.low:.0%} to {spread.high:.0%})"


def ratio(spread: Spread | None) -> str:
    """``0.984 (0.973 to 0.993)``."""
    return NONE if spread is None else f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def seconds(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    factor, unit = (1000, "ms") if spread.median < 1 else (1, "s")
    median, low, high = (significant(factor * s) for s in (spread.median, spread.low, spread.high))
    return f"{median} {unit} " + ("(timed once)" if spread.once else f"({low} to {high})")


def scaled(value: float | None, unit: str = "") -> str:
    """``1.23 G``: with a factor of a thousand in front of the unit."""
    if value is None:
        return NONE
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}{unit}"
    return f"{significant(value)} {unit}".strip()


def size(count: float | None) -> str:
    """Bytes, by 1024."""
    if count is None:
        return NONE
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f} B"
