"""Training of the demo's U-Net on accelerate: v-prediction in latent space, one process per core.

Started by ``run.py``; on its own:
``torchrun --standalone --nproc-per-node=2 -m unetaccel.demo.train.unet FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel

from ..scenes import render, sample_scenes
from .autoencoder import CHANNELS, SCALE
from .evaluate import accuracy
from .parts import load_parts
from .text import WIDTH, tokenize


def build_unet() -> UNet2DConditionModel:
    """9 skips, cross attention, 4.2M parameters, 8x8 latents."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 64, 96),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def train_unet(
    out: Path, steps: int = 4200, batch: int = 24, pool: int = 40_000, checks: int = 10, seed: int = 0
) -> None:
    """Write ``out/unet`` (averaged weights, float16) and ``out/curve.json``: about 25 minutes on two free cores.

    ``batch`` and ``pool`` (drawings encoded beforehand) are per process; so often as ``checks`` says the
    averaged weights are sampled from, and the curve gets a row.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank = accelerator.process_index
    set_seed(seed)  # the same weights everywhere, then each process its own data
    unet, scheduler = build_unet(), build_scheduler()
    set_seed(seed + 1 + rank)
    parts = load_parts(out)
    latents, ids = encode_pool(parts, pool, seed=1000 * (rank + 1))
    empty = tokenize(parts.tokenizer, [""])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    average = EMAModel(unet.parameters(), decay=0.999)
    model, optimizer = accelerator.prepare(unet, optimizer)
    curve, order, losses, start = [], torch.empty(0, dtype=torch.int64), [], time.time()
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(pool)
        index, order = order[:batch], order[batch:]
        prompt = torch.where(torch.rand(batch, 1) < 0.1, empty, ids[index])  # guidance needs an empty prompt
        loss = denoising_loss(model, scheduler, latents[index], parts.text_encoder(prompt).last_hidden_state)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(unet.parameters())
        losses.append(loss.item())
        if accelerator.is_main_process and step % (steps // checks) == 0:
            images, spent = step * batch * accelerator.num_processes, time.time() - start
            curve.append(curve_row(images, spent, losses[-200:], check(unet, average, parts, scheduler)))
            (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        average.copy_to(unet.parameters())
        scheduler.save_pretrained(out / "scheduler")
        unet.half().save_pretrained(out / "unet")


def curve_row(images: int, seconds: float, losses: list[float], shares: dict[str, float]) -> dict:
    """One row of the training curve, printed as it comes."""
    row = {
        "images": images,
        "seconds": round(seconds),
        "cpu_seconds_per_process": round(time.process_time()),
        "loss": round(sum(losses) / len(losses), 4),
        **{k: round(shares[k], 4) for k in ("shape", "colour", "exact")},
    }
    print(json.dumps(row), flush=True)
    return row


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: warm-up, flat to the middle, cosine to zero."""
    if step < 150:
        return (step + 1) / 150
    return 0.5 + 0.5 * math.cos(math.pi * max(0.0, 2 * step / steps - 1))


def denoising_loss(model, scheduler, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Mean squared error of v at stratified timesteps; latents (N, 12, 8, 8) already scaled."""
    n = len(latents)
    u = (torch.randperm(n) + torch.rand(n)) / n
    middle = torch.sigmoid(0.4 + torch.randn(n))
    t = (torch.where(torch.rand(n) < 0.5, u, middle) * scheduler.config.num_train_timesteps).long().clamp(max=999)
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, t)
    return torch.nn.functional.mse_loss(model(noisy, t, context).sample, scheduler.get_velocity(latents, noise, t))


@torch.no_grad()
def encode_pool(parts, n: int, seed: int, held_out: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """``n`` drawings as scaled latents (n, 12, 8, 8), and the token ids (n, 16) of their captions."""
    latents, ids = [], []
    for i in range(0, n, 1000):
        scenes = sample_scenes(min(1000, n - i), seed=seed * 1000 + i, held_out=held_out)
        latents.append(parts.vae.encode(render(scenes, seed=seed * 1000 + i) * 2 - 1).latents * SCALE)
        ids.append(tokenize(parts.tokenizer, scenes.captions()))
    return torch.cat(latents), torch.cat(ids)


def check(unet, average, parts, scheduler) -> dict[str, float]:
    """Label shares of 96 samples of the averaged weights at 12 steps, guidance 3."""
    average.store(unet.parameters())
    average.copy_to(unet.parameters())
    unet.eval()
    shares, _ = accuracy(parts.pipeline(unet, scheduler), parts.label_net, n=96, steps=12, seed=0)
    unet.train()
    average.restore(unet.parameters())
    return shares


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_unet(arguments.out, arguments.steps)
