"""A PNG for each case: how fast every row is beside what its MACs allow, and what a step of it takes."""

from __future__ import annotations

from pathlib import Path

from ..report.figures import INK, SOFT, STYLE, load_pyplot

COLOURS = {
    "plain": "#8a94a3",
    "plain-inductor": "#5b6675",
    "plain-graphs": "#1b2430",
    "deepcache": "#f2994a",
    "deepcache-blocks": "#c56a1c",
    "ours": "#7fb2f0",
    "ours-precompute": "#56a0f0",
    "ours-inductor": "#2f80ed",
    "ours-graphs": "#123e7c",
    "ours-all": "#0a2347",
}


def write_plots(path: Path, result: dict) -> list[Path]:
    """``<path's stem>-<case>.png`` beside ``path``, one for each case.

    Raises:
        SettingError: matplotlib is not installed.
    """
    pyplot, written = load_pyplot(), []
    for case in result["cases"]:
        target = path.with_name(f"{path.stem}-{case['case'].replace(':', '-')}.png")
        with pyplot.rc_context(STYLE):
            height = 1.8 + 0.34 * len(case["rows"])
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, height), sharey=True)
            _speeds(left, case["rows"])
            _steps(right, case["rows"])
            figure.suptitle(_heading(case, result), fontsize=13, x=0.01, ha="left")
            figure.tight_layout()
            figure.savefig(target, dpi=110)
            pyplot.close(figure)
        written.append(target)
    return written


def _heading(case: dict, result: dict) -> str:
    settings, machine = result["settings"], result["environment"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread{'s'[: machine['threads'] != 1]}"
    return f"{case['case']}, sample {'x'.join(map(str, case['sample']))}, {settings['dtype']}, {where}"


def _speeds(plot, rows: list[dict]) -> None:
    """Steps per second with their spread; a tick where the MACs' ceiling over the plain run in the same mode would be."""
    plain = {row["variant"]: row["steps_per_second"]["median"] for row in rows if row["interval"] is None}
    for y, row in enumerate(rows):
        speed = row["steps_per_second"]
        error = [[speed["median"] - speed["p20"]], [speed["p80"] - speed["median"]]]
        plot.barh(y, speed["median"], xerr=error, color=COLOURS.get(row["variant"], SOFT), ecolor=INK, height=0.7)
        if row["interval"] and row["baseline"] in plain:
            plot.plot(
                plain[row["baseline"]] * row["ceiling"], y, "|", color="#d64545", markersize=13, markeredgewidth=2
            )
    plot.set_yticks(range(len(rows)), [_label(row) for row in rows])
    plot.invert_yaxis()
    plot.set_xlabel("steps per second; red: what the MACs allow in its mode")


def _steps(plot, rows: list[dict]) -> None:
    """Milliseconds of a full evaluation of the U-Net, and of a cached one inside it."""
    for y, row in enumerate(rows):
        colour = COLOURS.get(row["variant"], SOFT)
        plot.barh(y, 1000 * row["full"]["median"], color=colour, alpha=0.35, height=0.7)
        if row["cached"]:
            plot.barh(y, 1000 * row["cached"]["median"], color=colour, height=0.7)
    plot.set_xlabel("ms per evaluation: pale full, strong cached")


def _label(row: dict) -> str:
    where = "" if row["interval"] is None else f", N={row['interval']}, cut {row['cut']}"
    return f"{row['title']}{where}"
