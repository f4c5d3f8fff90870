"""From trained parts to what ships: a pipeline folder, its measured figures, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from ..labels import read_correctly
from ..scenes import render, sample_scenes
from .autoencoder import reconstruction_psnr
from .card import model_card
from .evaluate import accuracy
from .parts import load_parts
from .unet import build_scheduler


def assemble(out: Path, n: int = 500, seeds: tuple[int, ...] = (0, 1, 2), steps: tuple[int, ...] = (20, 50)) -> Path:
    """Write ``out/pipeline`` (U-Net and decoder float16, text encoder float32), ``figures.json`` and the card.

    The figures are over ``n`` held-out captions per seed, guidance 3, from the weights as stored.
    """
    folder, parts = out / "pipeline", load_parts(out)
    pipe = parts.pipeline(UNet2DConditionModel.from_pretrained(out / "unet"), build_scheduler())
    pipe.unet.half()
    pipe.vae.half()
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    pipe.to(torch.float32)
    figures = {
        "autoencoder": {"psnr_db": round(reconstruction_psnr(pipe.vae), 2)},
        "label_net": _reading(parts.label_net),
    }
    for count in steps:
        for seed in seeds:
            shares, _ = accuracy(pipe, parts.label_net, n=n, steps=count, seed=seed)
            figures[f"steps={count} seed={seed}"] = {k: round(v, 4) for k, v in shares.items()}
            print(
                f"{count} steps, seed {seed}:",
                {k: round(shares[k], 4) for k in ("shape", "colour", "exact")},
                flush=True,
            )
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "MODEL_CARD.md").write_text(model_card(json.loads((out / "curve.json").read_text()), figures, n))
    return folder


def _reading(label_net) -> dict[str, float]:
    scenes = sample_scenes(1000, seed=2, held_out=True)
    return {"exact_on_drawings": round(read_correctly(label_net, render(scenes, seed=99), scenes)["exact"], 4)}
