"""Forecasts of F: golden weights, what they are exact for, their limits, and the tables that streams follow."""

import math
import random

import numpy as np
import pytest

from unetaccel.errors import SettingError
from unetaccel.forecast import (
    FORECASTS,
    MOST_AMPLIFIED,
    Anchored,
    Chebyshev,
    Hold,
    Linear,
    Newton,
    TaylorSeer,
    abscissae,
    forecast_from,
    table,
)
from unetaccel.timeline import Timeline, of_numbers

INDEX = [float(i) for i in range(50)]
S6 = [0, 1, 2, 3, 4, 6]
GOLDEN = {
    "linear": (Linear(), [0, 3, 8], 10, {3: -0.4, 8: 1.4}),
    "newton": (Newton(2), [0, 3, 8], 10, {0: 0.5833333, 3: -1.3333333, 8: 1.75}),
    "newton, even": (Newton(2), [2, 4, 6], 7, {2: 0.375, 4: -1.25, 6: 1.875}),
    "taylorseer": (TaylorSeer(2), [0, 3, 8], 10, {0: 0.1333333, 3: -0.6133333, 8: 1.48}),
    "taylorseer, even": (TaylorSeer(2), [2, 4, 6], 7, {2: 0.125, 4: -0.75, 6: 1.625}),
    "chebyshev": (Chebyshev(), S6, 7, dict(zip(S6, (-0.136600, -0.078862, 0.017984, 0.147365, 0.303053, 0.670164), strict=True))),
    "chebyshev, free": (Chebyshev(free_constant=True), S6, 7, dict(zip(S6, (-0.097387, -0.077035, 0.002061, 0.131228, 0.302224, 0.738909), strict=True))),
    "chebyshev, half": (Chebyshev(blend=0.5), S6, 7, dict(zip(S6, (-0.0683, -0.039431, 0.008992, 0.073683, -0.098473, 1.085082), strict=True))),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_weights(name):
    forecast, full, j, expected = GOLDEN[name]
    found = forecast.weights(INDEX, full, j)
    assert found.keys() == expected.keys()
    assert all(found[i] == pytest.approx(expected[i], abs=1e-6) for i in expected)


def test_chebyshev_over_a_long_history_shrinks():
    found = Chebyshev().weights(INDEX, [0, 1, 2, 3, 4, 6, 8, 11, 15, 20], 23)
    assert [found[i] for i in (11, 15, 20)] == [pytest.approx(w, abs=1e-6) for w in (-0.060953, 0.214309, 0.894341)]
    assert sum(found.values()) == pytest.approx(0.899133, abs=1e-6)


def test_chebyshev_equals_a_fit_of_coefficients_by_brute_force():
    """The published form: coefficients of every basis function from the features, then their value at j."""
    features = np.random.default_rng(0).normal(size=(6, 7))
    tau = lambda i: (i - 25) / 25  # noqa: E731
    basis = np.array([[np.cos(m * np.arccos(tau(i))) for m in range(5)] for i in S6])
    coefficients = np.linalg.solve(basis.T @ basis + 0.1 * np.eye(5), basis.T @ features)
    expected = np.array([np.cos(m * np.arccos(tau(7))) for m in range(5)]) @ coefficients
    found = Chebyshev().weights(INDEX, S6, 7)
    np.testing.assert_allclose(sum(w * features[S6.index(i)] for i, w in found.items()), expected, rtol=1e-10)


def uneven(seed: int, count: int = 12) -> list[float]:
    """Strictly falling numbers at uneven distances, as noise levels are."""
    chance = random.Random(seed)
    return sorted((10 * chance.random() for _ in range(count)), reverse=True)


SUM_IS_ONE = [Hold(), Linear(), Linear(0.6), Newton(1), Newton(2), Newton(3), Anchored(), Anchored(3, 5), TaylorSeer(2),
              Chebyshev(free_constant=True), Chebyshev(free_constant=True, blend=0.5)]  # fmt: skip


@pytest.mark.parametrize("forecast", SUM_IS_ONE, ids=str)
def test_a_constant_is_forecast_exactly(forecast):
    for seed in range(20):
        found = forecast.weights(uneven(seed), [0, 1, 3, 4, 6], 7)
        assert sum(found.values()) == pytest.approx(1)
    assert sum(Chebyshev().weights(INDEX, S6, 7).values()) < 0.95, "the check bites"


@pytest.mark.parametrize("order", [1, 2, 3])
def test_newton_is_exact_for_polynomials_of_its_degree_at_uneven_steps(order):
    for seed in range(20):
        u = uneven(seed)
        found = Newton(order)._weights(u, [0, 1, 3, 4, 6][-order - 1 :], 7)
        value = lambda x: 3 - x + 0.5 * x**order  # noqa: E731
        assert sum(w * value(u[i]) for i, w in found.items()) == pytest.approx(value(u[7]))
    assert sum(w * i**2 for i, w in TaylorSeer(2).weights(INDEX, [0, 3, 8], 10).items()) == pytest.approx(89.2)


def test_anchored_is_between_hold_and_the_polynomial():
    u = uneven(3)
    close = lambda a, b: all(a[i] == pytest.approx(b.get(i, 0.0), abs=1e-6) for i in a)  # noqa: E731
    assert close(Anchored(1, 2, 0.0)._weights(u, [3, 4], 5), Linear()._weights(u, [3, 4], 5))
    assert close(Anchored(2, 3, 0.0)._weights(u, [1, 3, 4], 5), Newton(2)._weights(u, [1, 3, 4], 5))
    assert close(Anchored(2, 3, 1e12)._weights(u, [1, 3, 4], 5), {4: 1.0})
    assert close(
        Anchored(1, 2, 3.0)._weights(u, [3, 4], 5), Linear(0.25)._weights(u, [3, 4], 5)
    )  # gain = 1 / (1 + ridge)
    assert Linear(0.0).weights(u, [3, 4], 5)[4] == 1


@pytest.mark.parametrize("name", FORECASTS)
def test_too_few_points_and_abscissae_that_do_not_run_one_way(name):
    forecast = FORECASTS[name]()
    assert forecast.weights(INDEX, [4], 6) == {4: 1.0}
    second_order = [5.0, 4.0, 4.0, 3.0, 3.0, 2.0]
    assert forecast.weights(second_order, [1, 2], 3) == {2: 1.0}
    assert forecast.weights([math.inf, 3.0, 2.0, 1.0], [0], 2) == {0: 1.0}
    turning = forecast.weights([5.0, 3.0, 4.0, 2.0, 1.0], [0, 1, 2, 3], 4)
    assert set(turning) <= {2, 3}, "only what runs one way up to the target"


@pytest.mark.parametrize("name", FORECASTS)
def test_noise_is_amplified_four_times_at_most(name):
    forecast = FORECASTS[name]()
    for seed in range(20):
        u = uneven(seed)
        for j in range(6, 12):
            assert sum(map(abs, forecast.weights(u, [0, 2, 3, 5], j).values())) <= MOST_AMPLIFIED + 1e-12
    assert len(Newton(2).weights(INDEX, [0, 2, 4], 5)) == 3
    assert Newton(2).weights(INDEX, [0, 2, 4], 20) == {4: 1.0}


def test_a_table_says_which_slots_hold_what():
    flags = [i in (0, 3, 6, 9) for i in range(12)]
    found = table(Linear(), INDEX[:12], flags)
    assert found.slots == 2
    assert [row is None for row in found.rows] == flags
    assert found.rows[1] == ((0, 1.0),)  # one feature so far
    assert dict(found.rows[4]) == {0: pytest.approx(-1 / 3), 1: pytest.approx(4 / 3)}
    assert dict(found.rows[8]) == {1: pytest.approx(-2 / 3), 0: pytest.approx(5 / 3)}  # evaluation 6 took slot 0
    later = table(Linear(), INDEX[:12], flags, first=4)
    assert later.rows[5] == ((0, 1.0),)  # what was before a change may not be used
    assert dict(later.rows[7]) == {0: pytest.approx(-0.5), 1: pytest.approx(1.5)}
    assert table(Linear(), INDEX[:3], [True, False, False]).slots == 1


def test_abscissae_follow_the_call():
    timesteps, sigmas = [900.0, 600.0, 300.0, 0.0], [10.0, 2.0, 0.5, 0.0]
    known = of_numbers(4, timesteps, sigmas)
    assert abscissae(known, "t") == timesteps
    assert abscissae(known, "sigma") == sigmas
    assert abscissae(known, "log1p_sigma") == pytest.approx([math.log1p(s) for s in sigmas])
    assert abscissae(known, "logsnr") == [*(-math.log(s) for s in sigmas[:3]), math.inf]
    assert abscissae(known, "index") == [0, 1, 2, 3]
    assert abscissae(Timeline(3), "log1p_sigma") == [0, 1, 2]
    repeated = of_numbers(4, [900.0, 600.0, 600.0, 300.0], None)
    assert abscissae(repeated, "index") == [900, 600, 600, 300]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("magic", "unknown forecast 'magic'; known: hold, linear, newton"),
        ({"linear": {"gian": 1}}, "forecast linear has no 'gian'; it has gain"),
        ({"linear": {"gain": 2}}, "forecast linear: gain must be a number from 0 .hold. to 1, got 2"),
        ({"newton": {"order": 0}}, "forecast newton: order must be 1, 2 or 3, got 0"),
        ({"chebyshev": {"ridge": 0}}, "forecast chebyshev: ridge must be a number above 0, got 0"),
        ({"hold": {"x": 1}}, "forecast hold has no 'x'; it has no settings"),
        (3, "unknown forecast 3"),
    ],
)
def test_wrong_forecasts_are_told(value, message):
    with pytest.raises(SettingError, match=message):
        forecast_from(value)
