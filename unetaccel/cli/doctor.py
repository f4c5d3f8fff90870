"""``unetaccel doctor``: what can be applied to a pipeline, what conflicts, and what to choose."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from .app import app
from .options import Dtype, Format

MARKS = {"ok": "[green]ok[/]      ", "note": "[yellow]note[/]    ", "conflict": "[red]conflict[/]"}


@app.command("doctor")
def doctor_command(
    model: Annotated[str | None, typer.Option(help="Pipeline folder or hub id \\[default: the shipped demo].")] = None,
    steps: Annotated[int, typer.Option(help="Inference steps that it will be called with.", min=1)] = 50,
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type to load it in.")] = Dtype.float32,
    format: Annotated[Format, typer.Option(help="How results are printed.")] = Format.text,
) -> None:
    """Examine a pipeline without running it. Exits with 1 if nothing can be applied."""
    from ..demo.pipeline import WEIGHTS
    from ..doctor import diagnose
    from ..loading import load_pipeline, quiet_loading

    quiet_loading()
    found = diagnose(load_pipeline(model or WEIGHTS / "pipeline", dtype.torch), steps)
    if format is Format.json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        _print(found, Console())
    raise typer.Exit(0 if found.applies else 1)


def _print(found, console: Console) -> None:
    for finding in found.findings:
        console.print(MARKS[finding.level], finding.text, highlight=False, soft_wrap=True)
    for cost in found.costs:
        line = f"  cut {cost.b:>2}: a cached step costs {cost.share:6.1%} of a full one, {cost.feature_bytes / 2**20:.3g} MiB cached"
        console.print(line, highlight=False, soft_wrap=True)
    if found.applies:
        console.print(f"recommended: [bold]{found.recommended}[/] ({found.because})", highlight=False, soft_wrap=True)
