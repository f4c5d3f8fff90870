"""Tables that the page's script sorts; they are complete without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import groupby

from . import texts
from .payload import published
from .results import QualityResult, SpeedResult
from .rows import Row, Spread, number
from .series import family_name
from .tables import NOISY
from .verdicts import paired_text, verdict

MARKS = {"row": ("ahead", "▲"), "level": ("level", "≈"), "plain": ("behind", "▼")}


@dataclass(frozen=True)
class Column:
    """``cell(row)`` gives the HTML and the value to sort by (``None`` sorts last)."""

    title: str
    cell: Callable[[object], tuple[str, object]]
    hint: str = ""


def table(caption: str, columns: list[Column], rows: list, ids: list[str] | None = None) -> str:
    """A table in a box that scrolls on its own; the first column names the row."""
    head = "".join(_header(column) for column in columns)
    body = "".join(_line(columns, row, ids[i] if ids else "") for i, row in enumerate(rows))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="sortable">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _header(column: Column) -> str:
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    return f'<th scope="col" aria-sort="none"><button type="button"{hint}>{escape(column.title)}</button></th>'


def _line(columns: list[Column], row: object, id: str) -> str:
    cells = []
    for i, column in enumerate(columns):
        html, value = column.cell(row)
        sort = "" if value is None else f' data-v="{escape(str(value))}"'
        cells.append(f'<th scope="row"{sort}>{html}</th>' if i == 0 else f"<td{sort}>{html}</td>")
    return f'<tr data-id="{escape(id)}">{"".join(cells)}</tr>'


def strip(pattern: str) -> str:
    """The plan as coloured cells, one per evaluation."""
    if not pattern:
        return ""
    at, full = 0, ""
    for letter, run in groupby(pattern):
        length = len(list(run))
        full += f"M{at} 0h{length}v1h-{length}z" if letter == "F" else ""
        at += length
    lines = "".join(f"M{i} 0v1" for i in range(1, at))
    said = f"{pattern.count('F')} full of {at} evaluations: {pattern}"
    return (
        f'<svg class="strip" role="img" aria-label="{escape(said)}" viewBox="0 0 {at} 1" preserveAspectRatio="none">'
        f'<title>{escape(said)}</title><path class="cached" d="M0 0h{at}v1h-{at}z"/><path class="full" d="{full}"/>'
        f'<path class="lines" d="{lines}"/></svg>'
    )


def quality_table(result: QualityResult) -> str:
    """All rows of a sweep with cost, quality and the plain run of equal MACs."""
    rows = result.ordered()
    columns = [
        Column("row", lambda row: (_name(row), row.label)),
        Column("steps", lambda row: _plain(row.steps)),
        *([Column("solver", lambda row: (escape(row.solver), row.solver))] if len({r.solver for r in rows}) > 1 else []),
        Column("speedup", _speedup, "over the plain run of as many steps: median, 20th to 80th percentile"),
        Column("ceiling", _ceiling, "1 / share of the plain run's MACs"),
        Column("time", lambda row: _spread(row.seconds, texts.seconds), "per image: median, 20th to 80th percentile"),
        Column("MACs", lambda row: _plain(row.macs, texts.scaled), "per image, U-Net only, whole run"),
        *_where(rows, "published", lambda row: bool(row.published), _published),
        *(_metric(result, name) for name in result.metrics),
        *_where(rows, "cached", lambda row: row.cached_bytes is not None, lambda row: _plain(row.cached_bytes, texts.size)),
        *_where(
            rows, "peak memory", lambda row: row.peak_memory_bytes is not None,
            lambda row: _plain(row.peak_memory_bytes, texts.size),
        ),
    ]  # fmt: skip
    return table("All rows", columns, rows, [row.id for row in rows])


def _where(rows, title: str, known, cell) -> list[Column]:
    """The column, if any row has something for it."""
    return [Column(title, cell)] if any(map(known, rows)) else []


def _plain(value: float | None, text=str) -> tuple[str, object]:
    return (texts.NONE if value is None else escape(text(value))), value


def _name(row: Row) -> str:
    kind = {"peer": '<span class="kind">peer</span>', "plain": ""}.get(row.kind, "")
    family = "" if row.kind == "plain" else f"<small>{escape(family_name(row))}</small>"
    pick = f'<button type="button" class="pick" title="{escape(row.id)}">{_breakable(row.label)}</button>'
    return f"{pick}{kind}{strip(row.pattern)}{family}"


def _ceiling(row: Row) -> tuple[str, object]:
    return _plain(None if row.kind == "plain" else row.ceiling, lambda v: f"{v:.2f}x")


def _published(row: Row) -> tuple[str, object]:
    """The paper's figures, and below them where they stand."""
    text = published(row)
    if not text:
        return texts.NONE, None
    figures, bracket, source = text.partition(" (")
    return escape(figures) + f'<small class="source">{escape(source.removesuffix(")"))}</small>' * bool(bracket), text


