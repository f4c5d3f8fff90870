"""``unetaccel inspect``: the table of skips, and what a cached step would cost at each."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from . import options
from .app import app
from .options import Format


@app.command("inspect")
def inspect_command(
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub id, or a shape: sd15, sd21, sdxl, sdxl-refiner, svd, animatediff, ddpm-cifar, ddpm-lsun256 \\[default: the demo]."
        ),
    ] = None,
    latent: Annotated[
        str | None, typer.Option("--latent", help="Input size of the U-Net: 64, or 64x96 \\[default: the config's].")
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch; 2 for one image with guidance.", min=1)] = 1,
    format: Annotated[Format, typer.Option(help="How results are printed.")] = Format.text,
) -> None:
    """List a U-Net's skips: where each is made, and per cut the share of work left and the speedup it allows."""
    from ..inspection import caption_tokens, inspect_unet, unet_without_weights

    size = options.size(latent, "--latent")
    unet, name = unet_without_weights(model)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("counting")

        def on_cut(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        found = inspect_unet(unet, name, batch, size, caption_tokens(model), on_cut)
    if format is Format.json:
        typer.echo(json.dumps(found.as_dict()))
        return
    _print(found)


def _print(found) -> None:
    data = found.as_dict()
    height, width = data["size"]
    title = f"{data['model']}: batch {data['batch']}, input {height}x{width}, {data['tokens']} tokens, {data['full_macs'] / 1e9:.4g} GMACs a full step"
    table = Table(box=box.SIMPLE_HEAD, title=title, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("cut", "skip from", "skip", "enters", "F", "step", "cache"):
        table.add_column(name, justify="left" if name in ("skip from", "enters") else "right", no_wrap=True)
    for interval in data["cuts"][0]["ceiling"]:
        table.add_column(f"x{interval}", justify="right", no_wrap=True)
    for row in data["cuts"]:
        table.add_row(
            f"{row['b']}{'*' if row['b'] == data['auto_cut'] else ' '}",
            _short(row["source"]),
            f"{row['channels']}x{row['height']}x{row['width']}",
            _short(row["entry"]),
            str(row["feature_channels"]),
            f"{row['cached_share']:.1%}",
            f"{row['cached_bytes'] / 2**20:.3g}M",
            *(f"{v:.2f}" for v in row["ceiling"].values()),
        )
    console = Console()
    console.print(table)
    console.print(
        "* what cut='auto' takes. skip: channels x size; F: channels, of the same size. step: MACs of a cached step, as a share of a full one. cache: MiB of F. "
        "xN: the U-Net's speedup that the MACs allow at interval N.",
        highlight=False,
    )


def _short(path: str) -> str:
    """``down_blocks.0.attentions.1`` as ``down.0.1``."""
    for long, short in (("_blocks", ""), ("attentions.", ""), ("resnets.", ""), ("downsamplers.0", "down")):
        path = path.replace(long, short)
    return path
