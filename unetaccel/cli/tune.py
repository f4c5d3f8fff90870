"""``unetaccel tune``: from a budget to a profile that keeps to it on held-out prompts."""

from __future__ import annotations

import inspect
import json
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from . import options
from .app import app
from .options import Dtype, Format

CALIBRATED, JUDGED, READ = 8, 8, 40
"""Captions of the demo to calibrate with, and to judge by; labels are right or wrong, so that it takes more of them."""


BudgetOption = Annotated[
    str,
    typer.Option(
        help="A floor, psnr=45 (dB), ssim=0.95 or labels=0.99, of means over held-out pictures; or a ceiling, macs=0.4 or time=0.5, shares of the plain run's."
    ),
]
CutOption = Annotated[
    list[int] | None, typer.Option(help="Skip index to choose from; again for more \\[default: 0 and 1].")
]
SkipTuningOption = Annotated[
    list[str] | None, typer.Option(help="Skip-Tuning to choose from beside none: 0.9; again for more.")
]


@app.command("tune")
def tune_command(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts, half of them held out; without any, the demo's captions.")
    ] = None,
    budget: BudgetOption = "psnr=45",
    model: Annotated[str | None, typer.Option(help="Pipeline folder or hub id \\[default: the shipped demo].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt per line, half of them held out.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="File with prompts to judge by; all others then calibrate.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Inference steps to tune for.")] = 50,
    scheduler: Annotated[str | None, typer.Option(help="As of sample \\[default: the pipeline's].")] = None,
    spacing: Annotated[str | None, typer.Option(help="Timestep spacing: leading, linspace or trailing.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale \\[default: 3 for the demo, else the pipeline's].")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 512, or height x width: 512x768.")] = None,
    batch: Annotated[int, typer.Option(help="Images per pipeline call.")] = 8,
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    cut: CutOption = None,
    skip_tuning: SkipTuningOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile to write.")] = Path("profile.yaml"),
    figure: Annotated[Path | None, typer.Option(help="PNG of the measured fronts too (needs matplotlib).")] = None,
    format: Annotated[Format, typer.Option(help="How results are printed.")] = Format.text,
) -> None:
    """Find the cheapest calibrated plan that keeps a floor of quality, or the best within a ceiling of cost."""
    from ..demo.pipeline import GUIDANCE
    from ..sampling import set_scheduler
    from ..tune import tune
    from ..tuning.budgets import budget_from

    wanted, pixels, place = budget_from(budget), options.size(size), options.device(device)
    texts = [None, *(skip_tuning or ())]
    edits = [(), *((options.method("skip_tuning", text),) for text in skip_tuning or ())]
    scale = guidance if guidance is not None or model else GUIDANCE
    _check_outputs(out, figure)
    given = options.prompts(prompt or [], prompts), options.prompts([], held_out, "--held-out") if held_out else None
    console = Console(stderr=format is Format.json)
    with console.status("loading the pipeline"):
        pipe = _load(model, dtype, place)
    jobs = _jobs(pipe, model, *given, wanted.kind)
    if scheduler is not None or spacing is not None:
        set_scheduler(pipe, scheduler, spacing)
    with _progress() as tell:
        tuned = tune(pipe, **jobs, budget=wanted, steps=steps, guidance=scale, cuts=tuple(cut or (0, 1)), edits=edits,
                     size=pixels, batch=batch, on_progress=tell)  # fmt: skip
    tuned.save(out)
    if figure is not None:
        from ..report.front import write_front

        write_front(figure, tuned)
    if format is Format.json:
        typer.echo(json.dumps({"out": str(out), "figure": figure and str(figure), **tuned.as_dict()}))
        return
    how = {"--model": model, "--scheduler": scheduler, "--spacing": spacing, "--size": size,
           "--guidance": guidance, "--skip-tuning": texts[edits.index(tuned.chosen.edits)]}  # fmt: skip
    _print(console, tuned, out, figure, how)


def _check_outputs(out: Path, figure: Path | None) -> None:
    """Raise before the work if something could not be written."""
    from ..errors import SettingError
    from ..profile import grams_of

    grams_of(out)
    options.writable_file("--out", out)
    if figure is None:
        return
    if figure.suffix.lower() != ".png":
        raise SettingError(f"--figure {str(figure)!r}: the figure is a PNG, so the name must end in .png")
    from ..report.figures import load_pyplot

    load_pyplot()
    options.writable_file("--figure", figure)


def _load(model: str | None, dtype: Dtype, device):
    from .. import loading
    from ..demo.pipeline import load_pipeline

    loading.quiet_loading()
    return loading.load_pipeline(model, dtype.torch, device) if model else load_pipeline(dtype.torch, device)


def _jobs(pipe, model: str | None, prompts: list[str], held_out: list[str] | None, kind: str) -> dict:
    """What ``tune`` calibrates with and judges by."""
    from ..demo.scenes import sample_scenes
    from ..errors import SettingError

    if "prompt" not in inspect.signature(pipe.__call__).parameters:
        return {"prompts": [""] * (CALIBRATED + JUDGED)}
    if model is not None and not prompts:
        raise SettingError(
            "this pipeline wants prompts: give some as arguments, or a file with --prompts; 16 are enough"
        )
    if prompts:
        return {"prompts": prompts, "held_out": held_out}
    judged = READ if kind == "labels" else JUDGED
    own = held_out or sample_scenes(judged, seed=900, held_out=True).captions()
    return {"prompts": sample_scenes(CALIBRATED, seed=100).captions(), "held_out": own}


@contextmanager
def _progress():
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("calibrating", total=1.0)
        yield lambda share, text: progress.update(task, completed=share, description=text)


def _print(console: Console, tuned, out: Path, figure: Path | None, how: dict[str, object]) -> None:
    def say(text: object) -> None:
        console.print(str(text), highlight=False, markup=False, soft_wrap=True)

    say(tuned)
    say(f"wrote {out}" + (f" and {figure}" if figure else ""))
    given = [part for name, value in how.items() if value is not None for part in (name, str(value))]
    command = ["unetaccel", "sample", *given, "--steps", str(tuned.chosen.steps), "--profile", str(out), "--compare"]
    say(f"use it: {shlex.join(command)}")
