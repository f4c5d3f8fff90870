"""The label network: reads a demo picture's labels, and gives the features of the demo's distance.

It is not Inception: a Frechet distance on these features says something about these pictures only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .scenes import HEADS, Scenes

FEATURES = 128
WEIGHTS = Path(__file__).parent / "weights" / "label_net.safetensors"


class LabelNet(nn.Module):
    """A small convolutional network with one linear head per label.

    ``forward``: images (N, 3, 32, 32) in [0, 1] -> ``{label: logits (N, classes)}``;
    ``features``: the same images -> (N, 128), the layer below the heads.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, FEATURES))
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, classes) for name, classes in HEADS.items()})

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk(images * 2 - 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = nn.functional.silu(self.features(images))
        return {name: head(hidden) for name, head in self.heads.items()}


def load_label_net(path: Path | str = WEIGHTS) -> LabelNet:
    """The shipped label network in float32, ready for evaluation."""
    net = LabelNet()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net.eval().requires_grad_(False)


@torch.no_grad()
def read_correctly(net: LabelNet, images: torch.Tensor, scenes: Scenes) -> dict[str, float]:
    """Share of ``images`` (N, 3, 32, 32), in [0, 1], whose labels read as the captions say.

    Returns one share per label, over the pictures that have it (a single shape has no second
    colour, a pair no size), ``shape`` and ``colour`` over both slots, and ``exact``: every label right.
    """
    return shares(net(images), scenes)


def shares(logits: dict[str, torch.Tensor], scenes: Scenes) -> dict[str, float]:
    """``read_correctly`` for answers (N, classes) that are there already."""
    right = right_answers(logits, scenes)
    present = {name: getattr(scenes, name) >= 0 for name in HEADS}
    found = {name: _share([right[name]], [present[name]]) for name in HEADS}
    for kind in ("shape", "colour"):
        slots = [f"{kind}1", f"{kind}2"]
        found[kind] = _share([right[s] for s in slots], [present[s] for s in slots])
    found["exact"] = torch.stack(list(right.values())).all(0).double().mean().item()
    return found


def right_answers(logits: dict[str, torch.Tensor], scenes: Scenes) -> dict[str, torch.Tensor]:
    """By label, whether each picture's answer is what its caption says: bool (N,)."""
    truth = scenes.labels()
    return {name: logits[name].argmax(1) == truth[name] for name in HEADS}


def _share(right: list[torch.Tensor], present: list[torch.Tensor]) -> float:
    right, present = torch.cat(right), torch.cat(present)
    return (right & present).sum().item() / max(present.sum().item(), 1)
