"""``unetaccel report``: result files as an HTML page, PNG figures and Markdown tables."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .app import app


@app.command("report")
def report_command(
    results: Annotated[list[Path], typer.Argument(help="Result files (JSON) of a quality sweep or of bench/speed.py.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="Folder for PNG figures too (needs matplotlib).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file for tables too.")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric shown first \\[default: each file's first].")] = None,
) -> None:
    """Show results: one page that holds everything and fetches nothing, and what a README needs."""
    from .. import report
    from ..report.results import QualityResult

    found = [report.load(path) for path in results]
    sweeps = [result for result in found if isinstance(result, QualityResult)]
    if metric is not None:
        _check_metric(metric, sweeps)
    _check_outputs(out, png, markdown)
    if png is not None:
        from ..report.figures import write_figures

        for path in write_figures(png, sweeps, metric):
            typer.echo(f"wrote {path}")
    _warn_of_lost_pictures(sweeps)
    report.write_page(out, found, metric)
    typer.echo(f"wrote {out}")
    if markdown is not None:
        markdown.write_text(report.markdown(found, metric), encoding="utf-8")
        typer.echo(f"wrote {markdown}")


def _warn_of_lost_pictures(sweeps: list) -> None:
    from ..report.images import lost_rows

    for result in sweeps:
        if lost := lost_rows(result):
            folder = result.path.with_suffix("")
            warnings.warn(
                f"unetaccel: {result.path}: the pictures of {lost} of {len(result.rows)} rows are not where the file names them "
                f"(usually {str(folder)!r}, which has to move along with it): the page will lack them",
                stacklevel=2,
            )


def _check_metric(metric: str, sweeps: list) -> None:
    from ..errors import SettingError

    known = list(dict.fromkeys(name for result in sweeps for name in result.metrics))
    if metric not in known:
        raise SettingError(
            f"--metric {metric!r} is in none of these files; they have {', '.join(known) or 'no metric'}"
        )


def _check_outputs(out: Path, png: Path | None, markdown: Path | None) -> None:
    """Raise before the work if something could not be written."""
    from ..errors import SettingError

    if out.suffix.lower() not in (".html", ".htm"):
        raise SettingError(f"--out {str(out)!r}: the page is HTML, so the name must end in .html")
    for option, path in (("--out", out), ("--png", png), ("--markdown", markdown)):
        if path is None:
            continue
        if option == "--png" and path.is_file():
            raise SettingError(f"--png {str(path)!r} is a file: name a folder")
        folder = path if option == "--png" else path.parent
        try:
            if option != "--png" and path.is_dir():
                raise IsADirectoryError("it is a directory")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SettingError(f"{option} {str(path)!r} cannot be written: {error.strerror or error}") from error
