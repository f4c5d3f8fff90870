"""What ``scaling`` has trained, as a figure and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from ...report.figures import STYLE, load_pyplot
from ...report.series import COLOURS
from .scaling import MEASURES, VARIANTS

TITLES = {
    "loss": "Training loss",
    "gradient_norm": "Gradient norm before clipping",
    "feature_norm": "Norm of the decoder's output",
}


def write_figure(path: Path, runs: Sequence[dict]) -> None:
    """Three panels against training steps. Lines: mean of a window over seeds. Bands: from the least to the largest value of
    any step in the window, over seeds; for the loss, whose steps differ by their timesteps, of the seeds' means only.

    Raises:
        SettingError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    with pyplot.rc_context(STYLE):
        figure, plots = pyplot.subplots(1, len(MEASURES), figsize=(18, 5.2))
        for plot, measure in zip(plots, MEASURES, strict=True):
            for name, colour in zip(VARIANTS, COLOURS, strict=False):
                _draw(plot, [r["curve"] for r in runs if r["variant"] == name], measure, name, colour)
            plot.set_yscale("log")
            for format_ticks in (plot.yaxis.set_major_formatter, plot.yaxis.set_minor_formatter):
                format_ticks(lambda value, _: f"{value:g}")
            plot.set_xlabel("training step")
            plot.set_title(TITLES[measure], loc="left")
        plots[0].legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path, dpi=144)
        pyplot.close(figure)


def _draw(plot, curves: Sequence[list[dict]], measure: str, name: str, colour: str) -> None:
    if not curves:
        return
    windows = list(zip(*curves, strict=True))
    low, high = (1, 1) if measure == "loss" else (0, 2)
    x = [rows[0]["step"] for rows in windows]
    plot.plot(x, [mean(row[measure][1] for row in rows) for rows in windows], color=colour, label=name)
    lows = [min(row[measure][low] for row in rows) for rows in windows]
    highs = [max(row[measure][high] for row in rows) for rows in windows]
    plot.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)


def table(runs: Sequence[dict]) -> str:
    """Markdown: one row a variant, mean ± standard deviation over its seeds; the last window of each curve."""
    lines = [
        "| skips | seeds | held-out loss | training loss | gradient norm | feature norm | feature norm, widest | exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        own = [run for run in runs if run["variant"] == name]
        if own:
            last = [run["curve"][-1] for run in own]
            widest = [max(row["feature_norm"][2] / row["feature_norm"][0] for row in run["curve"]) for run in own]
            columns = [[run["held_out_loss"] for run in own], *([row[m][1] for row in last] for m in MEASURES), widest]
            cells = [_spread(column) for column in [*columns, [run["labels"]["exact"] for run in own]]]
            lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")
