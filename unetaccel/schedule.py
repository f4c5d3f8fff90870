"""Which evaluations of a sampling call are full. Pure functions of numbers: no model, no tensor.

A schedule is a sorted list of indices in 0..T-1, the first of which is 0: nothing is cached before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .errors import SettingError

NAMES = ("uniform", "quad", "quad_real", "growing")


def uniform(T: int, interval: int) -> list[int]:
    """Every ``interval``-th evaluation: ceil(T / interval) full ones (DeepCache, section 3.3)."""
    return list(range(0, T, interval))


def quad(T: int, interval: int, center: int, power: float) -> list[int]:
    """The paper's non-uniform schedule (equation 7), densest around evaluation ``center``.

    As released, for ``center`` > 0 the roots of negative numbers are complex and only the real part of the
    powers is used; the schedules published with the method come from exactly that. If rounding merges
    points, ``power`` is lowered by 0.02 until ceil(T / interval) remain.

    Raises:
        SettingError: ``center`` outside 0..T-1, or no power above 1 gives as many distinct points.
    """
    return _powers(T, interval, center, power, lambda z, p: complex(z) ** (1 / p))


def quad_real(T: int, interval: int, center: int, power: float) -> list[int]:
    """Equation 7 with the signed real power: more clustered around ``center`` than the released ``quad``."""
    return _powers(T, interval, center, power, lambda z, p: math.copysign(abs(z) ** (1 / p), z))


def _powers(T, interval, center, power, root) -> list[int]:
    if not 0 <= center < T:
        raise SettingError(f"the quad schedule's center={center} lies outside this call's {T} evaluations (0..{T - 1})")
    n = math.ceil(T / interval)
    p = power
    while p > 1:
        first, last = root(-center, p), root(T - center, p)
        points = [first + (last - first) * j / n for j in range(n + 1)]
        inner = sorted({int(_power(z, p).real) for z in points})[1:-1]
        full = [0, *(u + center for u in inner)]
        if len(full) == n:
            return full
        p = round(p - 0.02, 10)
    raise SettingError(
        f"the quad schedule finds no {n} distinct evaluations out of {T} for center={center}, power={power}: "
        "raise the interval, move the center towards the middle, or use schedule='uniform'"
    )


def _power(z, p: float):
    if isinstance(z, complex):
        return z**p
    return math.copysign(abs(z) ** p, z)


def growing(T: int, interval: float, growth: float, warmup: int) -> list[int]:
    """Gaps that grow: Spectrum's schedule (Han et al., arXiv 2603.01623), whose window and flex these are.

    The first ``warmup`` evaluations are full; from then on the window W starts at ``interval``, an evaluation is full if
    the cached ones before it and itself make up a multiple of floor(W), and W grows by ``growth`` at each.
    """
    full, window, cached = [], float(interval), 0
    for i in range(T):
        if i < max(warmup, 1):
            full.append(i)
        elif (cached + 1) % max(math.floor(window), 1) == 0:
            full.append(i)
            window += growth
            cached = 0
        else:
            cached += 1
    return full


def explicit(T: int, indices: Sequence[int]) -> list[int]:
    """The given indices, with 0 added.

    Raises:
        SettingError: an index outside 0..T-1.
    """
    wrong = [i for i in indices if not 0 <= i < T]
    if wrong:
        raise SettingError(
            f"schedule lists the full evaluations {wrong}, but this call has {T} evaluations (0..{T - 1}); "
            "see handle.plan(steps) for how many a step count makes"
        )
    return sorted({0, *indices})


def window(T: int, start: int | float, end: int | float) -> tuple[int, int]:
    """``start`` and ``end`` as indices: ints are evaluations, floats shares of T."""
    low, high = (round(x * T) if isinstance(x, float) else x for x in (start, end))
    return max(low, 0), min(high, T)


def flags(
    T: int,
    full: Sequence[int] | Callable[[int], bool],
    start: int | float = 0.0,
    end: int | float = 1.0,
    warmup: int = 1,
    tail: int = 0,
) -> list[bool]:
    """One flag per evaluation, true where it is full.

    Full are: what ``full`` says, everything outside ``start`` .. ``end``, the first ``warmup`` and the
    last ``tail`` evaluations, and always the first.
    """
    low, high = window(T, start, end)
    says = full if callable(full) else set(full).__contains__
    return [i < max(warmup, 1) or i >= T - tail or not low <= i < high or bool(says(i)) for i in range(T)]


def pattern(full: Sequence[bool]) -> str:
    """``F`` for each full evaluation, ``.`` for each cached one."""
    return "".join("F" if f else "." for f in full)
