"""Real pipeline classes with small random parts, and the one check that they all go through."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

import unetaccel
from unetaccel import DeepCache

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")

STEPS, SIZE = 7, 64

PLANNED = "F..F..F"


def normal(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(channels: int = 3, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(seed))


def unet_like(tiny, name: str, **changes):
    torch.manual_seed(0)
    cls, config = tiny.ARCHITECTURES[name]
    return cls(**{**config, **changes}).eval().requires_grad_(False)


def controlnet(unet, seed: int = 0):
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    return _awake(net)


def _awake(net):
    """Untrained ControlNets add nothing: make their zero convolutions other than zero."""
    for silent in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
        nn.init.normal_(silent.weight, std=0.1)
    return net.eval().requires_grad_(False)


def controlnet_union(unet):
    torch.manual_seed(0)
    cls = diffusers.ControlNetUnionModel  # its from_unet takes models of 320 channels only
    shared = {k: unet.config[k] for k in inspect.signature(cls.__init__).parameters if k in unet.config}
    widths = {"num_trans_channel": 16, "num_proj_channel": 16, "num_trans_head": 2}
    net = cls(**{**shared, **widths, "conditioning_embedding_out_channels": (8, 8, 16, 16)})
    return _awake(net)


def t2i_adapter(kind: str = "full_adapter", factor: int = 8):
    torch.manual_seed(0)
    adapter = diffusers.T2IAdapter(3, [16, 32, 32], num_res_blocks=1, downscale_factor=factor, adapter_type=kind)
    return adapter.eval().requires_grad_(False)


def vqmodel():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.VQModel(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **blocks).eval()


class Bert(nn.Module):
    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, ids):
        return (normal(len(ids), 7, 32),)


def tokenizer(texts, **options):
    return SimpleNamespace(input_ids=torch.zeros(len(texts), 7, dtype=torch.int64))


def make(tiny, cls: str, unet: nn.Module, **parts):
    """A pipeline of this class: components that are not given come from the tiny text-to-image one, or are None."""
    known = tiny.pipe().components
    parts = {**known, "unet": unet, "requires_safety_checker": False, "add_watermarker": False, **parts}
    cls = getattr(diffusers, cls)
    wanted = inspect.signature(cls.__init__).parameters
    pipe = cls(**{n: parts.get(n) for n, p in wanted.items() if n != "self" and (n in parts or p.default is p.empty)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler(pipe, **options):
    """A function that calls ``pipe`` with a fresh generator of one seed."""
    known = inspect.signature(type(pipe).__call__).parameters
    usual = {"num_inference_steps": STEPS, "output_type": "latent", "height": SIZE, "width": SIZE}
    usual |= {"prompt_embeds": normal(1, 7, 32), "negative_prompt_embeds": normal(1, 7, 32, seed=1)}
    usual |= {"pooled_prompt_embeds": normal(1, 32), "negative_pooled_prompt_embeds": normal(1, 32, seed=1)}
    arguments = {**{k: v for k, v in usual.items() if k in known}, **options}

    def call() -> torch.Tensor:
        return torch.as_tensor(pipe(generator=torch.Generator().manual_seed(0), **arguments)[0])

    return call


@dataclass(frozen=True)
class Case:
    """One pipeline class with its parts and the arguments of a call."""

    cls: str
    unet: str = "sd"
    changes: dict = field(default_factory=dict)
    """To the U-Net's config."""
    parts: Callable = lambda unet: {}
    """Components, made from the U-Net."""
    call: dict = field(default_factory=dict)
    pattern: str = PLANNED
    cut: int = 1

    def build(self, tiny):
        unet = unet_like(tiny, self.unet, **self.changes)
        pipe = make(tiny, self.cls, unet, **self.parts(unet))
        return pipe, sampler(pipe, **self.call)


