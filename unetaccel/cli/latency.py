"""``unetaccel bench latency``: plain, DeepCache 0.1.1 and ours on one U-Net, per step and per loop, beside their ceilings."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options
from .bench import bench
from .options import Dtype

ON_A_CPU = 0.25
WIDTH = 180
"""Columns of a table that goes into a file."""


AGAIN = "may be given more than once"
Cases = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Shape and batch, as sd15:8, or sd15-controlnet:1; {AGAIN} "
        "\\[default: sd15:1, sd15:8, sd15-controlnet:1, sdxl:1, sdxl:4, svd:1, animatediff:1]."
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        help="plain, plain-inductor, plain-graphs, deepcache, deepcache-blocks, ours, ours-precompute, ours-inductor, ours-graphs, ours-all; "
        f"{AGAIN} \\[default: all that run here]."
    ),
]
Intervals = Annotated[list[int] | None, typer.Option(help=f"Interval; {AGAIN} \\[default: 2, 3, 5].", min=2)]
Cuts = Annotated[list[int] | None, typer.Option(help=f"Cut; {AGAIN} \\[default: 0].", min=0)]
Scale = Annotated[
    float | None,
    typer.Option(help="Factor on widths, sizes and frames \\[default: 1, on a CPU 0.25].", min=0.01, max=4),
]


@bench.command("latency")
def latency_command(
    case: Cases = None,
    variant: Variants = None,
    interval: Intervals = None,
    cut: Cuts = None,
    steps: Annotated[int, typer.Option(help="Steps of a sampling loop.", min=1)] = 50,
    repeats: Annotated[int, typer.Option(help="Loops of each row, interleaved, after one to warm up.", min=1)] = 5,
    scale: Scale = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[Dtype | None, typer.Option(help="\\[default: float16, on a CPU float32].")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Weights of convolutions as (N, H, W, C).")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads \\[default: torch's].", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file to write, with a CSV file and figures beside it.")
    ] = None,
) -> None:
    """Time whole sampling loops of U-Nets with random weights in the shapes of known models: no hub is needed.

    Every variant is compared with its reference first; if one is wrong, its case is not timed and the command fails.
    """
    import torch

    from ..latency.jobs import CASES, read_case
    from ..latency.measure import Settings
    from ..latency.run import run
    from ..latency.variants import chosen
    from ..sweep.timing import threads as with_threads

    settings = Settings(tuple(interval or (2, 3, 5)), tuple(cut or (0,)), steps, repeats)
    cases = [read_case(text) for text in case or map(str, CASES)]
    variants, where = chosen(variant), options.device(device)
    on_cpu = where.type == "cpu"
    kind = dtype.torch if dtype else (torch.float32 if on_cpu else torch.float16)
    scale = scale or (ON_A_CPU if on_cpu else 1.0)
    _check(out)
    with with_threads(threads):
        result = run(
            cases, variants, settings, scale, where, kind, channels_last, _say, lambda found: _on_case(found, out)
        )
    _print_bars(result)
    if out is not None:
        _draw(out, result)
    _refuse_nothing(variant, result)


def _say(text: str) -> None:
    Console(stderr=True).print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def _on_case(result: dict, out: Path | None) -> None:
    """Show the case that is done, and keep what there is."""
    from ..latency.result import write_csv, write_json
    from ..latency.table import print_case

    print_case(result["cases"][-1], Console(width=None if sys.stdout.isatty() else WIDTH))
    if out is not None:
        write_json(out, result)
        write_csv(out.with_suffix(".csv"), result)


def _check(out: Path | None) -> None:
    """Raise before the work rather than after it if the result could not be written."""
    from ..errors import SettingError

    if out is None:
        return
    if out.suffix.lower() != ".json":
        raise SettingError(f"--out {str(out)!r}: the result is JSON, so the name must end in .json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise SettingError(f"--out {str(out)!r} cannot be written: {error.strerror or error}") from error


def _refuse_nothing(asked: list[str] | None, result: dict) -> None:
    """Raise if of the variants that were asked for none could run: scripts would take that for a measurement."""
    from ..errors import SettingError

    reasons = {name: why for case in result["cases"] for name, why in case["skipped"].items() if name in (asked or ())}
    if asked and all(set(asked) <= case["skipped"].keys() for case in result["cases"]):
        told = "; ".join(f"{name} ({why})" for name, why in reasons.items())
        raise SettingError(f"none of the variants asked for ran: {told}")


def _print_bars(result: dict) -> None:
    console = Console()
    for bar in result["bars"]:
        mark = {True: "[green]met[/]   ", False: "[red]missed[/]", None: "[dim]-[/]     "}[bar["met"]]
        found = f"{bar['found']:.3g}" if bar["found"] is not None else f"not measured ({bar['why']})"
        console.print(f"{mark} {bar['text']}: {found}, wanted {bar['wanted']:g}", highlight=False, soft_wrap=True)


def _draw(out: Path, result: dict) -> None:
    from ..errors import SettingError
    from ..latency.plots import write_plots

    typer.echo(f"wrote {out} and {out.with_suffix('.csv')}")
    try:
        for path in write_plots(out, result):
            typer.echo(f"wrote {path}")
    except SettingError as error:
        typer.echo(f"no figures: {error}")
