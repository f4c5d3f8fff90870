"""Small U-Nets of every architecture that is supported, and inputs that fit them."""

from __future__ import annotations

import diffusers
import torch
from diffusers import (
    I2VGenXLUNet,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)

CONTEXT = 32
FRAMES = 3

_CONDITIONED = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    cross_attention_dim=CONTEXT,
    attention_head_dim=4,
    norm_num_groups=8,
    block_out_channels=(16, 32, 32),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)
_PLAIN = dict(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    norm_num_groups=8,
    block_out_channels=(16, 32, 32),
    attention_head_dim=8,
)

ARCHITECTURES = {
    "sd": (UNet2DConditionModel, {**_CONDITIONED, "layers_per_block": 2}),
    "sd-4-levels": (
        UNet2DConditionModel,
        {
            **_CONDITIONED,
            "block_out_channels": (16, 16, 32, 32),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        },
    ),
    "one-layer": (UNet2DConditionModel, {**_CONDITIONED, "layers_per_block": 1}),
    "three-layers": (UNet2DConditionModel, {**_CONDITIONED, "layers_per_block": 3}),
    "no-mid-block": (UNet2DConditionModel, {**_CONDITIONED, "layers_per_block": 1, "mid_block_type": None}),
    "sdxl": (
        UNet2DConditionModel,
        {
            **_CONDITIONED,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
    ),
    "simple-cross-attention": (
        UNet2DConditionModel,
        {
            **_CONDITIONED,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "block_out_channels": (16, 32),
            "resnet_time_scale_shift": "scale_shift",
        },
    ),
    "class-conditioned": (UNet2DConditionModel, {**_CONDITIONED, "layers_per_block": 1, "num_class_embeds": 10}),
    "ddpm": (
        UNet2DModel,
        {
            **_PLAIN,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "ldm": (
        UNet2DModel,
        {
            **_PLAIN,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "num_class_embeds": 5,
        },
    ),
}

_TWO_LEVELS = dict(
    sample_size=8,
    in_channels=4,
    out_channels=8,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    block_out_channels=(16, 32),
    norm_num_groups=8,
    encoder_hid_dim=32,
    cross_attention_dim=CONTEXT,
    attention_head_dim=4,
    resnet_time_scale_shift="scale_shift",
)
_TEXT = dict(encoder_hid_dim_type="text_proj", addition_embed_type="text", addition_embed_type_num_heads=2)
_DEEPFLOYD = dict(in_channels=3, out_channels=6, act_fn="gelu", cross_attention_norm="group_norm")
ARCHITECTURES |= {
    "sd2": (  # heads per level, linear projections
        UNet2DConditionModel,
        {
            **_CONDITIONED,
            "attention_head_dim": (2, 4, 4),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
    ),
    "sdxl-refiner": (
        UNet2DConditionModel,
        {
            **_CONDITIONED,
            "block_out_channels": (16, 32, 32, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 2,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 72,
        },
    ),
    "kandinsky": (
        UNet2DConditionModel,
        {**_TWO_LEVELS, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
    ),
    "kandinsky-2.1": (
        UNet2DConditionModel,
        {**_TWO_LEVELS, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"},
    ),
    "deepfloyd": (UNet2DConditionModel, {**_TWO_LEVELS, **_TEXT, **_DEEPFLOYD}),
    "audioldm2": (  # two conditions: three attentions a layer
        diffusers.AudioLDM2UNet2DConditionModel,
        {
            **_CONDITIONED,
            "layers_per_block": 2,
            "cross_attention_dim": ((None, CONTEXT, 24),) * 3,
        },
    ),
}
if hasattr(diffusers, "DreamLiteUNetModel"):  # newer than the lowest diffusers that we promise
    _DREAMLITE = dict(sample_size=16, block_out_channels=(16, 32, 32), norm_num_groups=8, cross_attention_dim=CONTEXT)
    _DREAMLITE |= dict(attention_head_dim=(2, 4, 4), encoder_hid_dim=24, encoder_hid_dim_type="text_proj_rms")
    _DREAMLITE |= dict(addition_embed_type="time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16)
    ARCHITECTURES["dreamlite"] = (diffusers.DreamLiteUNetModel, {**_DREAMLITE, "use_linear_projection": True})

_VIDEO = dict(in_channels=4, out_channels=4, sample_size=16, cross_attention_dim=CONTEXT, layers_per_block=2)
ARCHITECTURES |= {
    "animatediff": (
        UNetMotionModel,
        {
            **_VIDEO,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
        },
    ),
    "svd": (
        UNetSpatioTemporalConditionModel,
        {
            **_VIDEO,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "num_attention_heads": 8,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "num_frames": 3,
        },
    ),
    "text-to-video": (
        UNet3DConditionModel,
        {
            **_VIDEO,
            "block_out_channels": (32, 64),
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 8,
        },
    ),
    "i2vgen-xl": (
        I2VGenXLUNet,
        {
            **_VIDEO,
            "block_out_channels": (32, 64),
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 8,
        },
    ),
}


def unet_inputs(unet, batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> dict:
    """Keyword inputs that fit ``unet``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    config = unet.config
    inputs = {"sample": normal(batch, config.in_channels, *size), "timestep": torch.tensor(500), "return_dict": False}
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        video = {"sample": normal(batch, FRAMES, config.in_channels, *size), "added_time_ids": normal(batch, 3)}
        return {**inputs, **video, "encoder_hidden_states": normal(batch, 1, CONTEXT)}
    if isinstance(unet, UNet3DConditionModel | UNetMotionModel | I2VGenXLUNet):
        conditions = batch * FRAMES if isinstance(unet, UNetMotionModel) else batch
        inputs["sample"] = normal(batch, config.in_channels, FRAMES, *size)
        if isinstance(unet, I2VGenXLUNet):
            inputs |= {"image_latents": normal(*inputs["sample"].shape), "image_embeddings": normal(batch, CONTEXT)}
            inputs["fps"] = torch.full((batch,), 16)
        return {**inputs, "encoder_hidden_states": normal(conditions, 7, CONTEXT)}
    if "cross_attention_dim" in config:
        inputs["encoder_hidden_states"] = normal(batch, 7, config.get("encoder_hid_dim") or CONTEXT)
    if isinstance(unet, diffusers.AudioLDM2UNet2DConditionModel):
        inputs["encoder_hidden_states_1"] = normal(batch, 7, 24)
    if config.get("num_class_embeds"):
        inputs["class_labels"] = torch.arange(batch) % config.num_class_embeds
    dim = config.get("projection_class_embeddings_input_dim")
    added = {
        "text_time": lambda: {
            "text_embeds": normal(batch, 32),
            "time_ids": normal(batch, (dim - 32) // config.addition_time_embed_dim),
        },
        "image": lambda: {"image_embeds": normal(batch, 32)},
        "text_image": lambda: {"text_embeds": normal(batch, 32), "image_embeds": normal(batch, 32)},
        "time": lambda: {"time_ids": normal(batch, 2)},
    }.get(config.get("addition_embed_type"))
    return inputs if added is None else {**inputs, "added_cond_kwargs": added()}
