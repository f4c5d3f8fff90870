"""Budgets and how they are searched for: pure numbers, no model."""

import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

from unetaccel import SettingError
from unetaccel.demo.captions import read_captions
from unetaccel.demo.scenes import sample_scenes
from unetaccel.tune import split
from unetaccel.tuning.budgets import Budget, budget_from
from unetaccel.tuning.candidates import Candidate
from unetaccel.tuning.search import dearest_in_time, first_passing, meet_floor


def test_budgets_are_read_from_texts_and_mappings():
    assert budget_from(" psnr = 45") == budget_from({"psnr": 45}) == Budget("psnr", 45.0)
    assert str(budget_from("macs=0.40")) == "macs=0.4"
    assert budget_from("metric=-0.5").is_floor
    assert not budget_from("time=0.5").is_floor


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("fid=3", "unknown budget 'fid'; allowed are"),
        ("psnr", "must be one NAME=NUMBER, got 'psnr'; allowed are"),
        ({"psnr": 45, "macs": 0.5}, "must be one NAME=NUMBER"),
        (45, "must be one NAME=NUMBER, got 45"),
        ("psnr=high", "'high' is not a number"),
        ("psnr=nan", "psnr must be a number, as in psnr=45"),
        ("psnr=-1", "psnr must be above 0"),
        ("macs=40", "macs must be below 1, the plain run's cost, as in macs=0.4"),
        ("ssim=1.5", "ssim must be at most 1"),
        ({"time": True}, "time must be a number"),
    ],
)
def test_wrong_budgets_are_told_what_is_allowed(wrong, message):
    with pytest.raises(SettingError, match=re.escape(message)) as raised:
        budget_from(wrong)
    if "allowed" in message:
        assert all(f"{kind}=" in str(raised.value) for kind in ("psnr", "ssim", "labels", "metric", "macs", "time"))


def test_bisection_ends_with_a_neighbour_that_fails_whatever_passes():
    drawn = random.Random(0)
    for count in range(40):
        for share in (0.0, 0.3, 0.7, 1.0):
            passing, asked = [drawn.random() < share for _ in range(count)], []
            found = first_passing(count, lambda i: asked.append(i) or passing[i])  # noqa: B023 - called at once
            assert found == count or passing[found]
            assert found == 0 or not passing[found - 1]
            assert len(asked) <= math.log2(count + 1) + 1
    assert all(first_passing(9, lambda i: i >= first) == first for first in range(10))  # noqa: B023


def candidate(cut: int, full: int, share: float, evaluations: int = 50) -> Candidate:
    macs = (full + (evaluations - full) * share) / evaluations
    return Candidate(cut, full, 3, evaluations, 0.1, macs, (), None)


FRONTS = [tuple(candidate(b, k, 0.1 + 0.3 * b) for k in range(5, 50)) for b in (0, 1, 2)]


@pytest.mark.parametrize(
    ("needed", "expected", "untried"),
    [
        ((30, 8, 49), (1, 8), 2),  # the second cut needs so few that it is cheaper all the same
        ((10, 5, 5), (0, 10), None),
        ((99, 99, 20), (2, 20), None),
        ((99, 99, 99), None, None),
    ],
)
def test_the_cheapest_that_meets_a_floor_is_found_over_cuts(needed, expected, untried):
    tried = []

    def cached(c):
        tried.append((c.cut, c.full))
        return SimpleNamespace(macs=c.macs, meets=c.full >= needed[c.cut], candidate=c)

    found = meet_floor(FRONTS, SimpleNamespace(cached=cached))
    assert (found and (found.candidate.cut, found.candidate.full)) == expected
    assert len(set(tried)) <= 20
    if untried is not None:
        assert sum(cut == untried for cut, _ in tried) <= 1, "what could not win was searched"


def test_the_time_budget_is_spent_with_few_timings():
    asked = []

    def seconds(c):
        asked.append(c.full)
        return (5 + c.full + 0.3 * (50 - c.full)) / 55  # dearer than the MACs say

    found = dearest_in_time(FRONTS[0], 0.5, seconds)
    assert found.full == 10  # (5 + 10 + 12) / 55 is 0.491, and 11 take 0.504
    assert len(asked) <= 4
    assert dearest_in_time(FRONTS[0], 0.2, seconds) is None
    assert dearest_in_time(FRONTS[0], 0.5, lambda c: 1.3) is None, "caching that costs time was taken"


def test_captions_of_the_demo_are_read_back():
    for held_out in (False, True):
        scenes = sample_scenes(400, seed=3, held_out=held_out)
        read = read_captions(scenes.captions())
        assert all(torch.equal(value, scenes.labels()[name]) for name, value in read.labels().items())
        assert read.captions() == scenes.captions()
    for caption in (
        "an astronaut",
        "a large red ring on a black background, oil painting",
        "a red ring on a black background",
    ):
        with pytest.raises(SettingError, match=f"labels are read against the demo's own captions.*{caption!r} is none"):
            read_captions([caption])


def test_prompts_are_split_and_too_few_are_refused():
    assert split(list("abcdef"), None, None) == ((["a", "b", "c"], [0, 1, 2]), (["d", "e", "f"], [3, 4, 5]))
    assert len(split(["a"] * 40, None, None)[0][0]) == 8
    assert split(["a"] * 9, ["b", "c"], None)[1] == (["b", "c"], [9, 10])
    for wrong in ((["a", "b"], None), (["a"] * 9, ["b"]), ([], ["b", "c"])):
        with pytest.raises(SettingError, match="at least 3 prompts, better 16"):
            split(*wrong, None)
    with pytest.raises(SettingError, match="a seed for each of 2 prompts and 2 held-out ones, got 3"):
        split(["a", "b"], ["c", "d"], [0, 1, 2])
    with pytest.raises(SettingError, match=r"\('a', 0\) is to calibrate and to be held out"):
        split(["a", "b"], ["a", "d"], [0, 1, 0, 2])
    with pytest.raises(SettingError, match="lists of prompts, got a single text"):
        split("abcdef", None, None)
