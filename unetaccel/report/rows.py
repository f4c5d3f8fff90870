"""One row of a sweep with every field brought to a known type; what is missing or strange becomes ``None``."""

from __future__ import annotations

import math
from dataclasses import dataclass

EDITS = frozenset({"skip_tuning", "scalelong", "freeu"})
"""Methods that edit skips."""
WIDE, BEYOND = 0.15, 1.1
"""A time is noisy if the middle of its repeats spans this share of the median, or if it is so far beyond its ceiling."""


def number(value: object) -> float | int | None:
    """A finite number, else ``None``: JSON files may hold NaN, and pages may not."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _table(value: object) -> dict:
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Metric:
    """What a column means. ``better`` is ``"lower"``, ``"higher"`` or ``None``; ``to`` is ``"plain"`` or ``"real"``."""

    name: str
    label: str
    better: str | None
    unit: str
    to: str

    @classmethod
    def read(cls, name: str, data: object) -> Metric:
        data = _table(data)
        better = data.get("better") if data.get("better") in ("lower", "higher") else None
        return cls(name, str(data.get("label") or name), better, str(data.get("unit") or ""), str(data.get("to") or ""))


@dataclass(frozen=True)
class Spread:
    """A median with the 20th and 80th percentile."""

    median: float
    low: float
    high: float
    once: bool = False
    """Of one measurement only: its spread is not known."""

    @classmethod
    def read(cls, data: object) -> Spread | None:
        data = _table(data)
        median = number(data.get("median"))
        if median is None:
            return None
        low, high = (number(data.get(key)) for key in ("p20", "p80"))
        return cls(median, median if low is None else low, median if high is None else high, low is None)

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.once)


@dataclass(frozen=True)
class Score:
    """A metric of one row over all samples. ``identical``: the images are the plain run's, so its value has no number."""

    value: float | None
    sd: float | None
    per_seed: tuple[float | None, ...] = ()
    identical: bool = False

    @classmethod
    def read(cls, data: object, metric: Metric) -> Score | None:
        if not isinstance(data, dict) or "value" not in data:
            return None
        value, seeds = number(data["value"]), data.get("per_seed")
        seeds = tuple(map(number, seeds)) if isinstance(seeds, list) else ()
        if value is None and metric.to != "plain":
            return None
        return cls(value, number(data.get("sd")), seeds, identical=value is None)


@dataclass(frozen=True)
class Row:
    """One way of sampling, with its cost and its scores. ``macs`` and ``seconds`` are per image, of the whole run."""

    id: str
    kind: str
    label: str
    solver: str
    steps: int | None
    guidance: float | None
    methods: dict
    group: dict
    pattern: str
    full: int | None
    cached: int | None
    macs: float | None
    macs_share: float | None
    ceiling: float | None
    seconds: Spread | None
    speedup: Spread | None
    cached_bytes: float | None
    peak_memory_bytes: float | None
    scores: dict[str, Score]
    scores_to: dict[str, dict[str, Score]]
    """Of a plain run: its likeness to each longer plain run, by that one's id."""
    published: dict
    rivals: dict
    images: tuple[str, ...]
    ran_plain: bool
    """A method that caches, in a run too short for it."""
    strip: str | None
    """One file with all ``images``, from left to right."""

    @property
    def edits_skips(self) -> bool:
        return not EDITS.isdisjoint(self.methods)

    @property
    def noisy(self) -> bool:
        """Whether its time says little: repeats that lie far apart, one repeat only, or more than its MACs allow."""
        if self.speedup is None or self.kind == "plain":
            return False
        wide = self.speedup.high - self.speedup.low > WIDE * abs(self.speedup.median)
        return wide or self.speedup.once or self.speedup.median > BEYOND * (self.ceiling or math.inf)

    @classmethod
    def read(cls, data: dict, metrics: dict[str, Metric]) -> Row:
        pattern = data.get("pattern") if isinstance(data.get("pattern"), str) else ""
        images = data.get("images") if isinstance(data.get("images"), list) else []
        numbers = ("steps", "guidance", "full", "cached", "macs", "macs_share", "cached_bytes", "peak_memory_bytes")
        return cls(
            id=data["id"],
            kind=data.get("kind") if data.get("kind") in ("plain", "peer") else "method",
            label=str(data.get("label") or data["id"]),
            solver=str(data.get("solver") or ""),
            methods=_table(data.get("methods")),
            group=_table(data.get("group")),
            pattern=pattern,
            ceiling=number(data.get("speedup_ceiling")),
            seconds=Spread.read(data.get("seconds")),
            speedup=Spread.read(data.get("speedup")),
            scores=_scores(data.get("metrics"), metrics),
            scores_to={base: _scores(found, metrics) for base, found in _table(data.get("metrics_to")).items()},
            published=_table(data.get("published")),
            rivals={k: v for k, v in _table(data.get("rivals")).items() if isinstance(v, str)},
            images=tuple(name for name in images if isinstance(name, str)),
            ran_plain=data.get("ran_plain") is True,
            strip=data.get("strip") if isinstance(data.get("strip"), str) else None,
            **{name: number(data.get(name)) for name in numbers},
        )


def _scores(data: object, metrics: dict[str, Metric]) -> dict[str, Score]:
    scores = {name: Score.read(_table(data).get(name), metric) for name, metric in metrics.items()}
    return {name: score for name, score in scores.items() if score}
