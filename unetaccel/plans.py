"""Plans from measurements: which evaluations to make full, and which weights to forecast with. Pure numpy, float64.

The measurement is a Gram matrix: G[s, i, k] = <F_i, F_k> of sample s, F_i being the feature at the cut at evaluation i of a
plain run. The error of any forecast at any evaluation follows from it, without the features:

    e_j^2 = mean over s of (G_jj - 2 w^T G_.j + w^T G w) / G_jj,

so that plans are found, and compared, without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .errors import SettingError
from .forecast import MOST_AMPLIFIED, Forecast, Weights

OBJECTIVES = ("sum", "max")
LONGEST_GAP = 12


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(Forecast):
    """The affine combination of the last ``points`` features that is best on the measurement.

    With a the last full evaluation and d_i the weight of F_i - F_a for the ones before it:
    d = (D^T G D + ridge tr I / (points - 1))^-1 D^T (G_.j - G_.a), where D maps d to weights and G is the mean over samples of
    G / G_jj. Weights sum to 1; where nothing can be foreseen, as with noise at each step, they fall to hold by themselves.

    Args:
        gram: (S, T, T).
    """

    gram: np.ndarray = field(repr=False, compare=False)
    points: int = 3
    ridge: float = 1e-4
    name: ClassVar[str] = "fitted"

    __eq__, __hash__ = object.__eq__, object.__hash__
    """Each is its own measurement: those of other settings compare by their fields, and an array has no truth."""

    @property
    def memory(self) -> int:
        return self.points

    def weights(self, u: Sequence[float], full: Sequence[int], j: int) -> Weights:
        for count in range(min(self.points, len(full)), 1, -1):
            found = self._weights(u, list(full[-count:]), j)
            if sum(map(abs, found.values())) <= MOST_AMPLIFIED:
                return found
        return {full[-1]: 1.0}

    def _weights(self, u, points, j):
        *before, a = points
        G = self._mean(j)
        D = np.zeros((len(G), len(before)))
        for column, i in enumerate(before):
            D[i, column], D[a, column] = 1.0, -1.0
        A = D.T @ G @ D
        A += self.ridge * np.trace(A) / len(before) * np.eye(len(before)) + 1e-300
        d = np.linalg.lstsq(A, D.T @ (G[:, j] - G[:, a]), rcond=None)[0]
        return {**dict(zip(before, map(float, d), strict=True)), a: 1.0 - float(d.sum())}

    def _mean(self, j: int) -> np.ndarray:
        """(T, T): the mean over samples of G / G_jj, made once for each j."""
        means = self.__dict__.setdefault("_means", {})
        if j not in means:
            means[j] = normalised(self.gram, j).mean(axis=0)
        return means[j]


def normalised(gram: np.ndarray, j: int) -> np.ndarray:
    """Each sample's Gram matrix over its |F_j|^2, (S, T, T)."""
    return gram / gram[:, j, j][:, None, None]


def squared_error(gram: np.ndarray, weights: Weights, j: int) -> float:
    """e_j^2: relative squared error of F_j as forecast with these weights, mean over samples."""
    points, w = list(weights), np.array(list(weights.values()))
    G = gram[:, points][:, :, points]
    error = gram[:, j, j] - 2 * gram[:, j][:, points] @ w + np.einsum("i,sik,k->s", w, G, w)
    return float(np.maximum(error / gram[:, j, j], 0).mean())


def plan_errors(gram: np.ndarray, u: Sequence[float], full: Sequence[int], forecast: Forecast) -> np.ndarray:
    """e_j^2 of every evaluation (T,), 0 where it is full."""
    found = np.zeros(gram.shape[1])
    for j in sorted(set(range(len(found))) - set(full)):
        found[j] = squared_error(gram, forecast.weights(u, [i for i in full if i < j], j), j)
    return found


def best_plans(
    gram: np.ndarray,
    u: Sequence[float],
    forecast: Forecast,
    objective: str = "sum",
    warmup: int = 1,
    tail: int = 0,
    longest_gap: int = LONGEST_GAP,
) -> dict[int, tuple[list[int], float]]:
    """For every number of full evaluations that is possible: the best plan, and its sum (or largest) of e_j^2.

    A dynamic programme whose state are the last two full evaluations; exact for forecasts from one or two features. For those
    from more, plan with their like of two points.

    Args:
        gram: (S, T, T).
        u: abscissae of the T evaluations.
        objective: ``"sum"`` over the evaluations, or ``"max"``, the worst of them.
        warmup, tail: so many first and last evaluations are full.
        longest_gap: from one full evaluation to the next.

    Raises:
        SettingError: an unknown objective, or a forecast from more than two features.
    """
    if objective not in OBJECTIVES:
        raise SettingError(f"objective must be {' or '.join(OBJECTIVES)}, got {objective!r}")
    if forecast.memory > 2:
        raise SettingError(f"plans are exact for forecasts from two features, and {forecast} reads {forecast.memory}")
    T = gram.shape[1]
    must = [i for i in range(T) if i < max(warmup, 1) or i >= T - tail]
    join = np.add if objective == "sum" else np.maximum
    costs = _gap_costs(gram, u, forecast, must, longest_gap, join)
    best = np.full((T + 1, T + 1), np.inf)  # [p, a]; p = T stands for none
    best[T, 0] = 0.0
    layers, came = [best], []
    for _ in range(T - 1):
        reached = join(layers[-1][:, :, None], costs[:, :, :T])  # [q, p, a]
        came.append(reached.argmin(axis=0))
        following = np.full_like(best, np.inf)
        following[:, :T] = reached.min(axis=0)
        layers.append(following)
    found = {}
    for k, layer in enumerate(layers, start=1):
        closed = join(layer, costs[:, :, T])
        p, a = np.unravel_index(closed.argmin(), closed.shape)
        if np.isfinite(closed[p, a]):
            found[k] = (_traced(came[: k - 1], int(p), int(a), T), float(closed[p, a]))
    return found


def _traced(came: list[np.ndarray], p: int, a: int, T: int) -> list[int]:
    plan = [a]
    for table in reversed(came):
        q = int(table[p, a])
        plan.append(p)
        p, a = q, p
    return plan[::-1]


def _gap_costs(gram, u, forecast: Forecast, must: list[int], longest_gap: int, join) -> np.ndarray:
    """costs[p, a, b]: of the cached evaluations between a and b, full ones, p being the one before a; b = T is the end."""
    T = gram.shape[1]
    costs = np.full((T + 1, T + 1, T + 1), np.inf)
    pairs = [(T, 0), *((p, a) for a in range(1, T) for p in range(max(0, a - longest_gap), a))]
    for p, a in pairs:
        full = [a] if p == T else [p, a]
        total = 0.0
        for b in range(a + 1, min(a + longest_gap, T) + 1):
            costs[p, a, b] = total
            if b == T or b in must:
                break
            total = join(total, squared_error(gram, forecast.weights(u, full, b), b))
    return costs