SD, XL = "StableDiffusion{}Pipeline".format, "StableDiffusionXL{}Pipeline".format
MASK = (torch.arange(SIZE) > SIZE // 2).float().expand(1, 1, SIZE, SIZE)
IMAGE, FILL, PARTLY = {"image": image()}, {"image": image(), "mask_image": MASK}, {"strength": 0.8}
TWO_IMAGES = {"image": [image(), image(seed=1)]}
CONDITION = {"image_embeds": normal(1, 32), "negative_image_embeds": normal(1, 32, seed=1)}
PIXELS = {"output_type": "np"}
SMALL = {"output_type": "pt", "height": 16, "width": 16}


def one_control(unet) -> dict:
    return {"controlnet": controlnet(unet)}


def two_controls(unet) -> dict:
    return {"controlnet": [controlnet(unet), controlnet(unet, seed=1)]}


def one_adapter(unet) -> dict:
    return {"adapter": t2i_adapter()}


def zero_terminal_snr():
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler(**options, clip_sample=False)


def learned_variance(unet) -> dict:
    options = {"variance_type": "learned_range", "thresholding": True, "beta_schedule": "squaredcos_cap_v2"}
    return {"scheduler": diffusers.DDPMScheduler(**options), "image_noising_scheduler": diffusers.DDPMScheduler()}


CASES = {
    "text2img": Case(SD("")),
    "text2img, v-prediction": Case(SD(""), "sd2", parts=lambda unet: {"scheduler": zero_terminal_snr()}),
    "without guidance": Case(SD(""), call={"guidance_scale": 1.0}),
    "guidance rescale": Case(SD(""), call={"guidance_rescale": 0.7}),
    "decoded images": Case(SD(""), call=PIXELS),
    "img2img": Case(SD("Img2Img"), call={**IMAGE, **PARTLY}, pattern="F..F."),
    "inpaint, 9 channels": Case(SD("Inpaint"), changes={"in_channels": 9}, call={**FILL, "strength": 1.0}),
    "inpaint, 4 channels": Case(SD("Inpaint"), call={**FILL, **PARTLY}, pattern="F..F."),
    "instruct pix2pix": Case(SD("InstructPix2Pix"), changes={"in_channels": 8}, call={**IMAGE, "guidance_scale": 5.0}),
    "depth2img": Case(
        SD("Depth2Img"), changes={"in_channels": 5}, call={**IMAGE, "depth_map": image(1)[0], "strength": 1.0}
    ),
    "upscale": Case(
        SD("Upscale"),
        changes={"in_channels": 7, "num_class_embeds": 1000},
        parts=lambda unet: {"low_res_scheduler": diffusers.DDPMScheduler()},
        call={"image": image(size=16)},
    ),
    "sdxl text2img": Case(XL(""), "sdxl"),
    "sdxl img2img": Case(XL("Img2Img"), "sdxl", call={**IMAGE, **PARTLY}, pattern="F..F."),
    "sdxl inpaint, 9 channels": Case(XL("Inpaint"), "sdxl", {"in_channels": 9}, call={**FILL, "strength": 1.0}),
    "sdxl inpaint, 4 channels": Case(XL("Inpaint"), "sdxl", call={**FILL, **PARTLY}, pattern="F..F."),
    "sdxl base": Case(XL(""), "sdxl", call={"num_inference_steps": 10, "denoising_end": 0.6}, pattern="F..F.."),
    "sdxl refiner": Case(
        XL("Img2Img"),
        "sdxl",
        changes={"projection_class_embeddings_input_dim": 72},  # 5 time ids of 8, 32 pooled
        parts=lambda unet: {"requires_aesthetics_score": True},
        call={"image": normal(1, 4, 8, 8), "num_inference_steps": 20, "denoising_start": 0.7},
        pattern="F..F..",
    ),
    "controlnet": Case(SD("ControlNet"), parts=one_control, call=IMAGE),
    "controlnet, deep cut": Case(SD("ControlNet"), parts=one_control, call=IMAGE, cut=6),
    "two controlnets": Case(
        SD("ControlNet"), parts=two_controls, call={**TWO_IMAGES, "controlnet_conditioning_scale": [0.7, 0.4]}
    ),
    "controlnet, guess mode": Case(SD("ControlNet"), parts=one_control, call={**IMAGE, "guess_mode": True}),
    "controlnet for some steps": Case(
        SD("ControlNet"),
        parts=one_control,
        call={**IMAGE, "control_guidance_start": 0.2, "control_guidance_end": 0.6},
    ),
    "controlnet img2img": Case(
        SD("ControlNetImg2Img"),
        parts=one_control,
        call={**IMAGE, "control_image": image(seed=1), **PARTLY},
        pattern="F..F.",
    ),
    "sdxl controlnet": Case(XL("ControlNet"), "sdxl", parts=one_control, call=IMAGE),
    "sdxl two controlnets": Case(
        XL("ControlNet"), "sdxl", parts=two_controls, call={**TWO_IMAGES, "controlnet_conditioning_scale": [0.7, 0.4]}
    ),
    "sdxl controlnet union": Case(
        XL("ControlNetUnion"),
        "sdxl",
        parts=lambda unet: {"controlnet": controlnet_union(unet)},
        call={"control_image": [image()], "control_mode": [2]},
    ),
    "t2i-adapter": Case(SD("Adapter"), parts=one_adapter, call=IMAGE),
    "t2i-adapter, deep cut": Case(SD("Adapter"), parts=one_adapter, call=IMAGE, cut=4),
    "two t2i-adapters": Case(
        SD("Adapter"),
        parts=lambda unet: {"adapter": diffusers.MultiAdapter([t2i_adapter(), t2i_adapter()])},
        call={**TWO_IMAGES, "adapter_conditioning_scale": [0.5, 0.5]},
    ),
    "sdxl t2i-adapter": Case(
        XL("Adapter"), "sdxl", parts=lambda unet: {"adapter": t2i_adapter("full_adapter_xl", 16)}, call=IMAGE
    ),
    "kandinsky 2.2": Case("KandinskyV22Pipeline", "kandinsky", parts=lambda unet: {"movq": vqmodel()}, call=CONDITION),
    "kandinsky 2.2 controlnet": Case(
        "KandinskyV22ControlnetPipeline",
        "kandinsky",
        changes={"in_channels": 8, "addition_embed_type": "image_hint"},
        parts=lambda unet: {"movq": vqmodel()},
        call={**CONDITION, **PIXELS, "hint": image()},
    ),
    "kandinsky 2.2 img2img": Case(
        "KandinskyV22Img2ImgPipeline",
        "kandinsky",
        parts=lambda unet: {"movq": vqmodel()},
        call={**CONDITION, **PARTLY, "image": image()},
        pattern="F..F.",
    ),
    "deepfloyd stage 1": Case("IFPipeline", "deepfloyd", parts=learned_variance, call=SMALL),
    "deepfloyd stage 2": Case(
        "IFSuperResolutionPipeline",
        "deepfloyd",
        changes={"in_channels": 6, "class_embed_type": "timestep"},
        parts=learned_variance,
        call={**SMALL, "image": image(size=8)},
    ),
    "latent diffusion": Case(
        "LDMTextToImagePipeline",
        parts=lambda unet: {"vqvae": vqmodel(), "bert": Bert(), "tokenizer": tokenizer},
        call={**PIXELS, "prompt": "a", "guidance_scale": 3.0},
    ),
    "latent diffusion, unconditional": Case(
        "LDMPipeline",
        "ldm",
        changes={"in_channels": 4, "out_channels": 4, "sample_size": 8, "num_class_embeds": None},
        parts=lambda unet: {"vqvae": vqmodel()},
        call=PIXELS,
    ),
    "ddim": Case("DDIMPipeline", "ddpm", call=PIXELS),
    "ddpm": Case("DDPMPipeline", "ddpm", parts=lambda unet: {"scheduler": diffusers.DDPMScheduler()}, call=PIXELS),
    "repaint": Case(
        "RePaintPipeline",
        "ddpm",
        parts=lambda unet: {"scheduler": diffusers.RePaintScheduler()},
        call={
            **PIXELS,
            "image": image(size=16),
            "mask_image": MASK[..., :16, 24:40],
            "num_inference_steps": 9,
            "jump_length": 2,
            "jump_n_sample": 2,
        },
        pattern="F..F..F..F..F..F.",  # some timesteps come twice
    ),
    "consistency model": Case(
        "ConsistencyModelPipeline",
        "ddpm",
        parts=lambda unet: {"scheduler": diffusers.CMStochasticIterativeScheduler()},
        call=PIXELS,
    ),
    "PAG": Case(SD("PAG"), parts=lambda unet: {"pag_applied_layers": "mid"}, call={"pag_scale": 3.0}),
    "PAG in the decoder": Case(
        SD("PAG"),
        parts=lambda unet: {"pag_applied_layers": ["up_blocks.2"]},
        call={"pag_scale": 3.0, "pag_adaptive_scale": 0.1},
    ),
    "sdxl PAG": Case(XL("PAG"), "sdxl", parts=lambda unet: {"pag_applied_layers": "mid"}, call={"pag_scale": 3.0}),
}


def spied(tiny, pipe, call) -> tuple[torch.Tensor, str]:
    spy = tiny.Spy(pipe.unet)
    try:
        result = call()
    finally:
        pattern = spy.stop()
    return result, pattern


def check(tiny, pipe, call, expected: str = PLANNED, cut: int = 1) -> torch.Tensor:
    """The promises at the top of this file. Gives the accelerated result."""
    original = pipe.unet
    plain, pattern = spied(tiny, pipe, call)
    assert pattern == "F" * len(expected)
    assert torch.isfinite(plain).all()
    with unetaccel.apply(pipe, DeepCache(interval=1, cut=cut)):
        assert pipe.unet is not original
        assert torch.equal(call(), plain)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=cut)):
        cached, pattern = spied(tiny, pipe, call)
        assert pattern == expected
        assert torch.isfinite(cached).all()
        assert not torch.equal(cached, plain), "caching changed nothing"
        assert torch.equal(call(), cached), "the second call differs from the first"
    assert pipe.unet is original
    assert torch.equal(call(), plain)
    return cached
