"""How well images fit their prompts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..demo.labels import LabelNet, shares
from ..demo.scenes import HEADS, Scenes
from .features import in_batches


def label_accuracy(
    net: LabelNet, images: torch.Tensor, scenes: Scenes, device: torch.device | str = "cpu"
) -> Callable[[torch.Tensor], dict[str, float]]:
    """Read the labels of uint8 demo pictures (N, 3, 32, 32) once.

    Returns what gives, for indices of pictures, the shares whose labels read as their captions say: ``labels``
    (every label right), ``shape`` and ``colour``.
    """
    answers = in_batches(lambda part: torch.cat(list(net(part).values()), 1), device, images, batch=250)
    logits = dict(zip(HEADS, answers.split(list(HEADS.values()), 1), strict=True))

    def accuracy(chosen: torch.Tensor) -> dict[str, float]:
        found = shares({name: each[chosen] for name, each in logits.items()}, scenes[chosen])
        return {"labels": found["exact"], "shape": found["shape"], "colour": found["colour"]}

    return accuracy
