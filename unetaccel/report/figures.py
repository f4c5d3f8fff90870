"""PNG figures for READMEs: quality against time and against MACs, one panel for each number of steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..errors import SettingError
from .axes import Axis, Place, axes, places, reference
from .results import QualityResult
from .rows import Metric, Row
from .series import COLOURS, Family, families, moving_name, tag
from .verdicts import front

INK, SOFT, GRID, FRONT = "#1b2430", "#5b6675", "#dfe3e9", "#f2c94c"
STYLE = {
    "font.size": 13, "axes.edgecolor": GRID, "axes.labelcolor": INK, "axes.titlesize": 14, "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "text.color": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelsize": 12, "ytick.labelsize": 12, "figure.facecolor": "white",
}  # fmt: skip
FILES = {"time": "speedup", "macs": "macs"}
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def write_figures(folder: Path, results: Sequence[QualityResult], metric: str | None = None) -> list[Path]:
    """``<file>-<metric>-time.png`` and ``-macs.png`` for each result, or a heat map of the setting that it varies.

    Raises:
        SettingError: matplotlib is not installed.
    """
    from .heatmap import write_heatmaps

    written = []
    for result in results:
        leading = result.leading(metric)
        maps = write_heatmaps(folder, result, leading) if leading else []
        written += maps
        if maps:  # of rows that cost alike
            continue
        for name, axis in FILES.items() if leading else ():
            path = folder / f"{result.path.stem}-{leading}-{name}.png"
            if write_figure(path, result, leading, axis):
                written.append(path)
    return written


def write_figure(path: Path, result: QualityResult, metric: str, axis: str) -> bool:
    """One figure of ``metric`` against ``axis`` (``"speedup"``, ``"seconds"`` or ``"macs"``); false if nothing can be drawn."""
    pyplot = load_pyplot()
    panels = [panel for panel in _panels(result, metric, axis) if panel]
    if not panels:
        return False
    with pyplot.rc_context(STYLE):
        figure, plots = pyplot.subplots(1, len(panels), figsize=(1.5 + 5.6 * len(panels), 5.6), squeeze=False)
        kinds, log = families(result), _wide(panels, result.metrics[metric])
        factor, prefix = _prefix(panels) if axis == "macs" else (1, "")
        for plot, (title, cost, points) in zip(plots[0], panels, strict=True):
            _limits(plot, points, factor)
            _draw(plot, points, result.metrics[metric], cost, kinds, log, factor)
            plot.set_xlabel(cost.label + (f" ({prefix})" if prefix else "") + (" →" if cost.sign > 0 else ""))
            plot.set_title(title, loc="left")
        plots[0][0].set_ylabel(_quality_label(result.metrics[metric]))
        _legend(figure, result, {p[0].id for _, _, points in panels for p in points}, ceilings=axis != "macs")
        figure.suptitle(result.title, x=0.01, ha="left", fontsize=15)
        figure.tight_layout(rect=(0, 0.02, 1, 1))
        figure.canvas.draw()  # from here on the panels stay where they are, and tags can be kept apart
        for plot, (_, _, points) in zip(plots[0], panels, strict=True):
            _tags(plot, points, kinds, factor)
        figure.savefig(path, dpi=144, bbox_inches="tight")
        pyplot.close(figure)
    return True


def load_pyplot():
    """Matplotlib's pyplot, without a window. Raises ``SettingError`` if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise SettingError("PNG figures need matplotlib: pip install 'unetaccel[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


Point = tuple[Row, Place, float, float]  # row, place on the axis of cost, quality and its sd


def _panels(result: QualityResult, metric: str, axis: str) -> list[tuple[str, Axis, list[Point]] | None]:
    """A panel for each solver and number of steps: its rows, and the plain runs between the cheapest of them and the reference."""
    kinds = dict.fromkeys((row.solver, row.steps) for row in result.rows if row.kind != "plain" and row.steps)
    return [_panel(result, metric, axis, *kind) for kind in sorted(kinds, key=lambda kind: (kind[0], -kind[1]))]


def _panel(result: QualityResult, metric: str, axis: str, solver: str, steps: int):
    base = reference(result, solver, steps)
    rows = [row for row in result.rows if row.solver == solver and row.steps == steps]
    near = {id for row in rows for id in row.rivals.values()}
    least = min((row.macs for row in rows if row.macs), default=0)
    plain = [
        row for row in result.rows if row.kind == "plain" and row.solver == solver and row.steps and row not in rows
    ]
    rows += [row for row in plain if row.id in near or (row.steps < steps and (row.macs or 0) >= least)]
    points = []
    for row in rows:
        place, score = places(result, row, base).get(axis), result.score(row, metric, base)
        if place and score and score.value is not None:
            points.append((row, place, score.value, score.sd or 0))
    return (f"{steps} steps" + (f", {solver}" if solver else ""), axes(base)[axis], points) if points else None


def _wide(panels, metric: Metric) -> bool:
    """Distances that differ by more than a factor of four are drawn on a logarithmic scale."""
    values = [p[2] for _, _, points in panels for p in points]
    return metric.better == "lower" and min(values) > 0 and max(values) / min(values) > 4


def _draw(plot, points: list[Point], metric: Metric, cost: Axis, kinds: dict[str, Family], log: bool, factor) -> None:
    if metric.better:
        _front(plot, points, metric, cost, factor)
    for curve in _curves(points, kinds):
        _curve(plot, curve, kinds[curve[0][0].id], factor)
    if log:
        plot.set_yscale("log")
        _plain_numbers(plot.yaxis)


def _limits(plot, points: list[Point], factor: float) -> None:
    """The costs' axis by the points themselves: one noisy time would push all others together."""
    x = [p[1].x / factor for p in points] + [p[1].limit / factor for p in points if p[1].limit]
    room = 0.09 * (max(x) - min(x) or max(x))
    plot.set_xlim(min(x) - room, max(x) + room)
    plot.margins(y=0.1)


def _prefix(panels) -> tuple[float, str]:
    """The factor of a thousand that all panels are written in."""
    most = max(p[1].x for _, _, points in panels for p in points)
    return next(pair for pair in PREFIXES if most >= pair[0] or pair[0] == 1)


def _plain_numbers(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _curves(points: list[Point], kinds: dict[str, Family]) -> list[list[Point]]:
    """Points that are joined by a line, from the left; the plain runs come last, on top."""
    found: dict[Family, list[Point]] = {}
    for point in points:
        found.setdefault(kinds[point[0].id], []).append(point)
    return [sorted(found[f], key=lambda p: p[1].x) for f in sorted(found, key=lambda f: f.kind == "plain")]


def _style(family: Family) -> dict:
    if family.kind == "plain":
        return {"color": INK, "marker": "o", "markersize": 4.5, "linewidth": 2.2, "markeredgecolor": "white"}
    found = {"color": COLOURS[family.colour], "linewidth": 2}
    if family.kind == "peer":
        return found | {
            "marker": "o",
            "markersize": 11,
            "markerfacecolor": "none",
            "linestyle": (0, (4, 3)),
            "linewidth": 1.2,
        }
    return found | {"marker": "os^Dvp"[family.colour], "markersize": 8, "markeredgecolor": "white"}


def _curve(plot, curve: list[Point], family: Family, factor: float) -> None:
    x, y = ([f(p) for p in curve] for f in (lambda p: p[1].x / factor, lambda p: p[2]))
    plot.plot(x, y, zorder=3, **_style(family))
    low, high = ([abs(p[1].x - end) / factor for p, end in zip(curve, ends, strict=True)]
                 for ends in ([p[1].low for p in curve], [p[1].high for p in curve]))  # fmt: skip
    colour = _style(family)["color"]
    plot.errorbar(
        x,
        y,
        xerr=(low, high),
        yerr=[p[3] for p in curve],
        fmt="none",
        ecolor=colour,
        elinewidth=1.2,
        alpha=0.5,
        zorder=2,
    )
    for point in curve:
        if point[1].limit and family.kind == "method":
            end = point[1].limit / factor
            plot.plot([point[1].x / factor, end], [point[2]] * 2, color=colour, linewidth=1, linestyle=":", zorder=1)
            plot.plot([end], [point[2]], color=colour, marker="|", markersize=11, zorder=1)


def _front(plot, points: list[Point], metric: Metric, cost: Axis, factor: float) -> None:
    points = [p for p in points if not (p[0].edits_skips and metric.to == "plain")]  # an edit is meant to move pictures
    best = front([(p[1].x, p[2]) for p in points], cost.sign, 1 if metric.better == "higher" else -1)
    x, y = [points[i][1].x / factor for i in best], [points[i][2] for i in best]
    where = "post" if cost.sign < 0 else "pre"
    order = sorted(range(len(x)), key=x.__getitem__)
    plot.step([x[i] for i in order], [y[i] for i in order], where=where, color=FRONT, linewidth=6, alpha=0.55, zorder=1)


def _tags(plot, points: list[Point], kinds: dict[str, Family], factor: float) -> None:
    """The moving setting beside each point, where it covers neither a point nor another tag."""
    from matplotlib.patheffects import withStroke

    scale, halo = plot.figure.dpi / 72, [withStroke(linewidth=3, foreground="white")]
    spots = [plot.transData.transform((p[1].x / factor, p[2])) for p in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    for (row, *_), (x, y) in sorted(zip(points, spots, strict=True), key=lambda pair: pair[0][0].kind == "plain"):
        text = tag(row)
        if row.kind == "peer" or not text or len(text) > 6:
            continue
        wide, high = 8 * len(text) * scale, 12 * scale
        for dx, dy in ((7, 5), (7, -17), (-7 - 8 * len(text), 5), (-7 - 8 * len(text), -17)):
            box = (x + dx * scale, y + dy * scale, x + dx * scale + wide, y + dy * scale + high)
            if not any(box[0] < t[2] and box[2] > t[0] and box[1] < t[3] and box[3] > t[1] for t in taken):
                taken.append(box)
                colour = _style(kinds[row.id])["color"]
                plot.annotate(text, plot.transData.inverted().transform((x, y)), xytext=(dx, dy), textcoords="offset points",
                              color=colour, fontsize=11, fontweight="bold", zorder=5, path_effects=halo)  # fmt: skip
                break


def _legend(figure, result: QualityResult, shown: set[str], ceilings: bool) -> None:
    from matplotlib.lines import Line2D

    found = dict.fromkeys(family for id, family in families(result).items() if id in shown)
    handles = [Line2D([], [], label=family.name, **_style(family)) for family in found]
    handles.append(Line2D([], [], label="Pareto front", color=FRONT, linewidth=6, alpha=0.55))
    if ceilings:
        handles.append(Line2D([], [], label="ceiling by MACs", color=SOFT, linestyle=":", marker="|", markersize=11))
    moving = moving_name(result)
    title = f"numbers at points: {moving}; at the plain runs: steps" if moving else None
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.05), ncols=3, frameon=False, fontsize=12,
                  title=title, title_fontsize=11)  # fmt: skip


def _quality_label(metric: Metric) -> str:
    unit = f" ({metric.unit})" if metric.unit else ""
    better = {"lower": "\nlower is better", "higher": "\nhigher is better"}.get(metric.better, "")
    return textwrap.fill(metric.label + unit, 44) + better
