"""The ``unetaccel`` command and how its errors look: one line, never a traceback for a user's mistake."""

from __future__ import annotations

import logging
import os
import sys
import warnings

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


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version and stop.", is_eager=True),
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point of the console script."""
    from . import doctor, inspect, sample  # noqa: F401 - they register themselves

    _quiet()
    try:
        app()
    except (UnetAccelError, OSError, ValueError) as error:
        if os.environ.get("UNETACCEL_TRACEBACK"):
            raise
        errors.print(f"[bold red]error:[/] {_one_line(error)}", highlight=False, soft_wrap=True)
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
