"""Real pipeline classes with their add-ons. For each one:

at interval 1 the same bits as plain; at interval 3 the planned pattern, counted by hooks on the model, and another,
finite result; after removal the original U-Net and the plain bits.
"""

import diffusers
import pytest
import torch
from pipeline_cases import (
    CASES,
    SD,
    XL,
    check,
    controlnet,
    image,
    make,
    normal,
    sampler,
    spied,
    t2i_adapter,
)

import unetaccel
from unetaccel import DeepCache, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")


@pytest.mark.parametrize("name", CASES)
def test_pipelines(tiny, name):
    case = CASES[name]
    check(tiny, *case.build(tiny), case.pattern, case.cut)


def test_the_check_bites(tiny):
    pipe, call = CASES["text2img"].build(tiny)
    with pytest.raises(AssertionError):
        check(tiny, pipe, call, "F.F.F.F")
    pipe, call = CASES["text2img"].build(tiny)
    count = [0]

    def drifting():
        count[0] += 1
        return call() + count[0]

    with pytest.raises(AssertionError):
        check(tiny, pipe, drifting)


# --- what changes within a call or between calls ---------------------------------------------------------------------


def test_guidance_cut_off_by_diffusers_own_callback(tiny):
    """The batch halves after a step, so the next evaluation is full."""
    pipe = make(tiny, XL(""), tiny.unet("sdxl"))
    call = sampler(pipe, callback_on_step_end=diffusers.callbacks.SDXLCFGCutoffCallback(cutoff_step_ratio=0.5))
    check(tiny, pipe, call, "F..FF.F")
    pipe = make(tiny, SD(""), tiny.unet())
    call = sampler(pipe, callback_on_step_end=diffusers.callbacks.SDCFGCutoffCallback(None, cutoff_step_index=1))
    check(tiny, pipe, call, "F.FF..F")


def test_base_and_refiner_are_accelerated_apart(tiny):
    """The latents of the base go into the refiner; either may be accelerated or not."""
    base, ends = CASES["sdxl base"].build(tiny)
    refiner, _ = CASES["sdxl refiner"].build(tiny)

    def call():
        return sampler(refiner, image=ends(), num_inference_steps=10, denoising_start=0.4)()

    plain = call()
    with unetaccel.apply(base, DeepCache(interval=3, cut=1)):
        first, pattern = spied(tiny, refiner, call)
        assert pattern == "FFFFFF"
        with unetaccel.apply(refiner, DeepCache(interval=2, cut=2)):
            both, pattern = spied(tiny, refiner, call)
            assert pattern == "F.F.F."
    assert len({tuple(x.flatten().tolist()) for x in (plain, first, both)}) == 3
    assert torch.equal(call(), plain)


PARTS = {
    "the middle": {"denoising_start": 0.3, "denoising_end": 0.7},
    "the beginning": {"denoising_end": 0.6, "strength": 0.999},
    "the middle by strength": {"denoising_end": 0.6, "strength": 0.75},
    "the end": {"denoising_start": 0.4},
}


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("part", PARTS)
def test_rules_see_the_timesteps_that_are_visited(tiny, scheduler, part):
    pipe = make(tiny, XL("Img2Img"), tiny.unet("sdxl"), scheduler=tiny.scheduler(scheduler))
    call = sampler(pipe, image=normal(1, 4, 8, 8), num_inference_steps=20, **PARTS[part])
    visited, seen = [], []
    hook = pipe.unet.time_proj.register_forward_pre_hook(lambda module, args: visited.append(float(args[0][0])))

    def rule(i, timestep, sigma, T):
        seen.append(timestep)
        return i % 3 == 0

    with unetaccel.apply(pipe, DeepCache(schedule=rule, warmup=0)) as handle:
        call()
    hook.remove()
    assert len(visited) > 4
    assert seen == visited[1:], "the first evaluation is full without asking"
    assert handle.summary().pattern == ("F.." * 20)[: len(visited)]


