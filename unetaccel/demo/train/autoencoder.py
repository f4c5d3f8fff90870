"""A tiny autoencoder whose encoder is exact linear algebra, so that only the decoder is trained.

Two stride-2 convolutions move each 4x4 patch into channels (space to depth) and the last one
projects it on the principal components of drawings: nothing to learn, nothing to collapse.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from ..scenes import render, sample_scenes

CHANNELS = 12
SCALE = 2.5  # the decoder bends latents beyond 3: raw latents stay inside, scaled ones have unit size
PATCH = 3 * 4 * 4


def build_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(PATCH,) * 3,
        decoder_block_out_channels=(32,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=CHANNELS,
        scaling_factor=SCALE,
    )


@torch.no_grad()
def set_encoder(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Write the principal components of 4x4 patches of ``images`` (N, 3, H, W), in [0, 1], into the encoder.

    Components are scaled by their deviation to the power -0.7: between keeping energies (0) and
    whitening (-1), so that the fine detail of shapes weighs more in the latent loss.
    """
    first, down1, down2, last = vae.encoder.layers
    for layer in (first, down1, down2, last):
        for p in layer.parameters():
            p.zero_()
    for c in range(3):
        first.weight[c, c, 1, 1] = 1
    for layer, channels in ((down1, 3), (down2, 12)):
        for i in range(4 * channels):  # channel order: (row, column, channel)
            layer.weight[i, i % channels, 1 + i // (2 * channels), 1 + i // channels % 2] = 1
    patches = down2(down1(first(images))).permute(0, 2, 3, 1).reshape(-1, PATCH).double()
    mean = patches.mean(0)
    energy, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    energy, basis = energy.flip(0)[:CHANNELS], basis.flip(1)[:, :CHANNELS]
    weights = basis * energy.sqrt() ** -0.7  # (PATCH, CHANNELS)
    weights /= SCALE * ((patches - mean) @ weights).square().mean().sqrt()
    last.weight[:, :, 1, 1] = weights.T.float()
    last.bias.copy_(-(mean @ weights).float())


def train_autoencoder(out: Path, steps: int = 5000, batch: int = 16, drawings: int = 12_000, seed: int = 0) -> None:
    """Write ``out/vae``: about six CPU-minutes."""
    torch.manual_seed(seed)
    vae = build_autoencoder()
    images = torch.cat([render(sample_scenes(1000, seed=30_000 + i), seed=i) for i in range(drawings // 1000)])
    set_encoder(vae, images[:6000])
    with torch.no_grad():
        latents = torch.cat([vae.encode(x * 2 - 1).latents for x in images.split(1000)])
    deviation = (latents * SCALE).std((0, 2, 3))
    print(
        f"autoencoder: latent deviations {deviation.min():.2f} to {deviation.max():.2f}, largest {latents.abs().max():.2f}"
    )
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=1.5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(images), (batch,))
        noise = torch.randn_like(latents[index]) * 0.15 / SCALE * torch.rand(batch, 1, 1, 1)
        decoded = vae.decode(latents[index] + noise).sample / 2 + 0.5
        error = decoded - images[index]
        loss = error.abs().mean() + 2 * error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"autoencoder: {reconstruction_psnr(vae.eval()):.1f} dB on 500 held-out drawings")
    vae.half().save_pretrained(out / "vae")


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderTiny) -> float:
    """Peak signal-to-noise ratio in dB of 500 held-out drawings, encoded and decoded."""
    images = render(sample_scenes(500, seed=3, held_out=True), seed=3)
    decoded = vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5
    return -10 * nn.functional.mse_loss(decoded.clamp(0, 1), images).log10().item()
