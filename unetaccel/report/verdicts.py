"""Which rows are worth taking: against the plain run of equal cost, and on the Pareto front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from . import texts
from .results import QualityResult
from .rows import Metric, Row, Score, number

FEW = 100
"""Pictures a seed below which distances between distributions say little: their bias is larger than what methods change."""
COSTS = {"equal_macs": "equal MACs", "equal_time": "equal time"}
RULE = (
    "A difference counts when it is larger than the spread of both over the seeds, √(sd² + sd²); "
    "otherwise the two are called level."
)


@dataclass(frozen=True)
class Verdict:
    """``ahead`` is ``"row"``, ``"plain"`` or ``"level"``; ``gain`` is positive where the row is better (``inf`` if identical)."""

    rival: Row
    ahead: str
    gain: float


def verdict(result: QualityResult, row: Row, metric: str, cost: str = "equal_macs") -> Verdict | None:
    """The row against the plain run of equal ``cost``.

    ``None`` without a rival or a score, with one seed only (whose spread is not known), and for few pictures.
    """
    rival = result.rival(row, cost)
    if (
        (result.metrics[metric].to == "real" and few_pictures(result) is not None)
        or rival is None
        or row.kind == "plain"
        or result.metrics[metric].better is None
    ):
        return None
    ours, theirs = row.scores.get(metric), result.score(rival, metric, result.plain(row))
    if ours is None or theirs is None:
        return None
    gain = _gain(result.metrics[metric], ours, theirs)
    if math.isfinite(gain) and gain and None in (ours.sd, theirs.sd) and not (ours.identical or theirs.identical):
        return None
    if abs(gain) <= math.hypot(ours.sd or 0, theirs.sd or 0):
        return Verdict(rival, "level", gain)
    return Verdict(rival, "row" if gain > 0 else "plain", gain)


def paired_gain(metric: Metric, ours: Score, theirs: Score) -> tuple[float, float] | None:
    """Mean and standard deviation over the seeds of how much better ``ours`` is; both runs share prompts and noise.

    ``None`` where either lacks a value of a seed. Differences of pairs spread less than differences of means.
    """
    pairs = list(zip(ours.per_seed, theirs.per_seed, strict=False))
    if len(pairs) < 2 or len(ours.per_seed) != len(theirs.per_seed) or any(None in pair for pair in pairs):
        return None
    sign = 1 if metric.better == "higher" else -1
    gains = [sign * (a - b) for a, b in pairs]
    return fmean(gains), stdev(gains)


def paired_text(metric: Metric, ours: Score | None, theirs: Score | None) -> str:
    """``-0.37 ± 0.12 *``: what ours is more than theirs, starred where that is larger than its spread."""
    found = paired_gain(metric, ours, theirs) if ours and theirs else None
    if found is None:
        return texts.NONE
    mean, sd = found
    return f"{mean * (1 if metric.better == 'higher' else -1):+.2g} ± {sd:.1g}{' *' * (abs(mean) > sd)}"


def _gain(metric: Metric, ours: Score, theirs: Score) -> float:
    if ours.identical or theirs.identical:
        return math.inf * (ours.identical - theirs.identical) if ours.identical != theirs.identical else 0.0
    return (ours.value - theirs.value) * (1 if metric.better == "higher" else -1)


def count(result: QualityResult, metric: str, cost: str = "equal_macs") -> dict[str, int]:
    """How many method rows are ahead of, level with and behind the plain run of equal cost."""
    found = [verdict(result, row, metric, cost) for row in result.rows if row.kind == "method"]
    return {ahead: sum(v is not None and v.ahead == ahead for v in found) for ahead in ("row", "level", "plain")}


def few_pictures(result: QualityResult) -> int | None:
    """Pictures a seed, where there are too few for a verdict."""
    samples = result.data.get("samples")
    count = number(samples.get("prompts")) if isinstance(samples, dict) else None
    return int(count) if count is not None and count < FEW else None


def finding(result: QualityResult, metric: str) -> str:
    """The outcome in one sentence, whichever way it went."""
    few = few_pictures(result) if result.metrics[metric].to == "real" else None
    if few is not None:
        return (
            f"{few} picture{'s' * (few != 1)} a seed are too few for a verdict: these figures only show that the sweep runs. "
            f"Sample at least {FEW} prompts, better 1000 and more."
        )
    if result.edits_skips:
        return _finding_of_edits(result, metric)
    found = count(result, metric)
    total, label = sum(found.values()), result.metrics[metric].label
    if not total:
        return f"No method row can be judged by {label}: that takes a plain run of equal MACs, and at least two seeds."
    return (
        f"By {label}, the plain run of equal MACs is ahead of {found['plain']} of {total} method rows, "
        f"level with {found['level']} and behind {found['row']}."
    )


def _finding_of_edits(result: QualityResult, metric: str) -> str:
    pairs = [
        (row.scores.get(metric), base.scores.get(metric)) for row in result.rows if (base := result.without_edits(row))
    ]
    gains = [
        found
        for ours, theirs in pairs
        if ours and theirs and (found := paired_gain(result.metrics[metric], ours, theirs))
    ]
    if not gains:
        return f"No row can be judged by {result.metrics[metric].label}: that takes at least two seeds."
    better, worse = (sum(sign * mean > sd for mean, sd in gains) for sign in (1, -1))
    return (
        f"By {result.metrics[metric].label}, {better} of {len(gains)} rows with edited skips are better than the run without the edit, "
        f"{worse} are worse, by more than the spread of the differences over seeds; the others are level."
    )


def front(points: list[tuple[float, float]], x_sign: int, y_sign: int) -> list[int]:
    """Indices of the points that no other one beats in both, from the cheapest on.

    ``x_sign`` and ``y_sign`` are 1 where more is better and -1 where less is.
    """
    order = sorted(range(len(points)), key=lambda i: (-x_sign * points[i][0], -y_sign * points[i][1]))
    found, best = [], -math.inf
    for i in order:
        if y_sign * points[i][1] > best:
            found.append(i)
            best = y_sign * points[i][1]
    return found
