"""Heat maps: one setting against the number of steps, each cell compared with the run that lacks the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import texts
from .figures import INK, STYLE, load_pyplot
from .results import QualityResult
from .rows import Metric, Row, number
from .verdicts import paired_text

LEAST = 3
"""So many values of a setting are worth a map."""
COLUMNS = 4
NEUTRAL_AT_ONE = ("rho_bottom", "kappa", "innermost", "b1", "b2", "s1", "s2")
"""Settings whose value 1 is the run without the method."""


@dataclass(frozen=True)
class Panel:
    """One map: rows are step counts, columns values of the setting, of which the last stands for the run without it."""

    title: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    cells: dict[tuple[int, float], Row]
    """By steps and value."""


def write_heatmaps(folder: Path, result: QualityResult, metric: str) -> list[Path]:
    """``<file>-<metric>-<setting>.png`` for each setting that the sweep varies enough."""
    written = []
    for method, key in moving_settings(result):
        written.append(folder / f"{result.path.stem}-{metric}-{key}.png")
        _draw(written[-1], result, metric, key, panels_of(result, method, key))
    return written


def moving_settings(result: QualityResult) -> list[tuple[str, str]]:
    """(method, setting) of ``LEAST`` or more different numbers, of those that are neutral at 1."""
    found: dict[tuple[str, str], set] = {}
    for row in result.rows:
        for method, settings in row.methods.items() if row.kind == "method" else ():
            for key, value in settings.items() if isinstance(settings, dict) else ():
                if key in NEUTRAL_AT_ONE and number(value) is not None:
                    found.setdefault((method, key), set()).add(value)
    return [name for name, values in found.items() if len(values) >= LEAST]


def panels_of(result: QualityResult, method: str, key: str) -> list[Panel]:
    """One panel for each solver and whatever else is applied; the run without the method stands at value 1."""
    found: dict[tuple, dict[tuple[int, float], Row]] = {}
    bases: dict[tuple, dict[tuple[int, float], Row]] = {}
    alone = {(row.solver, row.steps, str(row.methods)): row for row in result.rows if row.kind != "peer"}
    for row in result.rows:
        settings = row.methods.get(method)
        if row.kind != "method" or not isinstance(settings, dict) or number(settings.get(key)) is None:
            continue
        rest = {k: v for k, v in settings.items() if k != key}
        others = {name: v for name, v in row.methods.items() if name != method}
        name = (row.solver, str(others), str(rest), _words(others, rest))
        found.setdefault(name, {})[row.steps, float(settings[key])] = row
        without = alone.get((row.solver, row.steps, str(others)))
        if without is not None:
            bases.setdefault(name, {})[row.steps, 1.0] = without
    for name, without in bases.items():  # last: a row whose setting is 1 may have others that are not neutral
        found[name].update(without)
    return [
        Panel(f"{solver}{words}", tuple(sorted({s for s, _ in cells})), tuple(sorted({v for _, v in cells})), cells)
        for (solver, _, _, words), cells in found.items()
    ]


def _words(others: dict, rest: dict) -> str:
    parts = [f"{name} {' '.join(f'{k} {v}' for k, v in (settings or {}).items())}" for name, settings in others.items()]
    return "".join(f", {part}" for part in [*parts, *(f"{k} {v}" for k, v in rest.items())])


def change(panel: Panel, metric: Metric, at: tuple[int, float]) -> float | None:
    """How much better a cell is than the run without the method, as a share of that run's value; negative is worse."""
    score, base = (
        panel.cells[key].scores.get(metric.name) if key in panel.cells else None for key in (at, (at[0], 1.0))
    )
    if not (score and base and score.value is not None and base.value):
        return None
    return (score.value - base.value) / abs(base.value) * (-1 if metric.better == "lower" else 1)


def best_value(panel: Panel, metric: Metric, steps: int) -> float | None:
    """The setting whose metric is best at this number of steps."""
    scores = {v: panel.cells[steps, v].scores.get(metric.name) for v in panel.values if (steps, v) in panel.cells}
    known = {v: s.value for v, s in scores.items() if s and s.value is not None}
    choose = min if metric.better == "lower" else max
    return choose(known, key=known.__getitem__, default=None)


