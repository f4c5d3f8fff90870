"""Video pipelines: interval 1 is plain bit for bit, the pattern is the planned one, removal gives everything back.

The pattern is counted by hooks on the model.
"""

import diffusers
import pytest
import torch
from pipeline_cases import PLANNED, STEPS, normal, spied
from torch import nn

import unetaccel
from unetaccel import DeepCache

FRAMES = 3
ANIMATEDIFF = dict(text_encoder=None, tokenizer=None, feature_extractor=None, image_encoder=None)


def awake(module: nn.Module) -> nn.Module:
    """Temporal layers start as the identity: give them something to do."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        if "proj_out" in name or "conv4" in name:
            nn.init.normal_(p, std=0.1)
    return module.eval().requires_grad_(False)


def motion_adapter(**options):
    heads = dict(motion_num_attention_heads=2, motion_norm_num_groups=8)
    return awake(diffusers.MotionAdapter(block_out_channels=(16, 32, 32), **heads, **options))


def animatediff(tiny, cls=diffusers.AnimateDiffPipeline, **parts):
    known = tiny.pipe().components
    usual = dict(vae=known["vae"], scheduler=known["scheduler"], unet=tiny.unet(), motion_adapter=motion_adapter())
    return cls(**{**ANIMATEDIFF, **usual, **parts})


def sampler(pipe, **options):
    """A function that calls ``pipe`` with a fresh generator of one seed."""
    usual = dict(num_inference_steps=STEPS, output_type="latent", return_dict=False)
    if "image" not in options:
        usual |= {"prompt_embeds": normal(1, 7, 32), "negative_prompt_embeds": normal(1, 7, 32, seed=1)}
    if "video" not in options:
        usual |= dict(num_frames=FRAMES, height=64, width=64)
    pipe.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        return pipe(generator=torch.Generator().manual_seed(0), **{**usual, **options})[0]

    return call


def check(tiny, pipe, call, expected: str = PLANNED, cuts: tuple[int, ...] = (1, 3)) -> None:
    original = pipe.unet
    plain, pattern = spied(tiny, pipe, call)
    assert pattern == "F" * len(expected)
    assert torch.isfinite(plain).all()
    results = [plain]
    for cut in cuts:
        with unetaccel.apply(pipe, DeepCache(interval=1, cut=cut)):
            assert torch.equal(call(), plain)
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=cut)):
            assert pipe.unet is not original
            cached, pattern = spied(tiny, pipe, call)
            assert pattern == expected
            assert torch.isfinite(cached).all()
            assert not any(torch.equal(cached, r) for r in results), "neither plain nor another cut's"
            assert torch.equal(call(), cached)
            results.append(cached)
        assert pipe.unet is original
    assert torch.equal(call(), plain)


def test_animatediff(tiny):
    pipe = animatediff(tiny)
    assert isinstance(pipe.unet, diffusers.UNetMotionModel)
    call = sampler(pipe)
    check(tiny, pipe, call, cuts=(0, 1, 4, 6))
    moving = call()
    nn.init.zeros_(pipe.unet.up_blocks[-1].motion_modules[-1].proj_out.weight)
    assert not torch.equal(call(), moving), "the motion modules take part"


def test_animatediff_without_guidance_and_with_the_last_frames_decoded(tiny):
    pipe = animatediff(tiny)
    check(tiny, pipe, sampler(pipe, guidance_scale=1.0, output_type="pt", decode_chunk_size=2))


def test_animatediff_free_init(tiny):
    """Two trajectories in one call: each sets its timesteps, so each begins with a full evaluation."""
    pipe = animatediff(tiny)
    pipe.enable_free_init(num_iters=2)
    check(tiny, pipe, sampler(pipe), PLANNED + PLANNED, cuts=(1,))


def test_animatediff_with_controlnet(tiny):
    unet = tiny.unet()
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for silent in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
        nn.init.normal_(silent.weight, std=0.1)
    pipe = animatediff(tiny, diffusers.AnimateDiffControlNetPipeline, unet=unet, controlnet=net.eval())
    frames = list(torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    call = sampler(pipe, conditioning_frames=frames)
    check(tiny, pipe, call)
    assert not torch.equal(call(), sampler(pipe, conditioning_frames=frames, controlnet_conditioning_scale=0.5)())


def test_animatediff_video_to_video(tiny):
    pipe = animatediff(tiny, diffusers.AnimateDiffVideoToVideoPipeline)
    video = torch.rand(1, FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    check(tiny, pipe, sampler(pipe, video=video, strength=0.8, height=64, width=64), "F..F.")


def test_animatediff_keeps_what_is_loaded_while_applied(tiny):
    """A LoRA on a motion module, as AnimateDiff's camera LoRAs are."""
    from peft import LoraConfig

    torch.manual_seed(0)
    pipe = animatediff(tiny)
    call = sampler(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        without = call()
        targets = r".*motion_modules.*to_(q|v)"
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
        assert not torch.equal(found, without)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        assert torch.equal(call(), found)


def image_encoder():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(**size, projection_dim=32, image_size=32, patch_size=8)
    ).eval()


