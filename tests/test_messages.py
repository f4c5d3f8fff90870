"""What users read: errors, reprs, summaries."""

import json
import warnings

import pytest
from torch import nn

import unetaccel
from unetaccel import DeepCache, SettingError, UnsupportedModelError

WRONG = {
    "interval": [0, -1, 2.5, "3", True],
    "cut": [-1, 1.0, None],
    "schedule": ["cosine", [1, -2], 5],
    "center": [-3, "middle", 1.5],
    "power": [1, 0.5, float("inf"), "big"],
    "start": [-1, 1.5, "early"],
    "end": [-1, 2.0],
    "warmup": [-1, 0.5],
    "tail": [-1, "two"],
    "force": ["no", 1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_settings_say_what_came_and_what_is_allowed(name, value):
    with pytest.raises(SettingError) as caught:
        DeepCache(**{name: value})
    message = str(caught.value)
    shown = tuple(value) if isinstance(value, list) else value
    assert message.startswith(f"DeepCache({name}={shown!r}): {name} must be ")
    assert len(message) > len(f"DeepCache({name}={shown!r}): {name} must be ") + 10


def test_the_interval_message_in_full():
    with pytest.raises(SettingError) as caught:
        DeepCache(interval=0)
    assert str(caught.value) == (
        "DeepCache(interval=0): interval must be an int of at least 1 (1 is plain sampling, 3 a usual choice)"
    )


def test_a_window_that_ends_before_it_starts():
    with pytest.raises(SettingError, match="start must not lie after end"):
        DeepCache(start=0.8, end=0.2)


def test_pipelines_without_a_unet():
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    class Transformer(nn.Module):
        pass

    pipe = StableDiffusion3Pipeline.__new__(StableDiffusion3Pipeline)
    object.__setattr__(pipe, "transformer", Transformer())
    object.__setattr__(pipe, "scheduler", FlowMatchEulerDiscreteScheduler())
    with pytest.raises(
        UnsupportedModelError, match=r"StableDiffusion3Pipeline runs on a transformer \(Transformer\), not on a U-Net"
    ):
        unetaccel.apply(pipe, DeepCache())
    with pytest.raises(
        UnsupportedModelError, match="expected a diffusers pipeline with a `unet`, or a U-Net module, got str"
    ):
        unetaccel.apply("runwayml/stable-diffusion", DeepCache())


def test_reprs(tiny):
    assert repr(DeepCache()) == "DeepCache(interval=3, cut=0)"
    assert repr(DeepCache(5, "auto", tail=1)) == "DeepCache(interval=5, cut='auto', tail=1)"
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut="paper:2"))
    assert repr(handle) == "<unetaccel DeepCache(interval=3, cut='paper:2') applied to StableDiffusionPipeline, cut 1>"
    plan = handle.plan(6)
    assert (str(plan), repr(plan), list(plan)) == ("F..F..", "Plan(F..F.., 2 full of 6)", [True, False, False] * 2)
    assert "no sampling call yet" in repr(handle.summary())
    assert handle.summary().as_dict()["pattern"] is None
    tiny.call(pipe, steps=6)
    text = repr(handle.summary())
    for part in (
        "F..F..",
        "2 full + 4 cached",
        "32,768 bytes",
        "% of plain",
        "ms full",
        "ms cached",
        "up_blocks.2.resnets.1",
    ):
        assert part in text
    data = json.loads(json.dumps(handle.summary().as_dict()))
    assert data["pattern"] == "F..F.."
    assert (data["full"], data["cached"], data["cached_bytes"], data["cut"]) == (2, 4, 32768, 1)
    assert 0 < data["cached_macs_share"] < data["macs_share"] < 1
    assert data["seconds_cached"] > 0
    assert data["seconds_full"] > 0
    handle.remove()
    assert "removed from StableDiffusionPipeline" in repr(handle)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "ten"])
def test_plans_and_runs_want_counts(tiny, steps):
    handle = unetaccel.apply(tiny.unet(), DeepCache())
    with pytest.raises(SettingError, match="must be an int of at least 1"):
        handle.plan(steps)
    with pytest.raises(SettingError, match="must be an int of at least 1"):
        handle.run(steps)
    with pytest.raises(SettingError, match=r"run\(streams\) must be"):
        handle.run(5, streams=steps)


def test_a_run_of_a_handle_that_was_removed(tiny):
    handle = unetaccel.apply(tiny.unet(), DeepCache())
    handle.remove()
    with pytest.raises(SettingError, match="this handle was removed, and its U-Net runs plain: apply the methods anew"):
        handle.run(4)


def test_guidance_reuse_in_a_loop_that_does_not_say_it_guides(tiny):
    with unetaccel.apply(tiny.unet(), unetaccel.GuidanceReuse(2), DeepCache()) as handle:
        with pytest.warns(UserWarning, match=r"GuidanceReuse does nothing in this run.*guided=True"), handle.run(4):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with handle.run(4, guided=True):
                pass


def test_a_schedule_that_does_not_fit_fails_in_the_call_and_frees_it(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(schedule=[0, 30]))
    with pytest.raises(SettingError, match="this call has 10 evaluations"):
        tiny.call(pipe)
    assert str(handle.plan(40)).count("F") == 2
    tiny.call(pipe, steps=31)
    assert handle.summary().full == 2


def test_the_plan_of_a_second_order_scheduler_counts_evaluations(tiny):
    pipe = tiny.pipe(scheduler=tiny.scheduler("HeunDiscreteScheduler"))
    handle = unetaccel.apply(pipe, DeepCache(interval=3))
    timesteps = pipe.scheduler.timesteps.clone()
    assert len(handle.plan(20)) == 39
    assert pipe.scheduler.timesteps.equal(timesteps), "planning leaves the scheduler alone"
