"""Watching: errors of forecasts as full evaluations see them, and plans that are mended for them."""

import itertools

import numpy as np
import pytest
import torch
from profile_cases import a_profile
from test_run import NoReads

import unetaccel
from unetaccel import Calibrated, DeepCache, SettingError
from unetaccel.timeline import of_steps
from unetaccel.views import Views
from unetaccel.watching import Watch, squared_error

STEPS = range(950, 350, -50)


@pytest.fixture
def made(monkeypatch):
    """Every F that a full evaluation made, in turn."""
    found, full = [], Views.run_full

    def run_full(self, inputs):
        output, feature = full(self, inputs)
        if not feature.is_meta:  # as when MACs are counted
            found.append(feature.clone())
        return output, feature

    monkeypatch.setattr(Views, "run_full", run_full)
    return found


def evaluate(handle, inputs, streams: int = 1) -> list[torch.Tensor]:
    """A loop of one's own on inputs that drift."""
    outputs = []
    with torch.no_grad(), handle.run(len(STEPS), streams=streams, timesteps=STEPS):
        for i, t in enumerate(STEPS):
            sample = inputs["sample"] * (1 - 0.05 * i)
            halves = [sample] if streams == 1 else sample.split(1)
            conditions = [inputs["encoder_hidden_states"]] if streams == 1 else inputs["encoder_hidden_states"].split(1)
            both = zip(halves, conditions, strict=True)
            outputs += [handle.unet(x, t, encoder_hidden_states=c)[0] for x, c in both]
    return outputs


def rms(values) -> float:
    return float(np.sqrt(np.mean(values)))


def between(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (x.double().flatten(1) for x in (a, b))
    return ((a - b).square().sum(1) / a.square().sum(1)).mean().item()


def test_the_observed_error_is_that_of_the_forecasts_of_full_evaluations(tiny, made):
    unet = tiny.unet()
    with unetaccel.apply(unet, DeepCache(interval=3, cut=2, observe=True)) as handle:
        evaluate(handle, tiny.inputs(unet))
        summary = handle.summary()
    expected = rms([between(here, before) for before, here in itertools.pairwise(made)])
    assert summary.observed_error == pytest.approx(expected, rel=1e-4)
    assert summary.predicted_error is None
    assert summary.expected_error is None
    assert f"to {expected:.2%} as far as full evaluations saw" in str(summary)
    assert summary.cached_bytes == made[0].nbytes


def test_streams_are_compared_each_with_its_own(tiny):
    unet = tiny.unet()
    with unetaccel.apply(unet, DeepCache(interval=3, cut=2, forecast="linear", observe=True)) as handle:
        together = evaluate(handle, tiny.inputs(unet)), handle.summary().observed_error
        apart = evaluate(handle, tiny.inputs(unet), streams=2), handle.summary().observed_error
    assert apart[1] == pytest.approx(together[1], rel=1e-3)


def test_watching_changes_no_bit_and_is_off_by_default_for_deepcache(tiny):
    unet = tiny.unet()
    outputs, errors = [], []
    for observe in (False, True):
        with unetaccel.apply(unet, DeepCache(interval=3, forecast="linear", observe=observe)) as handle:
            outputs.append(evaluate(handle, tiny.inputs(unet)))
            errors.append(handle.summary().observed_error)
    assert all(map(torch.equal, *outputs))
    assert errors[0] is None
    assert errors[1] > 0


def test_a_profile_predicts_what_is_observed(tiny, made):
    pipe = tiny.pipe()
    profile = a_profile(pipe, 12, full=5)
    with unetaccel.apply(pipe, profile) as handle:
        tiny.call(pipe, steps=12)
        summary = handle.summary()
        flags = list(handle.plan(12))
    gram = profile.grams[0]
    full = [i for i, flag in enumerate(flags) if flag]
    from unetaccel.plans import Fitted, plan_errors, squared_error

    forecast, u = Fitted(gram, 3), profile.call.abscissae
    assert summary.predicted_error == pytest.approx(rms(plan_errors(gram, u, full, forecast)[~np.array(flags)]))
    there = [squared_error(gram, forecast.weights(u, full[:n], full[n]), full[n]) for n in range(1, len(full))]
    assert summary.expected_error == pytest.approx(rms(there))
    assert summary.observed_error is not None


def test_profiles_of_one_plan_have_each_their_own_weights(tiny):
    """Tables are kept from call to call: by profile, cut and points, and not by the plan alone."""
    pipe = tiny.pipe()
    one = a_profile(pipe, 12, full=5)
    timeline, flags = of_steps(pipe.scheduler, 12), [i in (0, 1, 3, 6, 9) for i in range(12)]
    ways = [
        Calibrated(one),
        Calibrated(one, cut=2),
        Calibrated(one, points=2),
        Calibrated(a_profile(pipe, 12, 5, seed=1)),
    ]
    tables = [way.tables(timeline, flags)(0).rows for way in ways]
    assert len(set(tables)) == 4
    assert ways[0].tables(timeline, flags)(0) is ways[0].tables(timeline, flags)(0)
    assert len({tuple(way.predicted(timeline, flags)) for way in ways}) == 4


def test_nothing_is_read_in_the_loop(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, DeepCache(interval=3, forecast="linear", observe=True)) as handle:
        with NoReads():
            evaluate(handle, inputs)
        with pytest.raises(AssertionError), NoReads():
            handle.summary()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_mended_plan_gives_what_the_same_plan_gives_when_asked_for(tiny, streams):
    """So features were kept, and the weights are those of the new plan."""
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, DeepCache(interval=4, cut=2, forecast="linear", refresh=1e-6)) as handle:
        mended = evaluate(handle, inputs, streams)
        summary = handle.summary()
    assert summary.pattern == "F...F.F.F.F."
    assert summary.refreshed == 2
    assert "2 more full than planned" in str(summary)
    full = [i for i, kind in enumerate(summary.pattern) if kind == "F"]
    with unetaccel.apply(unet, DeepCache(schedule=full, cut=2, forecast="linear")) as handle:
        asked = evaluate(handle, inputs, streams)
    assert all(map(torch.equal, mended, asked))


