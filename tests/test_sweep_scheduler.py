"""Sweeps: what differs from the model's scheduler is said in the sweep, checked, and part of what a folder holds."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from sweep_cases import SMALL, a_store

from unetaccel.demo.pipeline import load_pipeline
from unetaccel.errors import SettingError
from unetaccel.sampling import set_scheduler
from unetaccel.sweep import run as running
from unetaccel.sweep.draw import draw
from unetaccel.sweep.rows import Row
from unetaccel.sweep.run import run_sweep
from unetaccel.sweep.spec import sweep_from
from unetaccel.sweep.timing import Stopwatch

CLIPPED = {"clip_sample": True, "clip_sample_range": 0.5}


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_rows_are_drawn_with_the_overrides(pipe, tmp_path):
    row, own, found = Row("ddim", 6), pipe.scheduler, {}
    for name, overrides in (("own", {}), ("clipped", CLIPPED)):
        sweep, store = a_store(tmp_path / name, scheduler=overrides)
        draw(pipe, [row], sweep, store)
        found[name] = store.read(row).int()
        assert pipe.scheduler is own
    prompt, seed = store.jobs[6]
    try:
        pipe.scheduler = DDIMScheduler.from_config({**own.config, **CLIPPED})
        image = pipe(prompt, num_inference_steps=6, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed),
                     output_type="pt").images[0]  # fmt: skip
    finally:
        pipe.scheduler = own
    assert ((image * 255).round().int() - found["clipped"][6]).abs().max() <= 1
    assert (found["own"][6] - found["clipped"][6]).abs().max() > 10


def test_rows_are_timed_with_the_overrides(pipe, tmp_path, monkeypatch):
    sweep, store = a_store(tmp_path, scheduler=CLIPPED, timing={"batch": 1})
    watch, ranges = Stopwatch(pipe, sweep, store.jobs, Row("ddim", 2)), []
    call = watch._call
    monkeypatch.setattr(watch, "_call", lambda n: ranges.append(pipe.scheduler.config.clip_sample_range) or call(n))
    watch.account(Row("ddim", 2))
    watch.seconds(Row("ddim", 6, {"deepcache": {"interval": 2}}))
    assert ranges == [0.5] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"clip_samples": False}}, "DDIMScheduler has no 'clip_samples' to override; its configuration has num"),
        ({"scheduler": CLIPPED, "solvers": ["ddim", "euler"]}, "EulerDiscreteScheduler has no 'clip_sample' to override"),
        ({"scheduler": {"beta_schedule": "steep"}}, "DDIMScheduler refuses the overrides {'beta_schedule': 'steep'}: steep is"),
        ({"scheduler": {"beta_schedule": "linear", "beta_start": "low"}}, "'beta_start': 'low'}: linspace"),
    ],
)  # fmt: skip
def test_what_no_scheduler_takes_is_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(SettingError) as error:
        run_sweep(sweep_from({**SMALL, **changes}), tmp_path, stages=("draw",), say=str)
    assert message in str(error.value)
    assert not (tmp_path / "sweep.json").exists()


def test_one_setting_is_not_given_twice():
    with pytest.raises(SettingError, match="same setting: give one of them"):
        sweep_from({**SMALL, "spacing": "trailing", "scheduler": {"timestep_spacing": "linspace"}})
    with pytest.raises(SettingError, match="scheduler must be NAME: VALUE pairs, got 'ddim'"):
        sweep_from({**SMALL, "scheduler": "ddim"})


def test_overrides_belong_to_a_folder(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_load", lambda sweep, device: pipe)
    sweep = sweep_from({**SMALL, "prompts": {"count": 1}, "seeds": [0], "ways": [], "steps": [1]})
    run_sweep(sweep, tmp_path, stages=("draw",), say=str)
    with pytest.raises(SettingError, match=r"pictures of a sweep with scheduler=\{\}, not \{'clip_sample': True"):
        run_sweep(replace(sweep, scheduler=CLIPPED), tmp_path, stages=("draw",), say=str)
    held = json.loads((tmp_path / "sweep.json").read_text())
    del held["scheduler"]  # as folders were before there were overrides
    (tmp_path / "sweep.json").write_text(json.dumps(held))
    run_sweep(sweep, tmp_path, stages=("draw",), say=str)


def test_overrides_stand_beside_a_spacing(pipe):
    own = pipe.scheduler
    try:
        set_scheduler(pipe, "euler", "trailing", overrides={"use_karras_sigmas": True})
        assert (pipe.scheduler.config.timestep_spacing, pipe.scheduler.config.use_karras_sigmas) == ("trailing", True)
    finally:
        pipe.scheduler = own
