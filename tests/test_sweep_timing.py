"""Sweeps: what rows cost, how they are timed, and the plain runs of equal cost."""

from dataclasses import replace

import pytest
import torch
from sweep_cases import SMALL, a_store

from unetaccel.demo.pipeline import load_pipeline
from unetaccel.errors import SettingError
from unetaccel.sweep import run as running
from unetaccel.sweep.rivals import rivals
from unetaccel.sweep.rows import Row, expand
from unetaccel.sweep.run import run_sweep
from unetaccel.sweep.spec import sweep_from
from unetaccel.sweep.timing import Account, Stopwatch, peak_memory


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def an_account(ratio, macs):
    return Account("", 1, 0, macs, 0, None, [ratio])


def test_rivals_have_equal_macs_and_equal_time():
    row, plain = Row("ddim", 50, {"deepcache": {"interval": 3}}), Row("ddim", 50)
    accounts = {
        plain.id: an_account(1.0, 100.0),
        "ddim-10-plain": an_account(0.28, 20.0),  # an offset of 0.1, and 0.018 a step
        row.id: an_account(0.55, 44.0),
    }
    both = ("equal_macs", "equal_time")
    assert rivals([plain, row], accounts, both) == {
        row.id: {"equal_macs": Row("ddim", 22), "equal_time": Row("ddim", 25)}
    }
    accounts[row.id] = an_account(0.51, 44.0)  # 22.8 steps: the run of 22 will do
    assert rivals([plain, row], accounts, both)[row.id]["equal_time"] == Row("ddim", 22)
    accounts[row.id] = an_account(1.2, 100.0)  # slower than plain: no more steps than the row itself has
    assert rivals([plain, row], accounts, ("equal_time",)) == {row.id: {"equal_time": Row("ddim", 50)}}
    assert rivals([plain, row], {}, both) == {}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"images": 3}, "measured with timing.batch 3, not 2: delete the file"),
        ({"environment": {"cpu": "another"}}, "measured on cpu 'another'"),
    ],
)
def test_times_of_other_conditions_are_not_mixed(pipe, tmp_path, there, message):
    sweep, store = a_store(tmp_path)
    times = running.Times(tmp_path / "times.json")
    vars(times).update({"images": 2, "accounts": {"ddim-6-plain": an_account(1.0, 1.0)}} | there)
    with pytest.raises(SettingError, match=message):
        running.measure(pipe, sweep, store.jobs, expand(sweep), times)


def test_runs_too_short_to_cache_are_told_and_marked_and_repeats_are_those_measured(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_load", lambda sweep, device: pipe)
    sweep = sweep_from({**SMALL, "steps": [3, 6], "prompts": {"count": 2}, "seeds": [0], "rivals": []})
    said = []
    run_sweep(sweep, tmp_path, say=said.append)
    again = run_sweep(replace(sweep, timing=replace(sweep.timing, repeats=1)), tmp_path, say=str)
    assert again["timing"]["repeats"] == SMALL["timing"]["repeats"]
    rows = {row["id"]: row for row in again["rows"]}
    assert [name for name, row in rows.items() if row.get("ran_plain")] == [
        "ddim-3-deepcache-interval2-cut0",
        "ddim-3-deepcache-interval3-cut0",
    ]
    warnings = [line for line in said if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in warnings] == [name for name, row in rows.items() if row.get("ran_plain")]
    assert said[0].startswith("small: 6 rows of 2 pictures in ")
    assert f"drawing {next(iter(rows))} (1 of 6)" in said


def test_rounds_warm_up_once_and_begin_with_another_row_each(pipe, tmp_path, monkeypatch):
    sweep, store = a_store(tmp_path)
    rows, timed = [Row("ddim", steps) for steps in (1, 2, 3, 4, 5)], []
    watch = Stopwatch(pipe, sweep, store.jobs, Row("ddim", 9))
    monkeypatch.setattr(watch, "seconds", lambda row: timed.append(row.steps) or float(row.steps))
    assert watch.round(rows) == (9.0, {row.id: row.steps / 9 for row in rows})
    watch.round(rows, turn=7)
    assert timed == [9, 9, 1, 2, 3, 4, 9, 5, 9, 3, 4, 5, 1, 9, 2]


@pytest.mark.parametrize("settings", [{"schedule": [0, 13]}, {"interval": 7, "schedule": "quad", "center": 13}])
def test_schedules_of_long_runs_are_accounted_for(pipe, tmp_path, settings):
    """They do not fit the short run that memory is otherwise measured in."""
    sweep, store = a_store(tmp_path, timing={"batch": 1})
    row = Row("ddim", 14, {"deepcache": settings})
    account = Stopwatch(pipe, sweep, store.jobs, row.plain()).account(row)
    assert (account.full, account.cached) == (2, 12)
    assert account.peak_memory_bytes > 0


def test_peak_memory_counts_what_lives_at_once():
    model = torch.nn.Linear(4, 4, bias=False)

    def work():
        for _ in range(3):
            x = torch.zeros(1000)
            y = x + 1
            del x, y

    assert 8000 <= peak_memory(work, model) - 64 < 8100  # not 24000; the scalar 1 lives for a moment too