def _breakable(label: str) -> str:
    """A label that may go on in the next line behind a bracket."""
    return escape(label).replace("(", "(<wbr>")


def _speedup(row: Row) -> tuple[str, object]:
    html, value = _spread(row.speedup, texts.times)
    if row.ran_plain:
        html += '<small class="behind">ran plain: too few evaluations to cache</small>'
    elif row.speedup and row.ceiling and row.kind != "plain":
        html += f"<small>{row.speedup.median / row.ceiling:.0%} of ceiling</small>"
    if row.noisy:
        html += f'<small class="noisy" title="{NOISY}">noisy</small>'
    return html, value


def _spread(spread: Spread | None, text) -> tuple[str, object]:
    if spread is None:
        return texts.NONE, None
    median, bracket, rest = text(spread).partition(" (")
    return f"{median}<small>{(bracket + rest).strip(' ()')}</small>", spread.median


def _metric(result: QualityResult, name: str) -> Column:
    metric = result.metrics[name]
    unit = f" {metric.unit}" if metric.unit else ""

    def cell(row: Row) -> tuple[str, object]:
        found, against = row.scores.get(name), verdict(result, row, name)
        html = escape(texts.score(found))
        if against:
            word, mark = MARKS[against.ahead]
            theirs = texts.score(result.score(against.rival, name, result.plain(row)))
            html += f'<small class="{word}" title="{word}: the plain run of equal MACs has {theirs}">{mark} {theirs}</small>'
        elif (base := result.without_edits(row)) and (
            told := paired_text(metric, found, base.scores.get(name))
        ) != texts.NONE:
            html += f'<small title="to the run without the edit, paired by seed">{told}</small>'
        elif found and metric.to == "plain" and row.kind == "plain":
            html += f"<small>to the longest of {escape(row.solver) or 'its solver'}</small>"
        return html, _sort_value(found)

    better = f"; {metric.better} is better" if metric.better else ""
    hint = f"{metric.label}{better}. Second line: the plain run of equal MACs (▲ row ahead, ≈ level, ▼ plain run ahead)"
    arrow = {"lower": " ↓", "higher": " ↑"}.get(metric.better, "")
    return Column(f"{name}{unit}{arrow}", cell, hint)


def _sort_value(found) -> object:
    if found is None:
        return None
    return "Infinity" if found.identical else found.value


def speed_table(result: SpeedResult) -> str:
    """The cases of ``bench/speed.py``."""

    def ratio(key: str, text=texts.times) -> Callable:
        return lambda case: _spread(Spread.read(case.get(key)), text)

    def rival(case: dict) -> tuple[str, object]:
        plain = case.get("equal_macs_plain_run") if isinstance(case.get("equal_macs_plain_run"), dict) else {}
        html, value = _spread(Spread.read(plain.get("speedup")), texts.times)
        return (f"{html}<small>{escape(str(plain.get('steps')))} steps</small>", value) if value else (html, value)

    columns = [
        Column("case", lambda case: (_case(case), str(case.get("case")))),
        Column("interval", lambda case: _plain(number(case.get("interval")))),
        Column("cut", lambda case: _plain(number(case.get("cut")))),
        Column("speedup", ratio("speedup"), "over the plain run: median, 20th to 80th percentile"),
        Column("ceiling by time", ratio("ceiling_time"), "from the bare forward times"),
        Column("of ceiling", ratio("of_ceiling", texts.percent)),
        Column("ceiling by MACs", lambda case: _plain(number(case.get("ceiling_macs")), lambda v: f"{v:.2f}x")),
        Column("DeepCache 0.1.1", ratio("speedup_official"), "speedup of the official package"),
        Column("our time / its", ratio("ours_over_official_time", texts.ratio)),
        Column("plain run of equal MACs", rival),
        Column("cached", lambda case: _plain(number(case.get("cached_bytes")), texts.size)),
    ]
    return table("Timed cases", columns, result.cases)


def _case(case: dict) -> str:
    scale = "" if case.get("scale") in (None, 1, 1.0) else f", {case['scale']} of its size"
    return f"<b>{escape(str(case.get('case')) + scale)}</b>{strip(str(case.get('pattern') or ''))}"
