"""What the numbers should show, and whether these do: each bar is met, missed, or not measured for a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

OURS = ("ours", "ours-precompute", "ours-inductor", "ours-graphs", "ours-all")
PLAINS = ("plain", "plain-inductor", "plain-graphs")
OF_CEILING = 0.9
REPEATS = 3
"""Least, for a ratio of loops to be judged."""
REFERENCE = {"sd15:1": (104.6, 250.0), "sd15-controlnet:1": (72.6, None), "sdxl:1": (21.6, 60.0)}
"""Steps per second: of plain runs as published (stable-fast's README, H100, float16), and to be reached at interval 3, if anything."""
OVER_OFFICIAL = {"sd15:1": {"deepcache": 2.0, "deepcache-blocks": 1.3}, "sdxl:1": {"deepcache": 1.3}}
"""How many times as fast as it ours should be, at interval 3 and the same cut."""


@dataclass(frozen=True)
class Bar:
    """``found`` should be at least ``wanted``; it is None where it was not measured, for the reason ``why``."""

    text: str
    wanted: float
    found: float | None
    why: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.found is None else self.found >= self.wanted

    def as_dict(self) -> dict:
        return {**asdict(self), "met": self.met}


def bars(result: dict) -> list[Bar]:
    """Those of a whole result, see ``result.as_dict``; numbers in steps per second only for real sizes on a GPU in float16."""
    cases, settings = {case["case"]: case for case in result["cases"]}, result["settings"]
    real = settings["device"].startswith("cuda") and settings["scale"] == 1 and settings["dtype"] == "float16"
    why = "" if real else "for real sizes on a CUDA device in float16"
    found = [bar for case in cases.values() for bar in (*_compiled_views(case), *_of_ceiling(case, settings))]
    return found + [bar for name in REFERENCE if name in cases for bar in _published(name, cases[name], why)]


def _published(name: str, case: dict | None, why: str) -> Iterator[Bar]:
    """Steps per second beside published ones, and beside DeepCache 0.1.1's."""
    reason = why or "its variants were not run"
    case = None if why else case
    plain, cached = REFERENCE[name]
    ours = _best(case, OURS, 3)
    yield Bar(f"{name}: plain steps per second", plain, _best(case, PLAINS, None), reason)
    if cached is not None:
        yield Bar(f"{name}: steps per second at interval 3", cached, ours, reason)
    for other, wanted in OVER_OFFICIAL.get(name, {}).items():
        theirs = _best(case, (other,), 3)
        yield Bar(f"{name}: ours over {other}, interval 3", wanted, ours / theirs if ours and theirs else None, reason)


def _best(case: dict | None, names: tuple[str, ...], interval: int | None) -> float | None:
    """Steps per second of the fastest of these variants at the lowest cut; None if none was run."""
    rows = [row for row in case["rows"] if row["variant"] in names and row["interval"] == interval] if case else []
    cut = min((row["cut"] for row in rows if row["cut"] is not None), default=None)
    return max((row["steps_per_second"]["median"] for row in rows if row["cut"] == cut), default=None)


def _compiled_views(case: dict) -> Iterator[Bar]:
    """How many times as long each view takes in eager mode as under inductor."""
    rows = {(row["variant"], row["cut"], row["interval"]): row for row in case["rows"]}
    for (variant, cut, interval), eager in rows.items():
        inductor = rows.get(("ours-inductor", cut, interval))
        if variant != "ours" or inductor is None or interval != _first_interval(case):
            continue
        for view in ("full", "cached"):
            if eager[view] and inductor[view]:
                ratio = eager[view]["median"] / inductor[view]["median"]
                yield Bar(f"{case['case']}, cut {cut}: {view} view, eager time over inductor's", 1.0, ratio)
    if "ours-inductor" in case["skipped"]:
        yield Bar(f"{case['case']}: views under inductor", 1.0, None, case["skipped"]["ours-inductor"])


def _first_interval(case: dict) -> int | None:
    return next((row["interval"] for row in case["rows"] if row["variant"] == "ours"), None)


def _of_ceiling(case: dict, settings: dict) -> Iterator[Bar]:
    """The speedup over the plain run in the same mode, as a share of what the MACs allow, at the largest interval up to 3."""
    ours = [row for row in case["rows"] if row["variant"] in OURS and row["of_ceiling"]]
    interval = max((row["interval"] for row in ours if row["interval"] <= 3), default=None)
    for row in ours:
        if row["interval"] == interval:
            text = f"{case['case']}, {row['title']}, interval {interval}, cut {row['cut']}: speedup over its plain run, of the MACs' ceiling"
            told = settings["repeats"] >= REPEATS
            why = "" if told else f"of fewer than {REPEATS} repeats a median says nothing"
            yield Bar(text, OF_CEILING, row["of_ceiling"]["median"] if told else None, why)
