"""``unetaccel sample``: pictures from the demo or any U-Net pipeline, with methods applied, next to the plain run."""

from __future__ import annotations

import inspect
import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from . import grid, options
from .app import app
from .options import Dtype, Format

SHOWN = 8


def _option(text: str):
    return Annotated[str | None, typer.Option(help=f"Apply {text}")]


DeepCacheOption = _option("DeepCache: recommended, or interval=3,cut=1,schedule=quad, ... (lists: schedule=0+3+9).")
ProfileOption = _option("a calibrated plan: demo.yaml, or demo.yaml,full=10,cut=1 (see unetaccel.calibrate).")
SkipTuningOption = _option("Skip-Tuning: 0.8, or rho_bottom=0.8,rho_top=1,schedule=increasing,where=shortcut, ...")
ScaleLongOption = _option("ScaleLong: mode=cs,kappa=0.9, or mode=ls,weights=gates.safetensors, ...")
GuidanceOption = _option("guidance reuse, late in the run: 0.8, or start=0.8,mode=drop.")
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="ddim, ddpm, deis, dpm++, dpm++-single, euler, euler-a, heun, kdpm2, kdpm2-a, lcm, pndm, tcd, unipc \\[default: the pipeline's]"
    ),
]
FreeUOption = _option("FreeU without FFT: b1=1.5,b2=1.6,s1=0.9,s2=0.2.")


@app.command("sample")
def sample_command(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, the demo's held-out captions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Pipeline folder or hub id \\[default: the shipped demo].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt per line.")] = None,
    seed: Annotated[str, typer.Option(help="Seeds: 0, 0,5,7 or 0-3; every prompt is sampled with each.")] = "0",
    steps: Annotated[int, typer.Option(help="Inference steps.")] = 20,
    scheduler: SchedulerOption = None,
    spacing: Annotated[str | None, typer.Option(help="Timestep spacing: leading, linspace or trailing.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale \\[default: 3 for the demo, else the pipeline's].")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 512, or height x width: 512x768.")] = None,
    batch: Annotated[int, typer.Option(help="Images per pipeline call.")] = 8,
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    deepcache: DeepCacheOption = None,
    profile: ProfileOption = None,
    skip_tuning: SkipTuningOption = None,
    scalelong: ScaleLongOption = None,
    freeu: FreeUOption = None,
    guidance_reuse: GuidanceOption = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Sample plainly too, side by side, and time both.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Interleaved timings of --compare.", min=1)] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG grid to write.")] = Path("samples.png"),
    images: Annotated[Path | None, typer.Option(help="Folder for the single images too.")] = None,
    format: Annotated[Format, typer.Option(help="How results are printed.")] = Format.text,
) -> None:
    """Sample a grid of pictures, with the methods asked for, and say what they saved and what they changed."""
    from ..demo.pipeline import GUIDANCE
    from ..errors import SettingError
    from ..sampling import Settings, check_size, set_scheduler

    named = {"skip_tuning": skip_tuning, "scalelong": scalelong, "freeu": freeu, "guidance_reuse": guidance_reuse}
    methods = options.methods(profile, deepcache=deepcache, **named)
    if compare and not methods:
        raise SettingError("--compare needs a method to compare with: add --deepcache interval=3,cut=0")
    options.writable(out, images)
    chosen, seeds, pixels = options.prompts(prompt or [], prompts), options.seeds(seed), options.size(size)
    settings = Settings(steps, guidance if guidance is not None or model else GUIDANCE, pixels, batch, negative)
    place = options.device(device)
    console = Console(stderr=format is Format.json)
    with console.status("loading the pipeline"):
        pipe, chosen = _load(model, chosen, dtype, place)
    check_size(pipe, pixels)
    if scheduler is not None or spacing is not None:
        set_scheduler(pipe, scheduler, spacing)
    pairs = [(p, s) for p in chosen for s in seeds]
    jobs = [p for p, _ in pairs], [s for _, s in pairs]
    output = Output(out, images, console, format)
    if compare:
        _compare(pipe, methods, jobs, settings, repeats, output)
    else:
        _sample(pipe, methods, jobs, settings, output)


def _load(model, prompts, dtype, device):
    from .. import loading
    from ..demo.pipeline import load_pipeline
    from ..demo.scenes import sample_scenes
    from ..errors import SettingError

    loading.quiet_loading()
    if model is None:
        return load_pipeline(dtype.torch, device), prompts or sample_scenes(SHOWN, seed=7, held_out=True).captions()
    pipe = loading.load_pipeline(model, dtype.torch, device)
    if not prompts and "prompt" in inspect.signature(pipe.__call__).parameters:
        raise SettingError("this pipeline wants a prompt: give one as an argument, or a file with --prompts")
    return pipe, prompts or [""] * SHOWN


