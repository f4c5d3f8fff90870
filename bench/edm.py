r"""Pictures from one of NVIDIA's EDM networks with Skip-Tuning: what the paper reports of ImageNet 64x64.

    git clone https://github.com/NVlabs/edm
    curl -O https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl
    python bench/edm.py --network edm-imagenet-64x64-cond-adm.pkl --edm-repo edm \
        --solver unipc --steps 10 --rho-bottom 0.78 --seeds 0-49999 --out tuned
    python bench/edm.py --network edm-imagenet-64x64-cond-adm.pkl --edm-repo edm \
        --solver unipc --steps 10 --rho-bottom 1 --seeds 0-49999 --out plain
    cd edm && python fid.py calc --images=../tuned --num=50000 \
        --ref=https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/imagenet-64x64.npz

Published (arXiv 2402.15170): FID 3.64 plain and 1.88 tuned, at 10 evaluations. The paper's text leaves open whether its 0.78
is the factor of every skip (``--profile constant``) or of the innermost, rising to 1 (``linear``), and which solver the two
figures are of: try both, and keep the plain run beside them. The network and the reference are under CC BY-NC-SA 4.0.

A network loaded from a pickle runs code as it loads: open only files that you trust. The same seed gives the same noise and
class as EDM's own generate.py on the same device. Pictures that exist are left out, so that a run can be cut into
ranges of seeds and go on after a stop.
"""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

import unetaccel
from unetaccel import SkipTuning

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x (N, C, H, W), sigma of no dimensions) -> what EDM's networks give: the denoised picture, as x."""


def main(
    network: Annotated[Path, typer.Option(help="NVIDIA's pickle.")],
    edm_repo: Annotated[Path, typer.Option(help="A clone of NVlabs/edm, whose modules the pickle needs.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, 000000.png and so on, and settings.json.")],
    solver: Annotated[str, typer.Option(help="unipc (N evaluations), heun (2 N - 1) or euler (N).")] = "unipc",
    steps: Annotated[int, typer.Option(help="N.")] = 10,
    order: Annotated[int, typer.Option(help="Of unipc, 1 to 3.")] = 2,
    rho_bottom: Annotated[float, typer.Option(help="Factor of the innermost skip; 1 is plain sampling.")] = 0.78,
    rho_top: Annotated[float, typer.Option(help="Factor of the outermost skip.")] = 1.0,
    profile: Annotated[str, typer.Option(help="linear, or constant: rho-bottom for every skip.")] = "linear",
    schedule: Annotated[
        str | None, typer.Option(help="increasing or decreasing over time; the default is neither.")
    ] = None,
    where: Annotated[str, typer.Option(help="concat, shortcut or norm_out.")] = "concat",
    seeds: Annotated[str, typer.Option(help="One picture each: 0-49999, or 1,5,10-19.")] = "0-63",
    batch: Annotated[int, typer.Option(help="Pictures at a time.")] = 64,
    device: Annotated[str, typer.Option()] = "cuda",
) -> None:
    """Write one picture per seed."""
    method = SkipTuning(rho_bottom, rho_top, profile=profile, schedule=schedule, where=where)
    typer.echo(f"loading {network}: a pickle runs code as it loads, so be sure that you trust it", err=True)
    net = load(network, edm_repo).to(device)
    sigmas = noise_levels(steps, max(0.002, net.sigma_min), min(80.0, net.sigma_max))
    sigmas = torch.cat([net.round_sigma(sigmas.to(device)).cpu(), sigmas.new_zeros(1)])
    levels = evaluated(solver, sigmas)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"network": network.name, "solver": solver, "steps": steps, "evaluations": len(levels)}
    settings |= {"order": order if solver == "unipc" else None, "method": repr(method)}
    note(out / "settings.json", settings)
    wanted = [seed for seed in numbers(seeds) if not picture(out, seed).exists()]
    with unetaccel.apply(net, method) as handle, torch.no_grad():
        for start in range(0, len(wanted), batch):
            some = wanted[start : start + batch]
            noise, labels = draw(net, some, device)
            with handle.run(len(levels), sigmas=levels):
                images = sample(lambda x, sigma: handle.unet(x, sigma, labels), noise, sigmas, solver, order)  # noqa: B023 - called at once
            save(images, some, out)
            typer.echo(f"{start + len(some)} of {len(wanted)}", err=True)


