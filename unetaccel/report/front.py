"""PNG of what tuning found: quality against MACs of each cut, and of runs of fewer steps without caching."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from ..errors import WeightsError
from ..tuning.trials import Trial
from ..tuning.tuned import Tuned, described
from .figures import INK, SOFT, STYLE, load_pyplot
from .series import COLOURS

CHOSEN, ROOM = "#f2c94c", 20
"""Colour; and how many pixels numbers keep from each other."""
NAMES = {"psnr": "PSNR to the run without caching", "ssim": "SSIM to the run without caching",
         "labels": "pictures with every label right", "metric": "your metric"}  # fmt: skip


def write_front(path: str | Path, tuned: Tuned) -> Path:
    """Quality against MACs: a line for each cut and set of edits, one for runs of fewer steps, the budget, and what was chosen.

    Raises:
        SettingError: matplotlib is not installed.
        WeightsError: the file cannot be written.
    """
    pyplot, path = load_pyplot(), Path(path).expanduser()
    with pyplot.rc_context(STYLE):
        figure, plot = pyplot.subplots(figsize=(8.6, 5.8))
        for i, (name, trials) in enumerate(_lines(tuned).items()):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dvp"[i % 6]}
            _curve(plot, trials, name, **style)
        _curve(plot, list(tuned.rivals), "without caching, fewer steps", color=INK, marker="o", linestyle=(0, (4, 3)))
        _budget(plot, tuned)
        chosen = tuned.chosen
        if math.isfinite(chosen.score.mean):
            plot.plot([100 * chosen.macs], [chosen.score.mean], marker="*", markersize=22, color=CHOSEN, markeredgecolor=INK,
                      linestyle="none", zorder=5, label=f"chosen: {described(chosen)}")  # fmt: skip
        plot.set_xlabel("← MACs, % of the run without caching")
        plot.set_ylabel(f"{NAMES[tuned.judge.name]}, mean{' (dB) →' if tuned.judge.unit else ' →'}")
        plot.set_title(
            f"Tuned for {tuned.budget}: {chosen.steps} steps, {tuned.held_out} held-out pictures", loc="left"
        )
        figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, frameon=False, fontsize=12,
                      title="numbers at points: full evaluations; without caching: steps", title_fontsize=11)  # fmt: skip
        figure.tight_layout()
        figure.canvas.draw()  # from here on the axes stay where they are
        _numbers(plot, tuned)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=144, bbox_inches="tight")
        except OSError as error:
            raise WeightsError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
        finally:
            pyplot.close(figure)
    return path


def _lines(tuned: Tuned) -> dict[str, list[Trial]]:
    """Tried candidates by cut and edits, by cost."""
    found: dict[str, list[Trial]] = {}
    for trial in tuned.trials:
        edits = f", {' + '.join(map(repr, trial.edits))}" if trial.edits else ""
        found.setdefault(f"cut {trial.candidate.cut}{edits}", []).append(trial)
    return dict(sorted(found.items()))


def _curve(plot, trials: list[Trial], name: str, **style) -> None:
    """Trials joined in the order of their cost; infinite scores have no place."""
    x, y = zip(*map(_place, drawn), strict=True) if (drawn := _drawn(trials)) else ((), ())
    plot.plot(x, y, label=name, linewidth=2, markersize=7, markeredgecolor="white", zorder=3, **style)


def _drawn(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if math.isfinite(trial.score.mean)]


def _place(trial: Trial) -> tuple[float, float]:
    return 100 * trial.macs, trial.score.mean


def _numbers(plot, tuned: Tuned) -> None:
    """Full evaluations or steps beside the points, the chosen one's first, where no other number is near."""
    from matplotlib.patheffects import withStroke

    taken, halo = [], [withStroke(linewidth=3, foreground="white")]
    first = [tuned.chosen, *(trial for trial in (tuned.rival, tuned.fewest) if trial)]
    for trial in _drawn([*first, *tuned.trials, *tuned.rivals]):
        x, y = plot.transData.transform(_place(trial))
        if all(abs(x - a) > ROOM or abs(y - b) > ROOM for a, b in taken):
            taken.append((x, y))
            text = str(trial.candidate.full if trial.candidate else trial.steps)
            plot.annotate(text, _place(trial), xytext=(8, -13), textcoords="offset points", fontsize=11, color=INK,
                          path_effects=halo, zorder=6)  # fmt: skip


def _budget(plot, tuned: Tuned) -> None:
    budget = tuned.budget
    line = {"color": SOFT, "linestyle": ":", "linewidth": 1.6, "zorder": 2, "label": f"budget {budget}"}
    if budget.is_floor:
        plot.axhline(budget.limit, **line)
    elif budget.kind == "macs":
        plot.axvline(100 * budget.limit, **line)
