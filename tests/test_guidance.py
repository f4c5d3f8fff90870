"""Guidance reuse: the conditional half alone, with features and streams kept straight."""

import pytest
import torch

import unetaccel
from unetaccel import DeepCache, GuidanceReuse, SettingError
from unetaccel.halves import conditional
from unetaccel.views import Views

STEPS = 8


@pytest.fixture
def batches(monkeypatch):
    """Batch sizes of the evaluations, full ones first to be told."""
    found = []
    for name in ("run_full", "run_cached"):
        original = getattr(Views, name)

        def run(self, inputs, *rest, original=original, name=name):
            if not inputs["sample"].is_meta:
                found.append((name, len(inputs["sample"]), [len(feature) for feature in rest]))
            return original(self, inputs, *rest)

        monkeypatch.setattr(Views, name, run)
    return found


def unguided_from(first: int):
    """A callback that switches guidance off, as diffusers documents it."""

    def switch(pipe, i, t, values):
        if i == first - 1:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    return {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


@pytest.mark.parametrize("cache", [None, DeepCache(interval=3, cut=2), DeepCache(interval=2, forecast="linear")])
def test_dropping_is_switching_guidance_off(tiny, cache):
    pipe, caches = tiny.pipe(), [cache] if cache else []
    with unetaccel.apply(pipe, GuidanceReuse(5, "drop"), *caches) as handle:
        dropped = tiny.call(pipe, steps=STEPS)
        summary = handle.summary()
    if cache is None:
        switched = tiny.call(pipe, steps=STEPS, **unguided_from(5))
        assert torch.allclose(dropped, switched, rtol=1e-5, atol=1e-5)
    assert summary.halved == 3
    assert summary.pattern[5:].strip("f,") == ""
    assert summary.pattern[:5].strip("F.") == ""


@torch.no_grad()
def test_features_are_cut_to_the_conditional_half_and_planned_evaluations_stay_cached(tiny, batches):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, GuidanceReuse(4), DeepCache(interval=3, cut=2)) as handle:
        tiny.call(pipe, steps=STEPS)
        assert handle.summary().pattern == "F..F,,f,"
    both = batches[0][1]
    assert [size for _, size, _ in batches] == [both] * 4 + [both // 2] * 4
    assert [name for name, _, _ in batches] == [f"run_{'full' if i % 3 == 0 else 'cached'}" for i in range(STEPS)]
    assert batches[4][2] == [batches[3][1] // 2]


@torch.no_grad()
def test_the_difference_of_the_last_guided_evaluation_is_held(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, GuidanceReuse(2)) as handle, handle.run(4, guided=True):
        outputs = [handle.unet(**{**inputs, "sample": inputs["sample"] * (1 + i)})[0] for i in range(4)]
    plain = [unet(**{**inputs, "sample": inputs["sample"] * (1 + i)})[0] for i in range(4)]
    assert torch.equal(outputs[1], plain[1])
    unconditional, condition = plain[1].chunk(2)
    for ours, own in zip(outputs[2:], plain[2:], strict=True):
        expected = own.chunk(2)[1]
        torch.testing.assert_close(ours.chunk(2)[1], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.chunk(2)[0], expected - (condition - unconditional), rtol=1e-4, atol=1e-5)
    assert handle.summary().macs_share == pytest.approx(0.75)
    assert "2 of the conditional half alone" in str(handle.summary())


@pytest.mark.parametrize("kind", ["unguided", "two passes"])
def test_where_the_batch_has_no_halves_nothing_is_left_out(tiny, kind):
    if kind == "unguided":
        pipe = tiny.pipe()
        plain = tiny.call(pipe, steps=STEPS, guidance_scale=1.0)
        with unetaccel.apply(pipe, GuidanceReuse(3)) as handle:
            assert torch.equal(tiny.call(pipe, steps=STEPS, guidance_scale=1.0), plain)
            assert handle.summary().halved == 0
        return
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with torch.no_grad(), unetaccel.apply(unet, GuidanceReuse(1)) as handle:
        with pytest.warns(UserWarning, match="GuidanceReuse does nothing in this run"):
            run = handle.run(3, streams=2)
        with run:
            for _ in range(6):
                handle.unet(**inputs)
        assert handle.summary().halved == 0


def test_three_parts_are_left_alone(tiny):
    """Perturbed attention beside guidance: the batch is three times what is stepped."""
    from diffusers import StableDiffusionPAGPipeline

    pipe = StableDiffusionPAGPipeline(**tiny.pipe().components, pag_applied_layers=["mid"])
    pipe.set_progress_bar_config(disable=True)
    options = dict(steps=4, pag_scale=2.0)
    plain = tiny.call(pipe, **options)
    with unetaccel.apply(pipe, GuidanceReuse(1)) as handle:
        assert torch.equal(tiny.call(pipe, **options), plain)
        assert handle.summary().halved == 0


@torch.no_grad()
def test_pictures_of_one_batch_are_each_with_their_own_condition(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet, batch=4)
    with unetaccel.apply(unet, GuidanceReuse(3), DeepCache(interval=2, cut=1, forecast="linear")) as handle:
        outputs = []
        for rows in ([0, 1, 2, 3], [0, 2], [1, 3]):
            part = {k: inputs[k][rows] for k in ("sample", "encoder_hidden_states")}
            with handle.run(6, timesteps=range(900, 300, -100), guided=True):
                for t in range(900, 300, -100):
                    last = handle.unet(**{**inputs, **part, "timestep": t, "sample": part["sample"] * t / 900})[0]
            outputs.append(last)
            assert handle.summary().pattern == "F.F,f,"
    together, first, second = outputs
    torch.testing.assert_close(together[[0, 2]], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[[1, 3]], second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full", [False, True], ids=["as planned", "full where cached was expected"])
def test_controlnets_residuals_are_cut_too(tiny, full):
    pipe = tiny.controlnet_pipe()
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))

    def stop_reusing(pipe, i, t, values):
        if full and i == 4:
            handle.invalidate()
        return values

    with unetaccel.apply(pipe, GuidanceReuse(3), DeepCache(interval=3, cut=1)) as handle:
        tiny.call(pipe, steps=STEPS, image=image, callback_on_step_end=stop_reusing)
        assert handle.summary().pattern == ("F..f,ff," if full else "F..f,,f,")


def test_only_what_is_batched_is_cut():
    inputs = {
        "sample": torch.arange(4), "timestep": torch.tensor(5), "frames": torch.arange(8), "none": None,
        "added": {"ids": torch.arange(8).reshape(4, 2)}, "list": [torch.arange(4), torch.ones(1, 3)],
    }  # fmt: skip
    cut = conditional(inputs, 4)
    assert cut["sample"].tolist() == [2, 3]
    assert cut["timestep"].item() == 5
    assert cut["frames"].tolist() == [4, 5, 6, 7]
    assert cut["added"]["ids"].tolist() == [[4, 5], [6, 7]]
    assert cut["list"][0].tolist() == [2, 3]
    assert cut["list"][1].shape == (1, 3)
    assert cut["none"] is None


def test_wrong_settings_and_pipelines_are_refused(tiny):
    with pytest.raises(SettingError, match="start must be an evaluation index, or a share"):
        GuidanceReuse(1.5)
    with pytest.raises(SettingError, match="mode must be 'hold' or 'drop'"):
        GuidanceReuse(mode="keep")
    with pytest.raises(SettingError, match="at most one guidance method"):
        unetaccel.apply(tiny.unet(), GuidanceReuse(), GuidanceReuse(0.5))
    from diffusers import DDPMPipeline, DDPMScheduler

    pipe = DDPMPipeline(tiny.unet("ddpm"), DDPMScheduler())
    with pytest.raises(SettingError, match="DDPMPipeline does not say whether it guides"):
        unetaccel.apply(pipe, GuidanceReuse())