@pytest.fixture
def stable_video(tiny):
    from transformers import CLIPImageProcessor

    encoder = image_encoder()
    blocks = dict(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    vae = diffusers.AutoencoderKLTemporalDecoder(**blocks)
    cls, config = tiny.ARCHITECTURES["svd"]
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=encoder,
        unet=awake(cls(**{**config, "in_channels": 8})),
        scheduler=diffusers.EulerDiscreteScheduler(
            timestep_type="continuous",
            use_karras_sigmas=True,
            prediction_type="v_prediction",
            sigma_min=0.002,
            sigma_max=80,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )


def test_stable_video_diffusion(tiny, stable_video):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = dict(height=32, width=32, fps=6, motion_bucket_id=100)
    check(tiny, stable_video, sampler(stable_video, image=picture, **options), cuts=(0, 1, 3))
    without_guidance = sampler(stable_video, image=picture, max_guidance_scale=1.0, **options)
    check(tiny, stable_video, without_guidance, cuts=(1,))


def test_image_to_video_by_i2vgen_xl(tiny):
    from PIL import Image
    from transformers import CLIPImageProcessor

    torch.manual_seed(0)
    blocks = dict(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4)
    vae = diffusers.AutoencoderKL(**blocks, up_block_types=("UpDecoderBlock2D",) * 2).eval()
    pipe = diffusers.I2VGenXLPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        image_encoder=image_encoder(),
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        unet=tiny.unet("i2vgen-xl"),
        scheduler=tiny.scheduler("DDIMScheduler"),
    )
    picture = Image.linear_gradient("L").convert("RGB")
    text = {"prompt_embeds": normal(1, 7, 32), "negative_prompt_embeds": normal(1, 7, 32, seed=1)}
    inner = sampler(pipe, image=picture, num_frames=FRAMES, height=32, width=32, **text)

    def call() -> torch.Tensor:
        torch.manual_seed(0)  # the pipeline encodes the picture with the global generator
        return inner()

    check(tiny, pipe, call, cuts=(0, 3))


def text_to_video(tiny, cls):
    unet = awake(tiny.unet("text-to-video"))
    known = tiny.pipe().components
    return cls(vae=known["vae"], text_encoder=None, tokenizer=None, unet=unet, scheduler=known["scheduler"])


def test_text_to_video(tiny):
    pipe = text_to_video(tiny, diffusers.TextToVideoSDPipeline)
    check(tiny, pipe, sampler(pipe), cuts=(0, 1, 3))


def test_video_to_video(tiny):
    pipe = text_to_video(tiny, diffusers.VideoToVideoSDPipeline)
    video = torch.rand(1, FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    check(tiny, pipe, sampler(pipe, video=video, strength=0.8), "F..F.")


def test_the_check_bites(tiny):
    pipe = animatediff(tiny)
    with pytest.raises(AssertionError):
        check(tiny, pipe, sampler(pipe), "F.F.F.F")
