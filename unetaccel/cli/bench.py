"""``unetaccel bench``: measurements that can be rerun. ``quality`` runs a sweep from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options
from .app import app

bench = typer.Typer(help="Measure speed and quality side by side.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("quality")
def quality_command(
    sweep: Annotated[Path, typer.Argument(help="YAML file: methods x settings x steps x solvers x seeds.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where pictures and times are kept \\[default: runs/<name of the file>].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Result file to write \\[default: in the folder].")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="time, draw or judge; may be given more than once \\[default: all].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 \\[default: a GPU if there is one].")] = None,
) -> None:
    """Sample every row of a sweep with the same prompts and seeds, time them side by side, and judge them.

    Stopped and run again, it goes on where it was. For several processes start it with
    torchrun --nproc-per-node 2 -m unetaccel bench quality SWEEP.
    """
    from ..errors import SettingError
    from ..sweep.run import STAGES, read_checked, run_sweep

    stages = tuple(stage or STAGES)
    unknown = [s for s in stages if s not in STAGES]
    if unknown:
        raise SettingError(f"--stage {unknown[0]!r}: expected {', '.join(STAGES)}")
    console, folder = Console(stderr=True), folder or Path("runs") / sweep.stem
    out = out or folder / "result.json"
    if out.suffix.lower() != ".json":
        raise SettingError(f"--out {str(out)!r}: the result is JSON, so the name must end in .json")
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    try:
        result = run_sweep(read_checked(sweep), folder, out, stages, device and options.device(device), say)
    except KeyboardInterrupt:
        say(f"stopped; what is done is in {folder}: the same command goes on from there")
        raise typer.Exit(130) from None
    if result is not None:
        count = result["samples"]["images"]
        typer.echo(f"wrote {out} ({len(result['rows'])} rows of {count} picture{'s' * (count != 1)})")
        typer.echo(
            f"samples of each row are in {out.with_suffix('')}, which the report wants beside the file: unetaccel report {out}"
        )
