"""DeepCache in real pipelines: equal to the official helper where that is right, and right where it is not."""

import warnings

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMPipeline, DDPMPipeline, StableDiffusionImg2ImgPipeline

import unetaccel
from unetaccel import DeepCache
from unetaccel.costs import AUTO_SHARE, cut_costs, deepest_cheap, example_inputs
from unetaccel.methods import RECOMMENDED
from unetaccel.shapes import build_shape


def accelerated(pipe, call, **settings):
    with unetaccel.apply(pipe, DeepCache(**settings)) as handle:
        return call(pipe), handle.summary()


@pytest.mark.parametrize("cut", range(12))
def test_equal_to_the_official_helper_bit_for_bit(tiny, cut):
    pipe = tiny.pipe("sd-4-levels")
    ours, summary = accelerated(pipe, tiny.call, interval=3, cut=cut)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=cut)
    helper.enable()
    theirs = tiny.call(pipe)
    helper.disable()
    assert torch.equal(ours, theirs)
    assert summary.pattern == "F..F..F..F"
    assert not torch.equal(ours, tiny.call(pipe)), "caching changed nothing, so the comparison above shows nothing"


@pytest.mark.parametrize("interval", [2, 5])
def test_equal_to_the_official_helper_at_other_intervals(tiny, interval):
    pipe = tiny.pipe("sd-4-levels")
    ours, _ = accelerated(pipe, tiny.call, interval=interval, cut="helper:4")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=4)
    helper.enable()
    assert torch.equal(ours, tiny.call(pipe))


def test_interval_one_is_the_plain_run_bit_for_bit(tiny):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    for cut in range(9):
        ours, summary = accelerated(pipe, tiny.call, interval=1, cut=cut)
        assert torch.equal(ours, plain)
        assert summary.cached_bytes == 0


PATTERNS = {  # scheduler: (options, steps) -> evaluations counted by hooks on the model
    "DDIMScheduler": ({}, "F..F..F."),
    "EulerDiscreteScheduler": ({}, "F..F..F."),
    "DPMSolverMultistepScheduler": ({}, "F..F..F."),
    "DPMSolverSinglestepScheduler": ({}, "F..F..F."),
    "UniPCMultistepScheduler": ({}, "F..F..F."),
    "EulerAncestralDiscreteScheduler": ({}, "F..F..F."),
    "DEISMultistepScheduler": ({}, "F..F..F."),
    "DDPMScheduler": ({}, "F..F..F."),
    "HeunDiscreteScheduler": ({}, "F..F..F..F..F.."),  # 15 evaluations; the helper makes pairs of them
    "KDPM2DiscreteScheduler": ({}, "F..F..F..F..F.."),
    "KDPM2AncestralDiscreteScheduler": ({}, "F..F..F..F..F.."),
    "PNDMScheduler": ({"skip_prk_steps": True}, "F..F..F.."),  # its second timestep comes twice
    "LMSDiscreteScheduler": ({}, "F..F..F."),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_count_evaluations(tiny, name):
    options, expected = PATTERNS[name]
    pipe = tiny.pipe(scheduler=tiny.scheduler(name, **options))
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=1))
    for _ in range(2):  # the second call starts afresh
        spy = tiny.Spy(handle.unet)
        tiny.call(pipe, steps=8)
        assert spy.stop() == expected
    assert handle.summary().pattern == expected
    assert str(handle.plan(8)) == expected


def test_calls_of_other_sizes_batches_and_steps_do_not_see_each_other(tiny):
    pipe = tiny.pipe()
    calls = [dict(), dict(batch=3), dict(size=64), dict(steps=7), dict(guidance_scale=1.0), dict()]
    alone = []
    for options in calls:
        with unetaccel.apply(tiny.pipe(), DeepCache(cut=1)) as handle:
            alone.append(tiny.call(handle.pipe, **options))
    with unetaccel.apply(pipe, DeepCache(cut=1)):
        for options, expected in zip(calls, alone, strict=True):
            assert torch.equal(tiny.call(pipe, **options), expected)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_img2img_starts_with_a_full_evaluation_whatever_the_strength(tiny, scheduler):
    base = tiny.pipe(scheduler=tiny.scheduler(scheduler))
    pipe = StableDiffusionImg2ImgPipeline(**{**base.components, "image_encoder": None}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    handle = unetaccel.apply(pipe, DeepCache(interval=3))
    for strength in (1.0, 0.6, 0.8):
        spy = tiny.Spy(handle.unet)
        tiny.call(pipe, steps=10, image=image, strength=strength, height=None, width=None)
        pattern = spy.stop()
        evaluations = {1.0: 10, 0.6: 6, 0.8: 8}[strength] * (2 if scheduler.startswith("Heun") else 1)
        assert abs(len(pattern) - evaluations) <= 1
        assert pattern == ("F.." * 10)[: len(pattern)]


def test_keyword_and_number_timesteps(tiny):
    unet = tiny.unet("sd")
    handle = unetaccel.apply(unet, DeepCache(interval=2))
    inputs = tiny.inputs(unet)
    sample, condition = inputs["sample"], inputs["encoder_hidden_states"]
    with handle.run(6):
        by_position = [handle.unet(sample, t, condition, return_dict=False)[0] for t in range(900, 300, -100)]
    with handle.run(6):
        by_keyword = [
            handle.unet(sample=sample, timestep=torch.tensor(t), encoder_hidden_states=condition).sample
            for t in range(900, 300, -100)
        ]
    assert all(torch.equal(a, b) for a, b in zip(by_position, by_keyword, strict=True))
    assert handle.summary().pattern == "F.F.F."


def test_models_without_a_mid_block(tiny):
    pipe = tiny.pipe("no-mid-block")
    images, summary = accelerated(pipe, tiny.call, cut=2)
    assert summary.pattern == "F..F..F..F"
    assert torch.isfinite(images).all()


def test_freeu_and_cache_compose_at_every_cut(tiny):
    """Against a slow literal reference: the full step's feature is kept by copying, and put in by a pre-hook."""
    pipe = tiny.pipe()
    pipe.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5)
    for cut in (0, 4, 6, 8):
        ours, summary = accelerated(pipe, tiny.call, interval=3, cut=cut)
        assert torch.equal(ours, literal_deepcache(pipe, tiny.call, summary))


