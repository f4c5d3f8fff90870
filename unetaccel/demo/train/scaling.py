"""Training of the demo's U-Net from nothing with its skips scaled in four ways, and what that does to the training.

For one seed all ways have the same first weights of the U-Net, and see the same drawings, noise and timesteps in the same order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import unetaccel

from ...errors import SettingError
from ...methods import ScaleLong
from ..labels import load_label_net
from ..pipeline import load_pipeline
from .evaluate import accuracy
from .text import tokenize
from .unet import build_scheduler, build_unet, denoising_loss, encode_pool, rate

VARIANTS: dict[str, ScaleLong | None] = {
    "original": None,
    "sqrt2": ScaleLong("sqrt2"),
    "cs": ScaleLong("cs"),
    "ls": ScaleLong("ls", start="paper"),
}
MEASURES = ("loss", "gradient_norm", "feature_norm")
"""Of each step: the loss, the norm of all gradients before clipping, and the L2 norm of what leaves the decoder, per picture."""


@dataclass(frozen=True)
class Budget:
    """What every run gets.

    Args:
        steps, batch: of training.
        windows: rows of the curve, each of the same number of steps.
        drawings: encoded beforehand and drawn from.
        samples: pictures of held-out captions at the end, from which labels are read.
        held_out: drawings of held-out captions for the loss at the end.
    """

    steps: int = 600
    batch: int = 16
    windows: int = 40
    drawings: int = 10_000
    samples: int = 96
    held_out: int = 480


class FeatureNorm:
    """Watches the decoder's output (N, C, H, W) on its way into the last norm, which all views of a U-Net share."""

    def __init__(self, unet):
        self.value = 0.0
        unet.conv_norm_out.register_forward_pre_hook(self._see)

    def _see(self, module, args):
        self.value = args[0].detach().flatten(1).norm(dim=1).mean().item()


def train_variants(
    out: Path, names: Sequence[str], seeds: Sequence[int], budget: Budget, say: Callable[[str], None] = print
) -> None:
    """Write ``out/<name>-seed<seed>.json`` for each that is not there yet.

    Raises:
        SettingError: an unknown name, or the folder's runs had another budget.
    """
    strange = [name for name in names if name not in VARIANTS]
    if strange:
        raise SettingError(f"unknown variant {strange[0]!r}; known: {', '.join(VARIANTS)}")
    out.mkdir(parents=True, exist_ok=True)
    read_runs(out, budget)
    wanted = [(name, seed) for seed in seeds for name in names if not _file(out, name, seed).exists()]
    if not wanted:
        return
    pipe = load_pipeline()
    data = encode_pool(pipe, budget.drawings, seed=1000)
    for name, seed in wanted:
        run = train_variant(pipe, data, name, seed, budget)
        part = _file(out, name, seed).with_suffix(".part")
        part.write_text(json.dumps(run, indent=1) + "\n")
        part.replace(_file(out, name, seed))
        say(f"{name}, seed {seed}: held-out loss {run['held_out_loss']:.4f}, {run['cpu_seconds']} CPU seconds")


def read_runs(out: Path, budget: Budget | None = None) -> list[dict]:
    """The finished runs of a folder, in the order of ``VARIANTS`` and seeds.

    Raises:
        SettingError: one had another budget than this.
    """
    runs = [json.loads(path.read_text()) for path in out.glob("*-seed*.json")]
    other = [run for run in runs if budget is not None and run["budget"] != asdict(budget)]
    if other:
        raise SettingError(
            f"{str(out)!r} has a run with {other[0]['budget']}, which cannot be compared with {asdict(budget)}: choose another folder"
        )
    return sorted(runs, key=lambda run: (list(VARIANTS).index(run["variant"]), run["seed"]))


def train_variant(pipe, data: tuple[torch.Tensor, torch.Tensor], name: str, seed: int, budget: Budget) -> dict:
    """One training, as its file holds it.

    Args:
        pipe: the demo, for its text encoder, tokenizer and decoder; its ``unet`` is replaced.
        data: latents and token ids of ``encode_pool``.
    """
    accelerator, scheduler = Accelerator(cpu=True), build_scheduler()
    set_seed(seed)
    unet, method = build_unet(), VARIANTS[name]
    handle = unetaccel.apply(unet, method) if method else None
    model, seen = handle.unet if handle else unet, FeatureNorm(unet)
    parameters = [*unet.parameters(), *(handle.learned.parameters() if handle else ())]
    optimizer = torch.optim.AdamW(parameters, lr=1.2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, budget.steps))
    set_seed(seed + 1)
    steps, start, spent = [], time.time(), time.process_time()
    for latents, context in _batches(pipe, data, budget):
        loss = denoising_loss(model, scheduler, latents, context)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        steps.append((loss.item(), norm.item(), seen.value))
    return {
        "variant": name,
        "method": repr(method),
        "seed": seed,
        "budget": asdict(budget),
        "seconds": round(time.time() - start),
        "cpu_seconds": round(time.process_time() - spent),
        "curve": _curve(steps, budget.windows),
        "held_out_loss": held_out_loss(pipe, model, scheduler, budget.held_out),
        "labels": _labels(pipe, model, scheduler, budget.samples),
    }


def _batches(pipe, data: tuple[torch.Tensor, torch.Tensor], budget: Budget) -> Iterator[tuple[torch.Tensor, ...]]:
    """Latents (N, 12, 8, 8) and contexts (N, 16, 96); one caption in ten is empty, for guidance."""
    latents, ids = data
    empty, order = tokenize(pipe.tokenizer, [""]), torch.empty(0, dtype=torch.int64)
    for _ in range(budget.steps):
        if len(order) < budget.batch:
            order = torch.randperm(len(latents))
        index, order = order[: budget.batch], order[budget.batch :]
        prompt = torch.where(torch.rand(budget.batch, 1) < 0.1, empty, ids[index])
        with torch.no_grad():
            context = pipe.text_encoder(prompt).last_hidden_state
        yield latents[index], context


def _curve(steps: list[tuple[float, ...]], windows: int) -> list[dict]:
    """One row a window: its last step, and [least, mean, largest] of each measure."""
    length = max(1, len(steps) // windows)
    rows = []
    for i in range(0, len(steps) - length + 1, length):
        columns = zip(*steps[i : i + length], strict=True)
        bands = [[round(v, 5) for v in (min(c), sum(c) / length, max(c))] for c in columns]
        rows.append({"step": i + length, **dict(zip(MEASURES, bands, strict=True))})
    return rows


@torch.no_grad()
def held_out_loss(pipe, model, scheduler, n: int) -> float:
    """The loss on ``n`` drawings of held-out captions, with the same noise for every model."""
    set_seed(1)
    latents, ids = encode_pool(pipe, n, seed=2000, held_out=True)
    parts = [
        denoising_loss(model.eval(), scheduler, x, pipe.text_encoder(prompt).last_hidden_state)
        for x, prompt in zip(latents.split(48), ids.split(48), strict=True)
    ]
    return round(torch.stack(parts).mean().item(), 5)


def _labels(pipe, model, scheduler, n: int) -> dict[str, float]:
    """Label shares (see ``accuracy``) of ``n`` samples at 12 steps, with the scaling that the model was trained with."""
    pipe.unet, pipe.scheduler = model.eval(), scheduler
    shares, _ = accuracy(pipe, load_label_net(), n=n, steps=12)
    return {k: round(shares[k], 4) for k in ("shape", "colour", "exact")}


def _file(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}-seed{seed}.json"