# --- a cached step is exact where the inputs are the same ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("sd", "controlnet"), ("sdxl", "controlnet"), ("sd", "adapter"), ("sdxl", "adapter")]
)
def test_cached_steps_with_residuals_are_exact_at_every_cut(tiny, name, kind):
    from unetaccel.views import build_views

    unet = tiny.unet(name)
    inputs, picture = tiny.inputs(unet), torch.cat([image(size=128), image(size=128, seed=1)])
    if kind == "controlnet":
        conditions = {k: v for k, v in inputs.items() if k != "sample"}
        down, mid = controlnet(unet)(inputs["sample"], controlnet_cond=picture, **conditions)
        inputs |= {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    else:
        whole = t2i_adapter("full_adapter_xl", 16) if name == "sdxl" else t2i_adapter()
        inputs["down_intrablock_additional_residuals"] = whole(picture)

    def fresh() -> dict:  # diffusers empties the list of adapters, and adds to tensors in place
        copied = {k: [x.clone() for x in v] for k, v in inputs.items() if isinstance(v, list | tuple)}
        return {**inputs, **copied}

    expected = unet(**fresh())[0]
    assert not torch.equal(expected, unet(**tiny.inputs(unet))[0]), "the condition changes the result"
    for b in range(sum(len(block.resnets) for block in unet.up_blocks)):
        views = build_views(unet, b)
        output, feature = views.run_full(fresh())
        assert torch.equal(output[0], expected)
        assert torch.equal(views.run_cached(fresh(), feature)[0], expected), f"cut {b}"


# --- refused by name -------------------------------------------------------------------------------------------------


def test_controlnet_xs_is_refused_by_name(tiny):
    unet = tiny.unet()
    adapter = diffusers.ControlNetXSAdapter.from_unet(unet, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    pipe = make(tiny, SD("ControlNetXS"), unet, controlnet=adapter)
    fused = pipe.unet
    with pytest.raises(
        UnsupportedModelError, match=r"UNetControlNetXSModel is not supported.*Use an ordinary ControlNet"
    ):
        unetaccel.apply(pipe, DeepCache())
    assert pipe.unet is fused
    assert type(pipe) is diffusers.StableDiffusionControlNetXSPipeline


def test_panoramas_run_plain_and_say_so(tiny):
    """They step once per view: the feature of one part of the picture must not serve another."""
    pipe = make(tiny, SD("Panorama"), tiny.unet())
    call = sampler(pipe, width=576, height=512, view_batch_size=1)
    plain = call()
    with unetaccel.apply(pipe, DeepCache(interval=3)) as handle:
        with pytest.warns(UserWarning, match="several scheduler steps at one timestep"):
            assert torch.equal(call(), plain)
        assert handle.summary().cached == 0


def test_pipelines_that_read_deep_attention_are_refused_by_name(tiny):
    pipe = make(tiny, SD("SAG"), tiny.unet())
    with pytest.raises(
        UnsupportedModelError, match="StableDiffusionSAGPipeline reads the attention maps of deep layers"
    ):
        unetaccel.apply(pipe, DeepCache())


def test_schedulers_that_correct_their_steps_are_refused_by_name(tiny):
    pipe = diffusers.KarrasVePipeline(unet=tiny.unet("ddpm"), scheduler=diffusers.KarrasVeScheduler())
    with pytest.raises(UnsupportedModelError, match=r"KarrasVeScheduler that corrects each step.*DDIMPipeline"):
        unetaccel.apply(pipe, DeepCache())


def test_schedulers_without_a_step_are_refused_by_name(tiny):
    pipe = diffusers.ScoreSdeVePipeline(unet=tiny.unet("ddpm"), scheduler=diffusers.ScoreSdeVeScheduler())
    with pytest.raises(UnsupportedModelError, match="ScoreSdeVeScheduler that lacks set_timesteps or step"):
        unetaccel.apply(pipe, DeepCache())
