"""Forecasts at work: cached evaluations get the blend that the table promises, streams apart, and nothing after a change."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from test_run import NoReads

import unetaccel
from unetaccel import DeepCache, SettingError
from unetaccel.demo.pipeline import load_pipeline
from unetaccel.demo.scenes import sample_scenes
from unetaccel.forecast import Linear, Newton, abscissae
from unetaccel.sampling import Settings, sample
from unetaccel.schedule import growing
from unetaccel.timeline import Timeline, of_steps
from unetaccel.views import Views


@pytest.fixture
def watched(monkeypatch):
    """Every F that was made, by evaluation, and every F that a cached evaluation got."""
    made, used, count = {}, {}, iter(range(1000))
    full, cached = Views.run_full, Views.run_cached

    def run_full(self, inputs):
        output, feature = full(self, inputs)
        if not feature.is_meta:  # as when MACs are counted
            made[next(count)] = feature.clone()
        return output, feature

    def run_cached(self, inputs, feature):
        if not feature.is_meta:
            used[next(count)] = feature.clone()
        return cached(self, inputs, feature)

    monkeypatch.setattr(Views, "run_full", run_full)
    monkeypatch.setattr(Views, "run_cached", run_cached)
    return made, used


@torch.no_grad()
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("forecast", [Linear(), Newton(2)], ids=str)
def test_cached_evaluations_get_the_blend(tiny, watched, forecast, scheduler):
    made, used = watched
    pipe = tiny.pipe()
    pipe.scheduler = tiny.scheduler(scheduler)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=2, forecast=forecast)) as handle:
        tiny.call(pipe, steps=12)
        assert handle.summary().pattern == "F..F..F..F.."
        one = next(iter(made.values()))
        assert handle.summary().cached_bytes == forecast.memory * one.nbytes
    u, full = abscissae(of_steps(pipe.scheduler, 12), "log1p_sigma"), sorted(made)
    assert full == [0, 3, 6, 9]
    for j, feature in used.items():
        weights = forecast.weights(u, [i for i in full if i < j], j)
        expected = sum(w * made[i].double() for i, w in weights.items())
        assert torch.allclose(feature.double(), expected, rtol=1e-5, atol=1e-6)
        assert (len(weights) > 1) == (j > 3)
    assert not torch.equal(used[7], made[6])


@torch.no_grad()
def test_a_change_in_the_run_takes_no_slope_across_it(tiny, watched):
    made, used = watched
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1, forecast="linear"))
    with handle.run(12, timesteps=range(900, 300, -50)):
        for i in range(12):
            if i == 7:
                handle.invalidate()
            handle.unet(**{**inputs, "timestep": 900 - 50 * i})
    assert handle.summary().pattern == "F..F..FF.F.."
    assert torch.equal(used[8], made[7]), "one feature since the change: held"
    slope = (made[9] - made[7]) / 2
    torch.testing.assert_close(used[10], made[9] + slope, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_two_streams_have_rings_of_their_own(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=2, cut=1, forecast="linear"))
    halves = [{**inputs, **{k: inputs[k][i : i + 1] for k in ("sample", "encoder_hidden_states")}} for i in (0, 1)]
    steps = range(900, 0, -100)
    with handle.run(9, timesteps=steps):
        batched = [handle.unet(**{**inputs, "timestep": t})[0] for t in steps]
    with handle.run(9, streams=2, timesteps=steps):
        apart = [torch.cat([handle.unet(**{**half, "timestep": t})[0] for half in halves]) for t in steps]
    for one, two in zip(batched, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scheduler", "blends"), [("EulerAncestralDiscreteScheduler", False), ("EulerDiscreteScheduler", True)]
)
def test_auto_holds_where_each_step_adds_noise(tiny, watched, scheduler, blends):
    made, used = watched
    pipe = tiny.pipe()
    pipe.scheduler = tiny.scheduler(scheduler)
    with unetaccel.apply(pipe, DeepCache(interval=3, forecast="auto")):
        tiny.call(pipe, steps=9)
    assert torch.equal(used[7], made[6]) != blends


@torch.no_grad()
def test_second_order_solvers_hold_where_levels_repeat(tiny, watched):
    made, used = watched
    pipe = tiny.pipe()
    pipe.scheduler = tiny.scheduler("HeunDiscreteScheduler")
    with unetaccel.apply(pipe, DeepCache(interval=3, forecast="linear")) as handle:
        tiny.call(pipe, steps=6)
        assert handle.summary().pattern == "F..F..F..F."
    assert torch.equal(used[4], made[3]), "evaluations 3 and 4 see one level of noise"
    assert not torch.equal(used[7], made[6]), "and 6 and 7 do not"


@torch.no_grad()
def test_nothing_is_read_from_the_device_in_a_run(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=4, forecast={"newton": {"order": 2}}))
    with handle.run(12, timesteps=range(900, 300, -50)), NoReads():
        for i in range(12):
            if i == 7:
                handle.invalidate()  # tables are made anew on the host
            handle.unet(**inputs)


@torch.no_grad()
def test_a_failed_full_evaluation_leaves_no_hole(tiny, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=2, forecast="linear"))
    with handle.run(8):
        for _ in range(4):
            handle.unet(**inputs)
        monkeypatch.setattr(Views, "run_full", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            handle.unet(**inputs)
        monkeypatch.undo()
        handle.unet(**inputs)  # the same evaluation, tried again
        handle.unet(**inputs)
    assert handle.summary().pattern == "F.F.F."


def test_on_the_demo_a_forecast_is_closer_to_the_plain_run_than_holding():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    captions, how = sample_scenes(4, seed=3, held_out=True).captions(), Settings(20, 3.0)
    plain = sample(pipe, captions, range(4), how)
    errors = {}
    for forecast in ("hold", "linear"):
        with unetaccel.apply(pipe, DeepCache(interval=2, warmup=4, forecast=forecast)):
            errors[forecast] = np.square(sample(pipe, captions, range(4), how) - plain).mean()
    assert errors["linear"] < 0.5 * errors["hold"]


def test_inference_mode(tiny):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=2, forecast="linear", observe=True)) as handle:
        expected = tiny.call(pipe)
        with torch.inference_mode():
            assert torch.equal(tiny.call(pipe), expected)
        assert handle.summary().observed_error > 0


@torch.no_grad()
def test_image_to_image_forecasts_over_the_levels_that_it_visits(tiny, watched):
    made, used = watched
    pipe = StableDiffusionImg2ImgPipeline(**tiny.pipe().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=2, forecast="linear")) as handle:
        tiny.call(pipe, steps=16, image=image, strength=0.5, height=None, width=None)
        assert handle.summary().pattern == "F..F..F."
    u = abscissae(of_steps(pipe.scheduler, 16), "log1p_sigma")[-8:]
    weights = Linear().weights(u, [0, 3], 5)
    torch.testing.assert_close(used[5], weights[0] * made[0] + weights[3] * made[3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_compiled_views_make_one_graph_each_whatever_the_weights(tiny):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    unet, counter = tiny.unet("one-layer"), CompileCounter()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(
        unet, DeepCache(interval=3, forecast="linear"), compile={"backend": counter, "fullgraph": True}
    )
    with handle.run(9, timesteps=range(900, 0, -100)):
        for t in range(900, 0, -100):
            handle.unet(**{**inputs, "timestep": torch.tensor(t)})
    assert counter.frame_count == 2


def test_growing_is_spectrum_s_schedule():
    grow = partial(growing, interval=2, warmup=5)
    assert grow(50, growth=0.75) == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    assert grow(50, growth=3) == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    settings = DeepCache(interval=2, schedule="growing", warmup=5, tail=3)
    full = [i for i, flag in enumerate(settings.flags(Timeline(24))) if flag]
    assert full == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 21, 22, 23]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forecast": "magic"}, "unknown forecast 'magic'; known: hold, linear"),
        ({"abscissa": "time"}, "abscissa must be 'log1p_sigma', 'logsnr'"),
        ({"growth": -1}, "growth must be a number of at least 0"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(SettingError, match=message):
        DeepCache(**settings)
