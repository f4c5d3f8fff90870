"""F at a cached evaluation as a weighted sum of the last full ones. Pure functions of numbers: no model, no tensor.

Whatever the forecast, its weights do not depend on the features, so all of a call's are known before its first
evaluation: see ``table``. Everything is computed in float64 on the host.

u is the abscissa over which F is thought to be smooth (see ``abscissae``), a the last full evaluation, p the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from .errors import SettingError
from .timeline import Timeline

MOST_AMPLIFIED = 4.0
"""The largest sum of absolute weights: so much is the rounding noise of the features amplified."""
ABSCISSAE = ("log1p_sigma", "logsnr", "sigma", "t", "index")

Weights = dict[int, float]
"""By full evaluation. They sum to 1, so that a constant F is forecast exactly, unless the forecast says otherwise."""


@dataclass(frozen=True, repr=False)
class Forecast:
    """Base of the forecasts: settings, and the weights that follow from them.

    Raises:
        SettingError: a setting that is out of range.
    """

    name: ClassVar[str]

    @property
    def memory(self) -> int:
        """How many of the last full features it reads."""
        raise NotImplementedError

    def weights(self, u: Sequence[float], full: Sequence[int], j: int) -> Weights:
        """Of evaluation ``j``, from the full evaluations ``full`` before it, the last one last.

        Where abscissae repeat, turn back or are not finite, as with solvers of several evaluations a step, and where the
        weights would amplify noise too much, fewer features are used, in the end the last one alone.
        """
        for count in range(min(self.memory, len(full)), 1, -1):
            points = list(full[-count:])
            if not _runs_one_way([u[i] for i in (*points, j)]):
                continue
            found = self._weights(u, points, j)
            if sum(map(abs, found.values())) <= MOST_AMPLIFIED:
                return found
        return {full[-1]: 1.0}

    def _weights(self, u: Sequence[float], points: list[int], j: int) -> Weights:
        """From two or more points, strictly monotone in u as far as ``j``."""
        raise NotImplementedError

    def __str__(self) -> str:
        shown = (f for f in fields(self) if f.repr and getattr(self, f.name) != f.default)
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in shown]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    __repr__ = __str__

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            raise SettingError(f"forecast {self.name}: {name} must be {allowed}, got {getattr(self, name)!r}")


@dataclass(frozen=True, repr=False)
class Hold(Forecast):
    """The last full feature, as DeepCache has it."""

    name: ClassVar[str] = "hold"

    @property
    def memory(self) -> int:
        return 1


@dataclass(frozen=True, repr=False)
class Newton(Forecast):
    """The polynomial through the last ``order`` + 1 features: exact for polynomials of that degree in u, at any spacing."""

    order: int = 2
    name: ClassVar[str] = "newton"

    def __post_init__(self):
        self._check("order", _is_int(self.order, 1) and self.order <= 3, "1, 2 or 3")

    @property
    def memory(self) -> int:
        return self.order + 1

    def _weights(self, u, points, j):
        return {i: math.prod((u[j] - u[k]) / (u[i] - u[k]) for k in points if k != i) for i in points}


@dataclass(frozen=True, repr=False)
class Linear(Forecast):
    """On along the slope of the last two features, a ``gain`` of the way (0 is hold): w_p = -gain (u_j - u_a) / (u_a - u_p)."""

    gain: float = 1.0
    name: ClassVar[str] = "linear"

    def __post_init__(self):
        self._check("gain", _is_number(self.gain) and 0 <= self.gain <= 1, "a number from 0 (hold) to 1")

    @property
    def memory(self) -> int:
        return 2

    def _weights(self, u, points, j):
        p, a = points
        beta = self.gain * (u[j] - u[a]) / (u[a] - u[p])
        return {p: -beta, a: 1 + beta}


@dataclass(frozen=True, repr=False)
class Anchored(Forecast):
    """A ridge fit of a polynomial that passes through the last feature.

    With s_i = (u_i - u_a) / (u_a - u_p), psi(s) = (s, .., s^degree), X_i = psi(s_i) over the points before a:
    w = X (X^T X + ridge I)^-1 psi(s_j) and w_a = 1 - sum w. A large ridge is hold; ridge 0 the polynomial.
    """

    degree: int = 2
    points: int = 3
    ridge: float = 0.03
    name: ClassVar[str] = "anchored"

    def __post_init__(self):
        self._check("degree", _is_int(self.degree, 1) and self.degree <= 3, "1, 2 or 3")
        self._check("points", _is_int(self.points, 2), "an int of at least 2")
        self._check("ridge", _is_number(self.ridge) and self.ridge >= 0, "a number of at least 0")

    @property
    def memory(self) -> int:
        return self.points

    def _weights(self, u, points, j):
        *before, a = points
        degree = min(self.degree, len(before))
        steps = lambda i: (u[i] - u[a]) / (u[a] - u[before[-1]])  # noqa: E731
        powers = np.arange(1, degree + 1)
        X = np.power.outer(np.array([steps(i) for i in before]), powers)
        w = X @ np.linalg.solve(X.T @ X + self.ridge * np.eye(degree), steps(j) ** powers)
        return {**dict(zip(before, map(float, w), strict=True)), a: 1 - float(w.sum())}


@dataclass(frozen=True, repr=False)
class Chebyshev(Forecast):
    """Spectrum's global ridge fit of Chebyshev polynomials over the whole call (Han et al., arXiv 2603.01623).

    tau is u scaled to [-1, 1] from the first evaluation to one past the last, Phi_im = T_m(tau_i), m = 0..degree:
    w = Phi (Phi^T Phi + ridge I)^-1 phi(tau_j), mixed with the linear forecast: (1 - blend) linear + blend w.

    It passes through no feature, and the ridge on the constant makes its weights sum to less than 1 (0.90 to 0.92 at the
    published settings): F shrinks. ``free_constant`` leaves the constant out of the ridge, and the sum is 1.
    """

    degree: int = 4
    ridge: float = 0.1
    blend: float = 1.0
    free_constant: bool = False
    points: int = 100
    name: ClassVar[str] = "chebyshev"

    def __post_init__(self):
        self._check("degree", _is_int(self.degree, 1), "an int of at least 1")
        self._check("ridge", _is_number(self.ridge) and self.ridge > 0, "a number above 0")
        self._check("blend", _is_number(self.blend) and 0 <= self.blend <= 1, "a number from 0 (linear) to 1")
        self._check("free_constant", isinstance(self.free_constant, bool), "True or False")
        self._check("points", _is_int(self.points, 2), "an int of at least 2")

    @property
    def memory(self) -> int:
        return self.points

    def weights(self, u, full, j):
        if not (math.isfinite(u[0]) and math.isfinite(u[-1])):  # nothing to scale by
            return Linear().weights(u, full, j)
        return super().weights(u, full, j)

    def _weights(self, u, points, j):
        first, last = u[0], u[-1] + (u[-1] - u[0]) / max(len(u) - 1, 1)
        tau = 2 * (np.array([u[i] for i in (*points, j)]) - first) / (last - first) - 1
        phi = np.polynomial.chebyshev.chebvander(tau, self.degree)
        Phi, penalty = phi[:-1], self.ridge * np.eye(self.degree + 1)
        if self.free_constant:
            penalty[0, 0] = 0
        w = self.blend * (Phi @ np.linalg.solve(Phi.T @ Phi + penalty, phi[-1]))
        found = dict(zip(points, map(float, w), strict=True))
        for i, weight in Linear()._weights(u, points[-2:], j).items():
            found[i] += (1 - self.blend) * weight
        return found


@dataclass(frozen=True, repr=False)
class TaylorSeer(Newton):
    """As diffusers and cache-dit ship it, for comparison (arXiv 2503.06923): every difference is divided by the latest gap.

    D_0 = F_a and D_o = (D_(o-1) - D_(o-1) at p) / (u_a - u_p); F at j is sum_o D_o (u_j - u_a)^o / o!. From order 2 on that is
    not the polynomial through the features, which ``newton`` is. The shipped code counts evaluations: abscissa "index".
    """

    name: ClassVar[str] = "taylorseer"

    def _weights(self, u, points, j):
        found: Weights = dict.fromkeys(points, 0.0)
        for order, difference in enumerate(_differences(u, points, len(points) - 1)):
            for i, weight in difference.items():
                found[i] += weight * (u[j] - u[points[-1]]) ** order / math.factorial(order)
        return found


def _differences(u: Sequence[float], points: list[int], order: int) -> list[Weights]:
    """D_0..D_order at the last of the points, each as weights of features."""
    here: list[Weights] = [{points[-1]: 1.0}]
    if order == 0:
        return here
    before, gap = _differences(u, points[:-1], order - 1), u[points[-1]] - u[points[-2]]
    for earlier in before:
        here.append({i: (here[-1].get(i, 0.0) - earlier.get(i, 0.0)) / gap for i in {*here[-1], *earlier}})
    return here


FORECASTS: dict[str, type[Forecast]] = {
    cls.name: cls for cls in (Hold, Linear, Newton, Anchored, Chebyshev, TaylorSeer)
}


def forecast_from(value: str | Mapping | Forecast) -> Forecast:
    """A forecast from its name, or from ``{name: {setting: value}}``.

    Raises:
        SettingError: no such forecast or setting, or a value that it refuses.
    """
    if isinstance(value, Forecast):
        return value
    name, settings = value, {}
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, settings)] = value.items()
    if not isinstance(name, str) or name not in FORECASTS or not isinstance(settings or {}, Mapping):
        raise SettingError(
            f"unknown forecast {value!r}; known: {', '.join(FORECASTS)}, 'auto' (linear, or hold where the sampler adds noise), or NAME: SETTINGS such as {{chebyshev: {{blend: 0.5}}}}"
        )
    known = [f.name for f in fields(FORECASTS[name])]
    strange = [key for key in settings or {} if key not in known]
    if strange:
        raise SettingError(f"forecast {name} has no {strange[0]!r}; it has {', '.join(known) or 'no settings'}")
    return FORECASTS[name](**(settings or {}))


Row = tuple[tuple[int, float], ...]
"""(slot, weight) pairs: what the features in these slots are multiplied by."""


@dataclass(frozen=True)
class Table:
    """What every evaluation of a stream does, before the first of them.

    Full features go to ``slots`` slots in turn, the first full evaluation of the table to slot 0.
    """

    slots: int
    rows: tuple[Row | None, ...]
    """One per evaluation; None where it is full."""
    checks: tuple[Row | None, ...] = ()
    """One per evaluation: how a full one would have been forecast; None where it is cached, or the first."""
    first: int = 0
    """The evaluation that it begins with."""


def table(forecast: Forecast, u: Sequence[float], flags: Sequence[bool], first: int = 0) -> Table:
    """The table of a stream whose evaluations from ``first`` on, which is full, are full where ``flags`` says so.

    Args:
        u: abscissae, one per evaluation.
        first: where the features begin that may be used: what was before a change of the inputs may not.
    """
    place: dict[int, int] = {}
    rows: list[Row | None] = []
    checks: list[Row | None] = []
    for j, flag in enumerate(flags):
        known = forecast.weights(u, list(place), j) if j > first else {}
        row = tuple((place[i], w) for i, w in known.items() if w) if known else None
        full = flag or j <= first
        rows.append(None if full else row)
        checks.append(row if full else None)
        if full and j >= first:
            place[j] = len(place) % forecast.memory
    return Table(min(forecast.memory, max(len(place), 1)), tuple(rows), tuple(checks), first)


def abscissae(timeline: Timeline, kind: str) -> list[float]:
    """u of each evaluation.

    Args:
        kind: ``"log1p_sigma"``, log(1 + sigma); ``"logsnr"``, -log(sigma), half the log signal-to-noise ratio; ``"sigma"``; ``"t"``,
            the timestep; or ``"index"``. sigma is the noise level in the variance-exploding sense.

    Where the call's noise levels or timesteps are not known it is the index; and where timesteps repeat or turn back, as
    with second-order solvers, the index does too, being the timestep.
    """
    T = timeline.evaluations
    timesteps, sigmas = timeline.read() if timeline.read else ([], [])
    timesteps = timesteps if len(timesteps) == T else None
    if kind == "t" and timesteps:
        return timesteps
    if kind not in ("t", "index") and len(sigmas) == T and not any(map(math.isnan, sigmas)):
        return [_of_sigma(kind, sigma) for sigma in sigmas]
    if timesteps and not _runs_one_way(timesteps):
        return timesteps
    return [float(i) for i in range(T)]


def _of_sigma(kind: str, sigma: float) -> float:
    if kind == "sigma":
        return sigma
    if kind == "logsnr":
        return -math.log(sigma) if sigma > 0 else math.inf
    return math.log1p(sigma)


def _runs_one_way(u: Iterable[float]) -> bool:
    """Whether the numbers are finite and strictly rise, or strictly fall."""
    points = np.array(list(u), dtype=np.float64)
    steps = np.diff(points) if np.isfinite(points).all() else np.zeros(1)
    return bool((steps > 0).all() or (steps < 0).all())


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