def test_a_plan_that_holds_is_left_alone(tiny):
    unet = tiny.unet()
    with unetaccel.apply(unet, DeepCache(interval=4, refresh=1e6)) as handle:
        evaluate(handle, tiny.inputs(unet))
        assert handle.summary().pattern == "F...F...F..."
        assert handle.summary().refreshed == 0


def test_a_profile_is_mended_by_its_own_predictions(tiny):
    pipe = tiny.pipe()
    profile = a_profile(pipe, 12, full=4)
    patterns = {}
    for refresh in (None, 1e-6, 1e6):
        with unetaccel.apply(pipe, Calibrated(profile, refresh=refresh)) as handle:
            tiny.call(pipe, steps=12)
            patterns[refresh] = handle.summary().pattern
    assert patterns[None] == patterns[1e6]
    assert patterns[1e-6].count("F") > 4


def test_errors_are_of_each_picture_and_come_late():
    feature, expected = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 3.0], [1.0, 2.0]])
    assert squared_error(feature, expected).item() == pytest.approx((1 / 25 + 4) / 2)
    watch = Watch(limits=[0.0] * 4)
    assert not watch.exceeds(1)
    watch.note(1, feature, expected)
    assert watch.exceeds(1)
    assert not watch.exceeds(2)
    assert watch.errors() == {1: pytest.approx(np.sqrt((1 / 25 + 4) / 2))}


@pytest.mark.parametrize("wrong", [0, -1.0, True, "high", float("nan")])
def test_wrong_limits_are_refused(tiny, wrong):
    with pytest.raises(SettingError, match="refresh must be a relative error above 0"):
        DeepCache(refresh=wrong)
    with pytest.raises(SettingError, match="refresh must be a number above 0, such as 2, or None"):
        Calibrated(a_profile(tiny.pipe(), 8, full=3), refresh=wrong)
