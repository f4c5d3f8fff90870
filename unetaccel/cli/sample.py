"""``unetaccel sample``: pictures from the demo or any U-Net pipeline, with DeepCache, next to the plain run."""

from __future__ import annotations

import inspect
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from . import options
from .app import app
from .options import Dtype, Format

SHOWN = 8


@app.command("sample")
def sample_command(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, the demo's held-out captions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Pipeline folder or hub id [default: the shipped demo].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt per line.")] = None,
    seed: Annotated[str, typer.Option(help="Seeds: 0, 0,5,7 or 0-3; every prompt is sampled with each.")] = "0",
    steps: Annotated[int, typer.Option(help="Inference steps.")] = 20,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, dpm++, euler, euler-a, heun, unipc, ... [default: the pipeline's]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale [default: 3 for the demo, else the pipeline's].")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 512, or height x width: 512x768.")] = None,
    batch: Annotated[int, typer.Option(help="Images per pipeline call.")] = 8,
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    deepcache: Annotated[str | None, typer.Option(help="Apply DeepCache, for example interval=3,cut=1.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Sample plainly too, side by side, and time both.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Interleaved timings of --compare.", min=1)] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG grid to write.")] = Path("samples.png"),
    images: Annotated[Path | None, typer.Option(help="Folder for the single images too.")] = None,
    format: Annotated[Format, typer.Option(help="How results are printed.")] = Format.text,
) -> None:
    """Sample a grid of pictures, with DeepCache if asked, and say what it saved and what it changed."""
    from ..errors import SettingError
    from ..sampling import Settings, set_scheduler

    methods = (options.deepcache(deepcache),) if deepcache is not None else ()
    if compare and not methods:
        raise SettingError("--compare needs a method to compare with: add --deepcache interval=3,cut=0")
    if out.suffix.lower() != ".png":
        raise SettingError(f"--out {str(out)!r}: the grid is a PNG, so the name must end in .png")
    out.parent.mkdir(parents=True, exist_ok=True)  # before the work, so that nothing is lost to a wrong path
    chosen, seeds, pixels = options.prompts(prompt or [], prompts), options.seeds(seed), options.size(size)
    settings = Settings(steps, guidance if guidance is not None or model else 3.0, pixels, batch, negative)
    place = options.device(device)
    console = Console(stderr=format is Format.json)
    with console.status("loading the pipeline"):
        pipe, chosen = _load(model, chosen, dtype, place)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    pairs = [(p, s) for p in chosen for s in seeds]
    jobs = [p for p, _ in pairs], [s for _, s in pairs]
    result = _compare if compare else _sample
    result(pipe, methods, jobs, settings, out, images, console, format, repeats)


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


def _sample(pipe, methods, jobs, settings, out, images, console, format, repeats):
    from .. import apply
    from ..sampling import sample
    from . import grid

    with apply(pipe, *methods) if methods else nullcontext() as handle:
        if handle:
            console.print(f"plan  {handle.plan(settings.steps)}  cut {handle.cut}", highlight=False)
        with _progress(console, _total(pipe, jobs, settings, 1)) as on_step:
            pictures = sample(pipe, *jobs, settings, on_step)
        summary = handle.summary() if handle else None
    grid.write_grid(out, [pictures])
    _write_images(images, {"": pictures})
    if format is Format.json:
        typer.echo(json.dumps({"out": str(out), "images": len(pictures), "summary": summary and summary.as_dict()}))
        return
    if summary:
        console.print(summary, highlight=False, soft_wrap=True)
    console.print(f"wrote {out} ({len(pictures)} images)", highlight=False, soft_wrap=True)


def _compare(pipe, methods, jobs, settings, out, images, console, format, repeats):
    from .. import apply
    from ..environment import environment
    from ..sampling import compare
    from . import grid

    with apply(pipe, *methods) as handle:
        console.print(f"plan  {handle.plan(settings.steps)}  cut {handle.cut}", highlight=False)
    with _progress(console, _total(pipe, jobs, settings, 3, repeats)) as on_step:
        result = compare(pipe, methods, *jobs, settings, repeats, on_step)
    columns = [f"plain, {settings.steps}", "cached", f"plain, {result.rival_steps}"]
    grid.write_grid(out, [result.plain, result.cached, result.rival], columns)
    _write_images(images, {"plain-": result.plain, "cached-": result.cached, "rival-": result.rival})
    if format is Format.json:
        job = {"prompts": jobs[0], "seeds": jobs[1], "steps": settings.steps, "guidance": settings.guidance}
        machine = environment(pipe.unet.device)
        typer.echo(json.dumps({"out": str(out), "environment": machine, "job": job, **result.as_dict()}))
        return
    numbers = result.as_dict()
    rival = numbers["equal_macs_plain_run"]
    console.print(result.summary, highlight=False, soft_wrap=True)
    console.print(_row("cached", numbers["psnr_db"], numbers["speedup"]), highlight=False)
    console.print(_row(f"plain, {rival['steps']} steps", rival["psnr_db"], rival["speedup"]), highlight=False)
    console.print(
        f"wrote {out}: for each prompt plain, cached, and plain at equal MACs", highlight=False, soft_wrap=True
    )


def _row(name: str, psnr: dict, speed: dict) -> str:
    median, low, high = ("inf" if psnr[k] is None else f"{psnr[k]:.2f}" for k in ("median", "min", "max"))
    pace = f"{speed['median']:.2f}x its speed ({speed['min']:.2f} to {speed['max']:.2f})"
    return f"  {name:<16} {median} dB to the plain run ({low} to {high}), {pace}"


def _total(pipe, jobs, settings, ways: int, repeats: int = 0) -> int | None:
    """Scheduler steps of the whole job, roughly; only the rival's share is unknown beforehand."""
    batches = -(-len(jobs[0]) // settings.batch)
    return settings.steps * (batches * min(ways, 2) + repeats * 2)


@contextmanager
def _progress(console: Console, total: int):
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sampling", total=total)
        yield lambda: progress.advance(task)


def _write_images(folder: Path | None, groups: dict) -> None:
    if folder is None:
        return
    from . import grid

    folder.mkdir(parents=True, exist_ok=True)
    for prefix, pictures in groups.items():
        for i, picture in enumerate(pictures):
            grid.to_image(picture).save(folder / f"{prefix}{i:04d}.png")
