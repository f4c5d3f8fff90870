"""From trained parts to a pipeline directory, with its measured figures beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from .evaluate import accuracy
from .parts import load_parts
from .unet import build_scheduler

SEEDS = (0, 1, 2)


def assemble(out: Path) -> Path:
    """Write ``out/pipeline`` (U-Net and decoder float16, text encoder float32) and ``out/figures.json``."""
    folder, parts = out / "pipeline", load_parts(out)
    unet = UNet2DConditionModel.from_pretrained(out / "unet")
    pipe = parts.pipeline(unet.half(), build_scheduler())
    pipe.vae.half()
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    pipe.to(torch.float32)
    figures = {}
    for steps in (20, 50):
        for seed in SEEDS:
            shares, _ = accuracy(pipe, parts.label_net, steps=steps, seed=seed)
            figures[f"steps={steps} seed={seed}"] = {k: round(v, 4) for k, v in shares.items()}
            print(f"{steps} steps, seed {seed}:", {k: round(shares[k], 4) for k in ("shape", "colour", "exact")})
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return folder
