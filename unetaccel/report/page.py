"""The HTML report: one file with styles, script, numbers and pictures inside, which fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from ..errors import SettingError
from . import verdicts
from .facts import conditions, facts
from .html_tables import quality_table, speed_table
from .payload import embed, payload
from .results import QualityResult, SpeedResult

SCRIPTS = ("common.js", "plot.js", "chart.js", "verdicts.js", "pictures.js", "table.js", "main.js")


def write_page(path: Path, results: Sequence[QualityResult | SpeedResult], metric: str | None = None) -> None:
    """Write the report of all ``results`` to ``path``; ``metric`` is shown first where a result has it."""
    try:
        path.write_text(page(results, metric), encoding="utf-8")
    except OSError as error:
        raise SettingError(f"--out {str(path)!r} cannot be written: {error.strerror or error}") from error


def page(results: Sequence[QualityResult | SpeedResult], metric: str | None = None) -> str:
    """The whole document as text."""
    articles = [_article(i, result, metric) for i, result in enumerate(results)]
    links = [f'<a href="#report-{i}">{escape(result.title)}</a>' for i, result in enumerate(results)]
    return _fill(
        _asset("page.html"),
        title=escape(results[0].title if len(results) == 1 else f"{len(results)} results"),
        style=_asset("style.css"),
        script="\n".join(_asset(name) for name in SCRIPTS),
        contents=f'<nav aria-label="Results">{"".join(links)}</nav>' if len(links) > 1 else "",
        articles="\n".join(articles),
    )


def _article(i: int, result: QualityResult | SpeedResult, metric: str | None) -> str:
    shared = {
        "i": str(i),
        "title": escape(result.title),
        "file": escape(result.path.name),
        "facts": facts(result),
        "conditions": conditions(result),
    }
    if isinstance(result, SpeedResult):
        return _fill(_asset("speed.html"), **shared, table=speed_table(result))
    leading = result.leading(metric)
    return _fill(
        _asset("quality.html"),
        **shared,
        finding=escape(verdicts.finding(result, leading)) if leading else "This file has no metric.",
        tally="".join(_tally(result, name) for name in result.metrics),
        rule=escape(verdicts.RULE),
        table=quality_table(result),
        data=embed(payload(result, leading)),
    )


def _tally(result: QualityResult, name: str) -> str:
    """A bar for one metric: how many method rows are ahead of, level with and behind the plain run of equal MACs."""
    found = verdicts.count(result, name)
    if not sum(found.values()):
        return ""
    words, marks = {"row": "ahead", "level": "level", "plain": "behind"}, {"row": "▲", "level": "≈", "plain": "▼"}
    parts = "".join(
        f'<span class="{words[k]}" style="flex-grow:{n}" title="{n} {words[k]}">{n} {marks[k]}</span>'
        for k, n in found.items()
        if n
    )
    said = ", ".join(f"{n} {words[k]}" for k, n in found.items())
    label = escape(result.metrics[name].label)
    return f'<div class="tally"><span>{label}</span><div class="bar" role="img" aria-label="{said}">{parts}</div></div>'


def _fill(template: str, **parts: str) -> str:
    """Put each part where ``{{name}}`` stands; what a part holds is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
