"""Training of the label network on fresh drawings, with noise and blur so that samples read as drawings do."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..labels import LabelNet, read_correctly
from ..scenes import HEADS, render, sample_scenes


def train_label_net(out: Path, steps: int = 900, batch: int = 64, seed: int = 0) -> None:
    """Write ``out/label_net.safetensors`` (float16): about three CPU-minutes."""
    torch.manual_seed(seed)
    net = LabelNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        scenes = sample_scenes(batch, seed=20_000 + step)
        logits, truth = net(_disturb(render(scenes, seed=step))), scenes.labels()
        loss = sum(nn.functional.cross_entropy(logits[name], truth[name]) for name in HEADS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scenes = sample_scenes(1000, seed=2, held_out=True)
    shares = read_correctly(net.eval(), render(scenes, seed=99), scenes)
    print(f"label network: every label right in {shares['exact']:.1%} of 1000 held-out drawings")
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, out / "label_net.safetensors")


def _disturb(images: torch.Tensor) -> torch.Tensor:
    """Gaussian noise of up to 0.06 on every image, and a light blur on half of them."""
    n = len(images)
    soft = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = torch.rand(n, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    images = torch.lerp(images, soft, 0.7 * mix)
    return (images + 0.06 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)
