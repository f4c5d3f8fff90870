"""Architectures of well-known checkpoints, for counting and timing with random weights: no hub needed."""

from __future__ import annotations

import torch
from torch import nn

from .errors import SettingError

_SD = dict(
    in_channels=4,
    out_channels=4,
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
_SDXL = dict(
    in_channels=4,
    out_channels=4,
    layers_per_block=2,
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
_DDPM = dict(
    in_channels=3, out_channels=3, layers_per_block=2, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1
)

_VIDEO = dict(
    in_channels=4,
    out_channels=4,
    layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=1024,
)

SHAPES = {
    "sd15": ("UNet2DConditionModel", dict(sample_size=64, **_SD)),
    "sd21": (
        "UNet2DConditionModel",
        {
            **_SD,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    ),
    "sdxl": ("UNet2DConditionModel", dict(sample_size=128, **_SDXL)),
    "sdxl-refiner": (
        "UNet2DConditionModel",
        {
            **_SDXL,
            "sample_size": 128,
            "cross_attention_dim": 1280,
            "attention_head_dim": (6, 12, 24, 24),
            "block_out_channels": (384, 768, 1536, 1536),
            "transformer_layers_per_block": 4,
            "projection_class_embeddings_input_dim": 2560,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "svd": (  # the 25 frames of its XT version; pictures of 576 x 1024 are latents of 72 x 128
        "UNetSpatioTemporalConditionModel",
        {
            **_VIDEO,
            "sample_size": 96,
            "in_channels": 8,
            "num_frames": 25,
            "num_attention_heads": (5, 10, 20, 20),
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
            "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
        },
    ),
    "animatediff": (  # SD 1.5 with the motion adapter v1-5-2
        "UNetMotionModel",
        {
            **_VIDEO,
            "sample_size": 64,
            "cross_attention_dim": 768,
            "num_attention_heads": 8,
            "motion_num_attention_heads": 8,
            "motion_max_seq_length": 32,
            "use_motion_mid_block": True,
            "down_block_types": ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
            "up_block_types": ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3,
        },
    ),
    "ddpm-cifar": (
        "UNet2DModel",
        dict(
            sample_size=32,
            **_DDPM,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
        ),
    ),
    "ddpm-lsun256": (
        "UNet2DModel",
        dict(
            sample_size=256,
            **_DDPM,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
            attention_head_dim=None,
        ),
    ),
}
"""Name to (class, config). The denoisers of Stable Diffusion 1.5, 2.1, XL and XL's refiner, of Stable Video Diffusion and
AnimateDiff, and of two DDPM checkpoints."""


def build_shape(
    name: str, scale: float = 1.0, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """A U-Net of a known shape with random weights, in evaluation mode.

    Args:
        name: a key of ``SHAPES``.
        scale: factor on channels and on the sample's side, to fit a CPU (1 is the real thing). Widths stay
            multiples of 32.
        device: where to build it; "meta" costs nothing and suffices for counting.

    Raises:
        SettingError: no such shape.
    """
    import diffusers

    if name not in SHAPES:
        raise SettingError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    kind, config = SHAPES[name]
    if scale != 1.0:
        config = _scaled(config, scale)
    with torch.device(device):
        unet = getattr(diffusers, kind)(**config)
    return unet.to(dtype).eval() if dtype else unet.eval()


def _scaled(config: dict, scale: float) -> dict:
    widths = tuple(max(32, round(c * scale / 32) * 32) for c in config["block_out_channels"])
    key = "num_attention_heads" if "num_attention_heads" in config else "attention_head_dim"
    heads = config[key]
    if isinstance(heads, tuple):  # diffusers reads these as numbers of heads
        heads = tuple(max(1, round(h * scale)) for h in heads)
        heads = tuple(next(h for h in range(n, 0, -1) if c % h == 0) for n, c in zip(heads, widths, strict=True))
    least = 8 if widths[-1] > 32 else 2 ** len(widths)  # norms of 32 groups want more than one number in each
    side = max(least, round(config["sample_size"] * scale / 8) * 8)
    return {**config, "block_out_channels": widths, key: heads, "sample_size": side}