def literal_deepcache(pipe, call, summary):
    """Runs everything at every step, but overwrites F with the copy kept at the last full step.

    F enters the decoder resnet inside a concatenation, after FreeU's edit; so this rewrites the edit's input by
    wrapping ``torch.cat`` where that layer's concatenation happens.
    """
    resnet = pipe.unet.get_submodule(summary.entry)
    kept, count = {}, [0]
    original = torch.cat

    def step_hook(module, args):
        index = count[0]
        count[0] += 1
        hidden = resnet.in_channels - module_skip_channels
        if summary.pattern[index] == "F":
            kept["F"] = args[0][:, :hidden].clone()
            return None
        return (original([kept["F"], args[0][:, hidden:]], dim=1), *args[1:])

    from unetaccel.skips import skip_table

    module_skip_channels = skip_table(pipe.unet)[summary.cut].channels
    hook = resnet.register_forward_pre_hook(step_hook)
    try:
        return call(pipe)
    finally:
        hook.remove()


def test_unconditional_pipelines(tiny):
    for kind, scheduler in ((DDIMPipeline, "DDIMScheduler"), (DDPMPipeline, "DDPMScheduler")):
        pipe = kind(unet=tiny.unet("ddpm"), scheduler=tiny.scheduler(scheduler))
        pipe.set_progress_bar_config(disable=True)

        def call(pipe):
            return pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=8, output_type="np").images

        plain = call(pipe)
        cached, summary = accelerated(pipe, call, interval=3, cut=1)
        assert summary.pattern == "F..F..F."
        assert plain.shape == cached.shape
        assert (plain != cached).any()


@pytest.mark.parametrize(("scheduler", "steps"), [("LCMScheduler", 8), ("TCDScheduler", 8), ("DDIMScheduler", 4)])
def test_few_step_runs_are_plain_with_a_warning_unless_forced(tiny, scheduler, steps):
    pipe = tiny.pipe(scheduler=tiny.scheduler(scheduler))
    plain = tiny.call(pipe, steps=steps)
    with unetaccel.apply(pipe, DeepCache(interval=2)) as handle:
        with pytest.warns(UserWarning, match=r"caching is off for this call.*DeepCache\(force=True\)"):
            assert torch.equal(tiny.call(pipe, steps=steps), plain)
        summary = handle.summary()
        assert summary.cached == 0
        assert summary.plain_because in repr(summary)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, summary = accelerated(pipe, lambda p: tiny.call(p, steps=steps), interval=2, force=True)
    assert summary.pattern == "F." * (steps // 2)


def test_rules_see_timesteps_and_noise_levels(tiny):
    seen = []

    def rule(i, timestep, sigma, T):
        seen.append((timestep, sigma))
        return timestep > 500

    pipe = tiny.pipe()
    _, summary = accelerated(pipe, tiny.call, schedule=rule)
    assert summary.pattern == "FFFFF....."
    timesteps, sigmas = zip(*seen, strict=True)
    assert list(timesteps) == sorted(timesteps, reverse=True)
    assert list(sigmas) == sorted(sigmas, reverse=True)
    alphas = pipe.scheduler.alphas_cumprod
    assert sigmas[0] == pytest.approx(
        ((1 - alphas[int(timesteps[0])]) / alphas[int(timesteps[0])]).sqrt().item(), rel=1e-5
    )


def test_auto_takes_the_deepest_cheap_cut(tiny):
    cuts = {"sd15": 0, "sdxl": 2}
    for name, expected in cuts.items():
        unet = build_shape(name, device="meta")
        shares = [c.share for c in cut_costs(unet, example_inputs(unet), range(expected + 2))]
        assert shares[expected] <= AUTO_SHARE < shares[expected + 1]
        assert unetaccel.apply(unet, DeepCache(cut="auto")).cut == expected


def test_without_a_method_the_recommended_one_is_applied(tiny):
    pipe = tiny.pipe()
    cheap = deepest_cheap(cut_costs(pipe.unet, example_inputs(pipe.unet)))
    with unetaccel.apply(pipe) as handle:
        assert handle.methods == (RECOMMENDED,)
        assert [sum(handle.plan(steps)) for steps in (50, 20, 4)] == [14, 9, 4]
        assert handle.cut == cheap
        tiny.call(pipe, steps=12)
        assert handle.summary().pattern == "FFFFF.F.F..F"
