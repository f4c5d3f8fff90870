"""Markdown of what bench/forecasts.py and the sweeps calibrated-*.yaml measured: ``python bench/forecast_tables.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from unetaccel.report import load
from unetaccel.report.verdicts import paired_gain

RESULTS = Path(__file__).parent / "results"
METRIC = "frechet"


def rivals(results: Sequence) -> str:
    """Distance of calibrated plans and of the default, beside the uniform plan and the plain run of equal MACs.

    Args:
        results: of the sweeps, see ``report.load``.
    """
    head = "| | plain | MACs | | uniform, held | plain run of equal MACs | ahead of it by |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for result in results:
        plain = {(row.solver, row.steps): row for row in result.rows if row.kind == "plain"}
        for row in result.rows:
            if _shown(row):
                lines.append(_rival(result, row, plain[row.solver, row.steps]))
    return "\n".join(lines) + "\n"


def _shown(row) -> bool:
    return "calibrated" in row.methods or row.methods.get("deepcache", {}).get("forecast") == "auto"


def _rival(result, row, plain) -> str:
    [settings] = row.methods.values()
    held = [r for r in result.rows if _is_held(r, row, settings) and math.isclose(r.macs, row.macs, rel_tol=1e-3)]
    rival = result.rival(row, "equal_macs")
    gain, sd = paired_gain(result.metrics[METRIC], row.scores[METRIC], rival.scores[METRIC])
    name = f"calibrated, {settings['full']} full" if "calibrated" in row.methods else "without a profile"
    case = f"{row.solver}, {row.steps} steps, cut {settings['cut']}"
    cells = [case, _score(plain), f"{row.macs / plain.macs:.0%}", f"{name}: **{_score(row)}**", _score(held[0]) if held else "",
             f"{rival.steps} steps: {_score(rival)}", f"{gain:.2f} ± {sd:.2f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _is_held(row, other, settings: dict) -> bool:
    own = row.methods.get("deepcache", {})
    same = (row.solver, row.steps, own.get("cut")) == (other.solver, other.steps, settings["cut"])
    return same and own.get("schedule") == "uniform" and "forecast" not in own


def _score(row) -> str:
    score = row.scores[METRIC]
    return f"{score.value:.2f} ± {score.sd:.2f}"


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
    print(rivals([load(path) for path in sorted(RESULTS.glob("calibrated-*demo.json"))]))
    found = json.loads((RESULTS / "forecasts-demo.json").read_text())
    print(bars(found))
    for name in found["studies"]:
        if name != "bars":
            print(f"### {name}\n\n{study(found, name)}")
