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

STRANGERS = [
    "UNet1DModel",
    "I2VGenXLUNet",
    "Kandinsky3UNet",
    "StableCascadeUNet",
    "UVit2DModel",
    "UNetControlNetXSModel",
    *(["DreamLiteUNetModel"] if hasattr(diffusers, "DreamLiteUNetModel") else []),  # newer than our lowest diffusers
]


@pytest.mark.parametrize("name", STRANGERS)
def test_other_unets_are_refused_by_name(name):
    with torch.device("meta"):
        unet = getattr(diffusers, name)()
    with pytest.raises(
        UnsupportedModelError, match="DreamLite.*not supported" if "Dream" in name else rf"^{name} is not"
    ):
        unetaccel.apply(unet, DeepCache())


def test_the_latent_upscaler_is_refused_by_the_name_of_its_blocks(tiny):
    kinds = dict(
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D"), up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D")
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=8,
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        attention_head_dim=8,
        mid_block_type=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_skip_time_act=True,
        **kinds,
    )
    pipe = make(tiny, SD("LatentUpscale"), unet)
    with pytest.raises(UnsupportedModelError, match="is a KDownBlock2D, which is not supported"):
        unetaccel.apply(pipe, DeepCache())
    assert pipe.unet is unet


def test_controlnet_xs_is_refused_by_name(tiny):
    unet = tiny.unet()
    adapter = diffusers.ControlNetXSAdapter.from_unet(unet, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    pipe = make(tiny, SD("ControlNetXS"), unet, controlnet=adapter)
    fused = pipe.unet
    with pytest.raises(UnsupportedModelError, match="UNetControlNetXSModel is not supported"):
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


def test_schedulers_without_a_step_are_refused_by_name(tiny):
    pipe = diffusers.ScoreSdeVePipeline(unet=tiny.unet("ddpm"), scheduler=diffusers.ScoreSdeVeScheduler())
    with pytest.raises(UnsupportedModelError, match="ScoreSdeVeScheduler that lacks set_timesteps or step"):
        unetaccel.apply(pipe, DeepCache())