def note(path: Path, settings: dict) -> None:
    """Keep the settings beside the pictures; those of other settings must not be mixed with them."""
    text = json.dumps(settings, indent=1) + "\n"
    if path.exists() and path.read_text("utf-8") != text:
        raise typer.BadParameter(
            f"--out {path.parent} holds pictures of other settings (see {path.name}): take another folder"
        )
    path.write_text(text, "utf-8")


def load(path: Path, repo: Path) -> torch.nn.Module:
    """The network that a pickle of EDM holds: the average of its weights over training."""
    sys.path.insert(0, str(repo))
    try:
        with path.open("rb") as file:
            return pickle.load(file)["ema"].eval().requires_grad_(False)
    finally:
        sys.path.remove(str(repo))


def noise_levels(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """EDM's equation 5: ``steps`` levels (float64) from high to low."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def evaluated(solver: str, sigmas: torch.Tensor) -> list[float]:
    """The noise level of each evaluation that ``sample`` makes."""
    levels = sigmas[:-1].tolist()
    return levels if solver != "heun" else levels[:1] + [level for level in levels[1:] for _ in range(2)]


def sample(denoise: Denoiser, noise: torch.Tensor, sigmas: torch.Tensor, solver: str, order: int = 2) -> torch.Tensor:
    """Follow the probability flow from ``noise`` (N, C, H, W), standard normal, through ``sigmas``, which end with 0."""
    if solver == "unipc":
        return unipc(denoise, noise, sigmas, order)
    if solver not in ("heun", "euler"):
        raise typer.BadParameter(f"--solver {solver}: choose unipc, heun or euler")
    return heun(denoise, noise, sigmas, corrected=solver == "heun")


def heun(denoise: Denoiser, noise: torch.Tensor, sigmas: torch.Tensor, corrected: bool = True) -> torch.Tensor:
    """EDM's algorithm 1; without the correction it is Euler's method."""
    x = noise.double() * sigmas[0]
    for i, (now, then) in enumerate(itertools.pairwise(sigmas.to(x.device))):
        slope = (x - denoise(x, now).double()) / now
        ahead = x + (then - now) * slope
        if corrected and i < len(sigmas) - 2:
            slope = (slope + (ahead - denoise(ahead, then).double()) / then) / 2
            ahead = x + (then - now) * slope
        x = ahead
    return x


def unipc(denoise: Denoiser, noise: torch.Tensor, sigmas: torch.Tensor, order: int = 2) -> torch.Tensor:
    """diffusers' UniPC with prediction of the data, at EDM's noise levels.

    That scheduler keeps ``x / sqrt(1 + sigma^2)`` (VP). Solvers that predict the data in log(sigma) do not see the difference.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="sample", solver_order=order)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.float()  # its timesteps only count here
    scheduler.set_begin_index(0)
    scale = (1 + sigmas**2).sqrt().tolist()
    x = noise.float() * (float(sigmas[0]) / scale[0])
    for i, sigma in enumerate(sigmas[:-1].to(x.device)):
        x = scheduler.step(denoise(x * scale[i], sigma).float(), scheduler.timesteps[i], x).prev_sample
    return x


def draw(net, seeds: Sequence[int], device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Noise (N, C, H, W) and one-hot classes (N, labels) or None, each picture's from a generator of its own seed."""
    generators = [torch.Generator(device).manual_seed(seed % 2**32) for seed in seeds]
    shape, on = (net.img_channels, net.img_resolution, net.img_resolution), {"device": device}
    noise = torch.stack([torch.randn(shape, generator=g, **on) for g in generators])
    if not net.label_dim:
        return noise, None
    labels = [torch.randint(net.label_dim, (), generator=g, **on) for g in generators]
    return noise, torch.eye(net.label_dim, **on)[torch.stack(labels)]


def save(images: torch.Tensor, seeds: Sequence[int], folder: Path) -> None:
    """Write pictures (N, C, H, W) of -1..1."""
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for seed, array in zip(seeds, pixels, strict=True):
        part = picture(folder, seed).with_suffix(".part")
        Image.fromarray(array.squeeze()).save(part, format="png")
        part.replace(picture(folder, seed))  # so that a picture that exists is whole


def picture(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def numbers(text: str) -> list[int]:
    """The numbers of a list of numbers and ranges: "1,5,10-12" -> [1, 5, 10, 11, 12]."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


if __name__ == "__main__":
    typer.run(main)
