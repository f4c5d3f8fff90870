"""Loading the shipped demo pipeline: no network, no hub."""

from __future__ import annotations

from pathlib import Path

import torch

WEIGHTS = Path(__file__).parent / "weights"
GUIDANCE = 3.0
"""The guidance scale at which the model card's figures hold."""


def load_pipeline(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
    """The demo: a ``StableDiffusionPipeline`` for 32x32 pictures of captioned shapes.

    Captions look like "a large red ring on a black background" or "a green cross left of a pink
    circle on a white background"; see ``scenes`` for the words.
    """
    from ..loading import load_pipeline as load
    from ..loading import silence

    with silence():
        from diffusers import StableDiffusionPipeline

        return load(WEIGHTS / "pipeline", dtype=dtype, device=device, cls=StableDiffusionPipeline)
