"""Markdown of what bench/forecasts.py measured: ``python bench/forecast_tables.py bench/results/forecasts-demo.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def bars(result: dict) -> str:
    """Uniform hold beside calibrated at as many full evaluations, with the factor between their errors."""
    lines = [
        "| | full | plain run of as many steps | cut | uniform, held | calibrated | factor |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = result["studies"]["bars"]
    for case in dict.fromkeys(row["case"] for row in rows):
        plain = {row["full"]: row for row in rows if (row["case"], row["way"]) == (case, "plain")}
        for full in plain:
            for cut in (0, 1):
                kinds = (f"{kind}, cut {cut}" for kind in ("uniform hold", "calibrated"))
                held, ours = (_find(rows, case, kind, full) for kind in kinds)
                factor = f"{held['error'] / ours['error']:.1f}"
                lines.append(
                    f"| {case} | {full} | {_error(plain[full])} | {cut} | {_error(held)} | {_error(ours)} | {factor} |"
                )
    return "\n".join(lines) + "\n"


def study(result: dict, name: str) -> str:
    """A row for each way, a column for each case."""
    rows = result["studies"][name]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    ways = list(dict.fromkeys((row["way"], row["full"] if _told(row, rows) else None) for row in rows))
    lines = ["| | " + " | ".join(cases) + " |", "|---|" + "---|" * len(cases)]
    for way, full in ways:
        cells = [
            _cell([r for r in rows if (r["case"], r["way"]) == (case, way) and full in (None, r["full"])])
            for case in cases
        ]
        lines.append(f"| {way}{'' if full is None else f', {full} full'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _told(row: dict, rows: list[dict]) -> bool:
    """Whether a way is told apart by its number of full evaluations, being there with several in one case."""
    return sum((r["case"], r["way"]) == (row["case"], row["way"]) for r in rows) > 1


def _cell(rows: list[dict]) -> str:
    if not rows:
        return ""
    [row] = rows
    return f"{_error(row)} ({row['full']}, {row['macs']:.0%})"


def _find(rows: list[dict], case: str, way: str, full: int) -> dict:
    return next(row for row in rows if (row["case"], row["way"], row["full"]) == (case, way, full))


def _error(row: dict) -> str:
    return f"{row['error']:.4f} ± {row['sd']:.4f}"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    print(bars(found))
    for name in found["studies"]:
        if name != "bars":
            print(f"### {name}\n\n{study(found, name)}")
