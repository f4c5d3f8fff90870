"""Schedules: golden vectors of the released function, and what every schedule must satisfy."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetaccel import DeepCache, SettingError
from unetaccel.schedule import explicit, flags, pattern, quad, quad_real, uniform, window
from unetaccel.timeline import Timeline

RELEASED = {
    (50, 2, 15, 1.5): [0, 2, 4, 5, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 37, 39, 42, 44, 47],
    (50, 3, 15, 1.3): [0, 3, 6, 8, 11, 13, 15, 17, 20, 23, 26, 29, 32, 35, 39, 42, 46],
    (50, 4, 15, 1.4): [0, 4, 7, 10, 14, 16, 19, 23, 27, 31, 35, 40, 45],
    (50, 5, 10, 1.5): [0, 4, 7, 10, 14, 19, 24, 30, 36, 43],
    (50, 5, 15, 1.4): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 6, 15, 1.3): [0, 6, 10, 15, 19, 24, 30, 36, 43],
    (50, 7, 15, 1.4): [0, 6, 11, 15, 21, 27, 34, 42],
    (50, 8, 10, 1.4): [0, 6, 10, 16, 23, 31, 40],
    (250, 10, 110, 1.2): [0, 11, 22, 32, 43, 53, 62, 72, 81, 91, 99, 108, 116, 125, 134, 144, 153, 163, 173, 184, 194, 205, 216, 227, 238],
    (250, 20, 120, 1.4): [0, 22, 42, 61, 80, 98, 115, 131, 149, 168, 187, 207, 228],
    (20, 2, 6, 1.4): [0, 2, 4, 6, 7, 8, 10, 12, 15, 17],  # power falls to 1.28 before ten points are distinct
}  # fmt: skip


@pytest.mark.parametrize("arguments", RELEASED)
def test_quad_equals_the_released_schedule_without_a_warning(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quad(*arguments) == RELEASED[arguments]


def test_quad_real_is_the_signed_power():
    assert quad_real(50, 5, 15, 1.4) == [0, 6, 11, 14, 15, 19, 24, 29, 35, 42]


def test_quad_that_does_not_fit_says_what_to_do():
    with pytest.raises(SettingError, match="raise the interval"):
        quad(6, 1, 3, 1.4)


@given(T=st.integers(1, 300), N=st.integers(1, 40))
def test_uniform_has_the_count_of_the_paper(T, N):
    full = uniform(T, N)
    assert len(full) == -(-T // N)
    assert full[0] == 0
    assert all(b - a == N for a, b in pairwise(full))


@given(
    T=st.integers(1, 60),
    full=st.lists(st.integers(0, 59)),
    start=st.floats(0, 1) | st.integers(0, 60),
    end=st.floats(0, 1) | st.integers(0, 60),
    warmup=st.integers(0, 5),
    tail=st.integers(0, 5),
)
def test_windows_only_add_full_evaluations(T, full, start, end, warmup, tail):
    found = flags(T, full, start, end, warmup, tail)
    low, high = window(T, start, end)
    assert len(found) == T
    assert found[0]
    for i, is_full in enumerate(found):
        forced = i == 0 or i < warmup or i >= T - tail or not low <= i < high
        assert is_full == (forced or i in full)


def test_a_center_outside_the_call_is_an_error():
    with pytest.raises(SettingError, match=r"center=12 lies outside this call's 11 evaluations \(0\.\.10\)"):
        quad(11, 2, 12, 3.0)


def test_lists_and_arrays_are_the_same_schedule():
    assert DeepCache(schedule=np.array([0, 3])) == DeepCache(schedule=[0, 3]) == DeepCache(schedule=range(0, 6, 3))


def test_explicit_lists_are_checked_against_the_call():
    assert explicit(10, [7, 3]) == [0, 3, 7]
    with pytest.raises(SettingError, match=r"\[12\], but this call has 10 evaluations"):
        explicit(10, [3, 12])


def test_settings_become_plans():
    def plan(T=12, **settings):
        return pattern(DeepCache(**settings).flags(Timeline(T)))

    assert plan(interval=3) == "F..F..F..F.."
    assert plan(interval=1) == "F" * 12
    assert plan(interval=3, warmup=3, tail=2) == "FFFF..F..FFF"
    assert plan(interval=4, start=0.5) == "FFFFFF..F..."
    assert plan(interval=4, end=6) == "F...F.FFFFFF"
    assert plan(schedule=[5, 2]) == "F.F..F......"
    assert plan(T=50, interval=5, schedule="quad", center=15) == pattern(
        i in RELEASED[50, 5, 15, 1.4] for i in range(50)
    )
    assert plan(T=50, interval=5, schedule="quad", center=0.3) == plan(T=50, interval=5, schedule="quad")


def test_a_rule_is_asked_before_the_first_evaluation_with_what_is_known():
    asked = []

    def rule(i, timestep, sigma, T):
        asked.append((i, timestep, sigma, T))
        return i == 2

    assert pattern(DeepCache(schedule=rule).flags(Timeline(5))) == "F.F.."
    assert asked == [(i, None, None, 5) for i in range(1, 5)]
