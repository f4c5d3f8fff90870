"""Plans from Gram matrices: errors as measured directly, plans as good as exhaustive search, and what a profile refuses."""

import itertools
from functools import partial

import numpy as np
import pytest

from unetaccel import load_profile, schedule
from unetaccel.demo.pipeline import WEIGHTS
from unetaccel.errors import SettingError
from unetaccel.forecast import Chebyshev, Hold, Linear, Newton
from unetaccel.plans import Fitted, best_plans, plan_errors, squared_error

PROFILES = WEIGHTS.parent / "profiles"
T = 9
U = [float(i) for i in range(T)]


def features(seed: int = 0, evaluations: int = T, samples: int = 3) -> np.ndarray:
    """Trajectories of noise that is summed up twice: smooth enough to be forecast, (S, T, D)."""
    steps = np.random.default_rng(seed).normal(size=(samples, evaluations, 20))
    return 5 + steps.cumsum(axis=1).cumsum(axis=1)


def gram(X: np.ndarray) -> np.ndarray:
    return np.einsum("sid,skd->sik", X, X)


@pytest.mark.parametrize("forecast", [Hold(), Linear(), Newton(2), Chebyshev(blend=0.5)], ids=str)
def test_errors_by_gram_are_those_of_the_features(forecast):
    X, full = features(), [0, 1, 3, 5]
    found = plan_errors(gram(X), U, full, forecast)
    for j in range(T):
        if j in full:
            assert found[j] == 0
            continue
        weights = forecast.weights(U, [i for i in full if i < j], j)
        guess = sum(w * X[:, i] for i, w in weights.items())
        direct = ((guess - X[:, j]) ** 2).sum(axis=1) / (X[:, j] ** 2).sum(axis=1)
        assert found[j] == pytest.approx(direct.mean(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("points", [2, 3])
def test_fitted_weights_are_the_best_affine_ones(points):
    """Against least squares on the features themselves, each sample over its own |F_j|."""
    X, full, j = features(samples=2), [0, 1, 3, 5], 7
    G = gram(X)
    found = Fitted(G, points, ridge=0.0)._weights(U, full[-points:], j)
    assert sum(found.values()) == pytest.approx(1)
    *before, a = full[-points:]
    size = np.linalg.norm(X[:, j], axis=1)[:, None]
    columns = np.stack([((X[:, i] - X[:, a]) / size).ravel() for i in before], axis=1)
    d = np.linalg.lstsq(columns, ((X[:, j] - X[:, a]) / size).ravel(), rcond=None)[0]
    assert [found[i] for i in before] == pytest.approx(list(d), rel=1e-6)
    best = squared_error(G, found, j)
    for i, step in itertools.product(before, (-0.01, 0.01)):
        assert squared_error(G, {**found, i: found[i] + step, a: found[a] - step}, j) > best


def test_fitted_weights_hold_where_nothing_can_be_foreseen():
    """A random walk, far from zero: the last value is the best guess."""
    X = 50 + np.random.default_rng(0).normal(size=(2000, T, 8)).cumsum(axis=1)
    found = Fitted(gram(X))._weights(U, [2, 3, 4], 6)
    assert found[4] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("objective", ["sum", "max"])
@pytest.mark.parametrize("forecast", [Hold(), Linear(), "fitted"], ids=str)
def test_plans_are_as_good_as_exhaustive_search(forecast, objective):
    G = gram(features(1))
    forecast = Fitted(G, 2) if forecast == "fitted" else forecast
    total = np.sum if objective == "sum" else np.max
    best = best_plans(G, U, forecast, objective)
    assert sorted(best) == list(range(1, T + 1))
    for k, (full, cost) in best.items():
        every = [[0, *rest] for rest in itertools.combinations(range(1, T), k - 1)]
        assert cost == pytest.approx(min(total(plan_errors(G, U, plan, forecast)) for plan in every), abs=1e-12)
        assert (len(full), full[0]) == (k, 0)
        assert total(plan_errors(G, U, full, forecast)) == pytest.approx(cost, abs=1e-12)


@pytest.mark.parametrize("forecast", [Hold(), Linear(), "fitted"], ids=str)
@pytest.mark.parametrize("full", [17, 10])
def test_on_the_demo_plans_are_better_than_those_by_rule_and_by_chance(full, forecast):
    profile = load_profile(PROFILES / "ddim-50.yaml")
    G, u = profile.grams[0], profile.call.abscissae
    forecast = Fitted(G, 2) if forecast == "fitted" else forecast
    best, error = best_plans(G, u, forecast)[full]
    chance = np.random.default_rng(0)
    others = {
        "uniform": schedule.uniform(50, -(-50 // full)),
        "quad": schedule.quad(50, -(-50 // full), 15, 1.4),
        "growing": schedule.growing(50, 2, 0.75, full - 9)[:full],
        **{i: [0, *sorted(chance.choice(range(1, 50), full - 1, replace=False))] for i in range(100)},
    }
    errors = {name: plan_errors(G, u, plan, forecast).sum() for name, plan in others.items()}
    assert all(len(others[name]) == full == len(best) for name in others)
    assert error < min(errors.values())
    assert error < errors["uniform"] / 2


def test_plans_keep_their_guards():
    G = gram(features(2, 30))
    plans = best_plans(G, [float(i) for i in range(30)], Linear(), warmup=3, tail=2, longest_gap=6)
    for full, _ in plans.values():
        assert {0, 1, 2, 28, 29} <= set(full)
        assert max(np.diff(full)) <= 6
    assert min(plans) == 3 + 5 + 1, "gaps of six leave no way with fewer"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(best_plans, objective="mean"), "objective must be sum or max, got 'mean'"),
        (partial(best_plans, forecast=Newton(2)), "exact for forecasts from two features, and newton reads 3"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(SettingError, match=message):
        call(gram(features()), U, **({} if "forecast" in call.keywords else {"forecast": Linear()}))