@dataclass(frozen=True)
class Output:
    """Where pictures and numbers go."""

    grid: Path
    folder: Path | None
    console: Console
    format: Format

    def say(self, text: object) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def write(self, variants: dict[str, np.ndarray], jobs, titles: list[str] | None = None) -> None:
        """The grid, and the single pictures with their variant's prefix."""
        several = len(set(jobs[1])) > 1
        captions = [f"{p}, seed {s}".lstrip(", ") if several else p for p, s in zip(*jobs, strict=True)]
        grid.write_grid(self.grid, list(variants.values()), titles, captions)
        if self.folder is None:
            return
        for prefix, pictures in variants.items():
            for i, picture in enumerate(pictures):
                grid.to_image(picture).save(self.folder / f"{prefix}{i:04d}.png")


def _sample(pipe, methods, jobs, settings, output: Output) -> None:
    from .. import apply
    from ..sampling import sample

    with apply(pipe, *methods) if methods else nullcontext() as handle:
        if handle:
            output.say(_plan(handle, settings))
        with _progress(_steps(jobs, settings)) as on_step:
            pictures = sample(pipe, *jobs, settings, on_step)
        summary = handle.summary() if handle else None
    output.write({"": pictures}, jobs)
    if output.format is Format.json:
        summary = summary and summary.as_dict()
        typer.echo(json.dumps({"out": str(output.grid), "images": len(pictures), "summary": summary}))
        return
    if summary:
        output.say(summary)
        if len(pictures) > settings.batch:
            output.say("  (of the last of several pipeline calls)")
    output.say(f"wrote {output.grid} ({len(pictures)} images)")


def _plan(handle, settings) -> str:
    cut = "nothing is reused" if handle.cut is None else f"cut {handle.cut}"
    return f"plan  {handle.plan(settings.steps)}  {cut}"


def _compare(pipe, methods, jobs, settings, repeats: int, output: Output) -> None:
    from .. import apply
    from ..environment import environment
    from ..sampling import compare

    with apply(pipe, *methods) as handle:
        output.say(_plan(handle, settings))
    with _progress(3 * _steps(jobs, settings) + 2 * repeats * settings.steps) as on_step:  # the rival is shorter
        result = compare(pipe, methods, *jobs, settings, repeats, on_step)
    base = "plain" if result.unedited is None else "edited"
    kind = "cached" if result.summary.cut is not None else "edited"
    count = f"{settings.steps} steps"
    shown = {f"plain, {count}": ("plain-", result.plain)}
    if result.unedited is not None:
        shown = {f"plain, {count}": ("plain-", result.unedited), f"edited, {count}": ("edited-", result.plain)}
    shown[f"{kind} + edited" if base == "edited" else f"{kind}, {count}"] = (f"{kind}-", result.cached)
    if result.rival_steps != settings.steps:
        shown[f"{base}, {result.rival_steps} steps"] = (f"{base}-of-equal-macs-", result.rival)
    output.write(dict(shown.values()), jobs, list(shown))
    numbers = result.as_dict()
    if output.format is Format.json:
        job = {"prompts": jobs[0], "seeds": jobs[1], "steps": settings.steps, "guidance": settings.guidance}
        machine = environment(pipe.unet.device)
        typer.echo(json.dumps({"out": str(output.grid), "environment": machine, "job": job, **numbers}))
        return
    rival = numbers["equal_macs_plain_run"]
    output.say(result.summary)
    output.say(_row(kind, base, numbers["psnr_db"], numbers["speedup"]))
    if result.unedited_ratios:
        output.say(f"  {'':<16} and {_pace(numbers['speedup_over_unedited'])} the plain run's speed")
    if result.rival_steps != settings.steps:
        output.say(_row(f"{base}, {rival['steps']} steps", base, rival["psnr_db"], rival["speedup"]))
    if kind == "edited":
        output.say(
            "  How far an edit moves the pictures does not tell whether they are better: `unetaccel bench quality` does."
        )
    output.say(f"wrote {output.grid}, for each prompt: {'; '.join(shown)}")


def _row(name: str, base: str, psnr: dict, speed: dict) -> str:
    median, low, high = ("inf" if psnr[k] is None else f"{psnr[k]:.2f}" for k in ("median", "min", "max"))
    return f"  {name:<16} {median} dB to the {base} run ({low} to {high}), {_pace(speed)} its speed"


def _pace(speed: dict) -> str:
    spread = "timed once" if speed["min"] == speed["max"] else f"{speed['min']:.2f} to {speed['max']:.2f}"
    return f"{speed['median']:.2f}x ({spread})"


def _steps(jobs, settings) -> int:
    """Scheduler steps of sampling all jobs once."""
    return settings.steps * -(-len(jobs[0]) // settings.batch)


@contextmanager
def _progress(total: int):
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sampling", total=total)
        yield lambda: progress.advance(task)
