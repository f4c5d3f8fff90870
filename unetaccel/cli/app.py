"""The ``unetaccel`` command and how its errors look: one line, never a traceback for a user's mistake."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console

from ..errors import UnetAccelError

app = typer.Typer(
    help="Make pretrained diffusion U-Nets faster, without retraining them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Make pretrained diffusion U-Nets faster, without retraining them."""


def main() -> None:
    """Entry point of the console script."""
    from . import bench, doctor, inspect, latency, report, sample, tune  # noqa: F401 - they register themselves

    _quiet()
    try:
        app()
    except Exception as error:  # for a user, even a bug is better told in a line than in a traceback
        if os.environ.get("UNETACCEL_TRACEBACK"):
            raise
        text = _one_line(error)
        if not isinstance(error, UnetAccelError):
            text = f"{type(error).__name__}: {text} [dim](UNETACCEL_TRACEBACK=1 shows where)[/]"
        errors.print(f"[bold red]error:[/] {text}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()) or type(error).__name__)


def _quiet() -> None:
    """Show our own warnings as one line each, and none of the libraries' chatter."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", message="unetaccel")
    warnings.showwarning = lambda message, *_: errors.print(
        f"[yellow]warning:[/] {message}", highlight=False, soft_wrap=True
    )
