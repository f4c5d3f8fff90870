"""U-Nets and blocks that cannot be cut at a skip: why, and what to do instead."""

from __future__ import annotations

_PLAIN = "Run it plain, with fewer steps where time matters"
_TRANSFORMER = "For transformers see diffusers' enable_cache or cache-dit"

UNETS = {
    "UNet1DModel": ("it hands one skip to a whole decoder block, not one to each layer", _PLAIN),
    "Kandinsky3UNet": ("it has one skip a block, and its blocks are not lists of layers", _PLAIN),
    "StableCascadeUNet": ("its levels are flat lists of layers that it repeats, with one skip a level", _PLAIN),
    "UVit2DModel": ("it is a transformer between two convolution blocks, without skips", _TRANSFORMER),
    "UniDiffuserModel": ("it is a transformer whose skips join token streams, not feature maps", _TRANSFORMER),
    "UNetControlNetXSModel": (
        "its control encoder and its base encoder feed each other at every layer, so that neither can stop at a cut",
        "Use an ordinary ControlNet (diffusers' ControlNetModel), which on cached steps runs only as far as needed",
    ),
}
"""Class name -> why it cannot be split, and the way out."""

_K = ("it hands one skip to a whole block, without one from conv_in", "Accelerate the pipeline that makes its input")
_SKIP = ("it passes a small picture from block to block beside the hidden state", _PLAIN)

BLOCKS = {
    "KDownBlock2D": _K,
    "KCrossAttnDownBlock2D": _K,
    "KUpBlock2D": _K,
    "KCrossAttnUpBlock2D": _K,
    "SkipDownBlock2D": _SKIP,
    "AttnSkipDownBlock2D": _SKIP,
    "SkipUpBlock2D": _SKIP,
    "AttnSkipUpBlock2D": _SKIP,
}
"""Name of a block of a supported U-Net -> the same."""


def unet_refusal(kind: str, supported: tuple[str, ...]) -> str:
    """What to say of a U-Net of class ``kind``."""
    known = f"supported U-Nets: {', '.join(supported)}"
    if kind not in UNETS:
        return f"{kind} is not supported yet; {known}"
    why, way_out = UNETS[kind]
    return f"{kind} is not supported: {why}. {way_out} ({known})"


def block_refusal(place: str, kind: str, supported: tuple[str, ...]) -> str:
    """What to say of a block of class ``kind`` at ``place``, such as ``down_blocks.0``."""
    side = place.partition("_")[0]
    known = f"supported {side} blocks: {', '.join(supported)}"
    if kind not in BLOCKS:
        return f"{place} is a {kind}, which is not supported yet; {known}"
    why, way_out = BLOCKS[kind]
    return f"{place} is a {kind}, which is not supported: {why}. {way_out} ({known})"
