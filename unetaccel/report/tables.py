"""Markdown tables for READMEs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from . import texts
from .heatmap import best_cells
from .results import QualityResult, SpeedResult
from .rows import Row, Spread
from .verdicts import finding, paired_text, verdict

RIVAL = "plain run of equal MACs"
SPEED = ("case", "interval, cut", "speedup", "ceiling", "of ceiling", "our time / DeepCache 0.1.1's", RIVAL)
ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
MARKS = {"row": "▲", "level": "≈", "plain": "▼"}


NOISY = "its repeats lie far apart, or are one, or it is faster than its MACs allow: trust the MACs"


def markdown(results: Sequence[QualityResult | SpeedResult], metric: str | None = None) -> str:
    """All results as Markdown; ``metric`` is the column of quality where a result has it, else its first."""
    return "\n".join(_speed(r) if isinstance(r, SpeedResult) else _quality(r, metric) for r in results)


def _quality(result: QualityResult, metric: str | None) -> str:
    leading = result.leading(metric)
    head = ["row", "steps", "speedup", "ceiling"]
    lines = [_line(result, row, leading) for row in _shown(result)]
    if not leading:
        return _table(result.title, head, [line[:4] for line in lines])
    shown = result.metrics[leading]
    if result.edits_skips:
        return _edits(result, leading)
    column = shown.label + (f", {shown.unit}" if shown.unit else "") + ARROWS[shown.better]
    notes = [
        finding(result, leading),
        "Speedup over the plain run of as many steps: median (20th to 80th percentile); ± is the standard deviation over seeds.",
        "▲ the row is ahead, ≈ level within both spreads, ▼ the plain run is ahead.",
    ]
    if any(row.noisy for row in _shown(result)):
        notes.append(f"~ a noisy time: {NOISY}.")
    return f"{_table(result.title, [*head, column, RIVAL], lines)}\n{' '.join(notes)}\n"


def best_tables(result: QualityResult, metric: str) -> str:
    """What is best of each setting that the sweep varies, by number of steps."""
    found = best_cells(result, metric).items()
    return "".join(f"{_table(f'{result.title}: best {key}', *cells)}\n" for key, cells in found)


def _edits(result: QualityResult, metric: str) -> str:
    """Runs with edited skips, each beside the one without: they cost alike, and differ by less than the seeds do."""
    shown = result.metrics[metric]
    unit = f", {shown.unit}" if shown.unit else ""
    head = [
        "row",
        "solver",
        "steps",
        "time, of plain",
        shown.label + unit + ARROWS[shown.better],
        "without the edit",
        "difference",
    ]
    lines = []
    for row in result.ordered():
        base = result.without_edits(row)
        if base is not None:
            pace = texts.NONE if row.speedup is None or not row.speedup.median else f"{1 / row.speedup.median:.2f}x"
            scores = [r.scores.get(metric) for r in (row, base)]
            lines.append(
                [row.label, row.solver, str(row.steps), pace, *map(texts.score, scores), paired_text(shown, *scores)]
            )
    note = "Differences are paired by seed, ± their standard deviation over seeds; a star marks those larger than it."
    return f"{best_tables(result, metric)}{_table(result.title, head, lines)}\n{note}\n"


def _shown(result: QualityResult) -> list[Row]:
    """Without the plain runs that stand beside the others anyway."""
    rivals = {id for row in result.rows for id in row.rivals.values()}
    starts = {plain.id for row in result.rows if row.kind != "plain" and (plain := result.plain(row))}
    return [row for row in result.ordered() if row.id in starts or row.id not in rivals]


def _line(result: QualityResult, row: Row, metric: str | None) -> list[str]:
    curve = [str(value) for key, value in row.group.items() if key == "schedule" and str(value) not in row.label]
    name = ", ".join([row.label, *curve])
    ceiling = texts.NONE if row.ceiling is None or row.kind == "plain" else f"{row.ceiling:.2f}x"
    found = [name, str(row.steps or texts.NONE), texts.times(row.speedup) + " ~" * row.noisy, ceiling]
    if metric is None:
        return found
    rival, against = result.rival(row, "equal_macs"), verdict(result, row, metric)
    theirs = texts.NONE
    if rival is not None:
        mark = f"{MARKS[against.ahead]} " if against else ""
        theirs = f"{mark}{rival.steps} steps: {texts.score(result.score(rival, metric, result.plain(row)))}"
    return [*found, texts.score(row.scores.get(metric)), theirs]


def _speed(result: SpeedResult) -> str:
    return _table(result.title, list(SPEED), [_case(case) for case in result.cases])


def _case(case: dict) -> list[str]:
    rival = case.get("equal_macs_plain_run") if isinstance(case.get("equal_macs_plain_run"), dict) else {}
    reached, ratio = (Spread.read(case.get(key)) for key in ("of_ceiling", "ours_over_official_time"))
    ceiling = Spread.read(case.get("ceiling_time"))
    return [
        f"{case.get('case')}" + ("" if case.get("scale") in (None, 1) else f", scale {case['scale']}"),
        f"{case.get('interval')}, {case.get('cut')}",
        texts.times(Spread.read(case.get("speedup"))),
        f"{ceiling.median:.2f}x" if ceiling else texts.NONE,
        texts.percent(reached),
        texts.ratio(ratio),
        f"{rival.get('steps')} steps, {texts.times(Spread.read(rival.get('speedup')))}" if rival else texts.NONE,
    ]


def _table(title: str, head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return f"### {_escape(title)}\n\n" + "".join(f"| {' | '.join(map(_escape, row))} |\n" for row in rows)


def _escape(text: str) -> str:
    """Text that stays one cell and no markup."""
    return " ".join(re.sub(r"([\\|*`_\[\]])", r"\\\1", escape(text, quote=False)).split())
