"""Sampling held-out captions and reading the labels back."""

from __future__ import annotations

import torch

from ..labels import LabelNet, read_correctly
from ..pipeline import GUIDANCE
from ..scenes import sample_scenes


def accuracy(
    pipe, net: LabelNet, n: int = 500, steps: int = 20, guidance: float = GUIDANCE, seed: int = 0, batch: int = 50
) -> tuple[dict[str, float], torch.Tensor]:
    """Shares of right labels (see ``read_correctly``) over ``n`` held-out captions, and the images (n, 3, 32, 32)."""
    scenes = sample_scenes(n, seed=seed, held_out=True)
    captions, images = scenes.captions(), []
    pipe.set_progress_bar_config(disable=True)
    for i in range(0, n, batch):
        images.append(
            pipe(
                captions[i : i + batch],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed * 100_000 + j) for j in range(i, min(i + batch, n))],
                output_type="pt",
            ).images
        )
    images = torch.cat(images)
    return read_correctly(net, images, scenes), images