def best_cells(result: QualityResult, name: str) -> dict[str, tuple[list[str], list[list[str]]]]:
    """By setting that the sweep varies: a table's head and lines, the best value of each panel at each number of steps.

    A cell says the value, what it gives, and its difference to the run without the method.
    """
    found, metric = {}, result.metrics[name]
    for method, key in moving_settings(result):
        panels = panels_of(result, method, key)
        steps = sorted({count for panel in panels for count in panel.steps})
        lines = [[panel.title, *(_best(panel, metric, count) for count in steps)] for panel in panels]
        found[key] = (["", *(f"{count} steps" for count in steps)], lines)
    return found


def _best(panel: Panel, metric: Metric, steps: int) -> str:
    value = best_value(panel, metric, steps)
    if value is None:
        return texts.NONE
    score, base = (
        panel.cells[at].scores.get(metric.name) if at in panel.cells else None for at in ((steps, value), (steps, 1.0))
    )
    if value == 1:
        return f"none: {score.value:.3g}"
    return f"{value:g}: {score.value:.3g}, {paired_text(metric, score, base)}"


def _draw(path: Path, result: QualityResult, name: str, key: str, panels: list[Panel]) -> None:
    pyplot, metric = load_pyplot(), result.metrics[name]
    changes = [abs(c) for p in panels for at in p.cells if (c := change(p, metric, at)) is not None]
    limit = max(sorted(changes)[int(0.9 * (len(changes) - 1))], 0.02) if changes else 1
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with pyplot.rc_context(STYLE | {"axes.grid": False}):
        figure, plots = pyplot.subplots(lines, columns, figsize=(1 + 4.4 * columns, 1.4 + 3.4 * lines), squeeze=False)
        for plot in plots.flat[len(panels) :]:
            plot.set_axis_off()
        for plot, panel in zip(plots.flat, panels, strict=False):
            _panel(plot, panel, metric, key, limit)
        sign = "lower" if metric.better == "lower" else "higher"
        figure.suptitle(
            f"{metric.label} ({sign} is better); green: better than without the method, framed: best of its steps.\n"
            "Below: difference to the run without it, paired by seed, ± sd over seeds; * larger than that sd.",
            x=0.01,
            ha="left",
        )
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def _cell(panel: Panel, metric: Metric, at: tuple[int, float]) -> str:
    """The value, and below it how it differs from the run without the method; starred where more than its spread."""
    score = panel.cells[at].scores[metric.name]
    base = panel.cells.get((at[0], 1.0))
    told = paired_text(metric, score, base.scores.get(metric.name)) if base and at[1] != 1 else texts.NONE
    lines = [f"{score.value:.3g}", *(told.replace(" ±", "\n±").split("\n") if told != texts.NONE else ())]
    return "\n".join(lines)


def _panel(plot, panel: Panel, metric: Metric, key: str, limit: float) -> None:
    from matplotlib.patches import Rectangle

    grid = [[change(panel, metric, (s, v)) for v in panel.values] for s in panel.steps]
    shown = [[float("nan") if c is None else c for c in line] for line in grid]
    plot.imshow(shown, cmap="RdYlGn", vmin=-1.4 * limit, vmax=1.4 * limit, aspect="auto")  # text stays legible
    for i, steps in enumerate(panel.steps):
        best = best_value(panel, metric, steps)
        for j, value in enumerate(panel.values):
            row = panel.cells.get((steps, value))
            score = row and row.scores.get(metric.name)
            if score and score.value is not None:
                plot.text(j, i, _cell(panel, metric, (steps, value)), ha="center", va="center", color=INK, fontsize=9.5)
            if value == best:
                plot.add_patch(Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, edgecolor=INK, linewidth=2))
    plot.set_xticks(range(len(panel.values)), ["none" if v == 1 else f"{v:g}" for v in panel.values])
    plot.set_yticks(range(len(panel.steps)), map(str, panel.steps))
    plot.set_xlabel(key)
    plot.set_ylabel("steps")
    plot.set_title(panel.title, loc="left", fontsize=12)
