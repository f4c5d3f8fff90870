"""A case as a table in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from ..report.texts import NONE, significant, size

COLUMNS = (
    "variant",
    "N",
    "cut",
    "full ms",
    "cached ms",
    "loop s",
    "steps/s",
    "speedup",
    "in mode",
    "ceiling",
    "of it",
    "F",
)


def print_case(case: dict, console: Console) -> None:
    """One line per row, then the variants that were skipped and why."""
    title = f"{case['case']}: {case['unet']}, sample {'x'.join(map(str, case['sample']))}, {case['parameters'] / 1e6:.4g} M parameters"
    if case["controlnet_parameters"]:
        title += f", ControlNet of {case['controlnet_parameters'] / 1e6:.4g} M"
    peaks = any(row["peak_bytes"] is not None for row in case["rows"])
    table = Table(box=box.SIMPLE_HEAD, title=title, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (*COLUMNS, *(["peak"] if peaks else [])):
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for row in case["rows"]:
        table.add_row(*_cells(row), *([size(row["peak_bytes"])] if peaks else []))
    console.print(table)
    for name, reason in case["skipped"].items():
        console.print(f"skipped {name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict) -> list[str]:
    return [
        row["title"],
        _number(row["interval"]),
        _number(row["cut"]),
        _spread(row["full"], 1000),
        _spread(row["cached"], 1000),
        _spread(row["loop"]),
        significant(row["steps_per_second"]["median"]),
        f"{row['speedup']['median']:.2f}x",
        f"{row['speedup_in_mode']['median']:.2f}x" if row["speedup_in_mode"] else NONE,
        f"{row['ceiling']:.2f}x",
        f"{row['of_ceiling']['median']:.0%}" if row["of_ceiling"] else NONE,
        size(row["cached_bytes"]) if row["cached_bytes"] else NONE,
    ]


def _number(value: int | None) -> str:
    return NONE if value is None else str(value)


def _spread(found: dict | None, factor: float = 1) -> str:
    """``12.3 (12.1-12.6)``."""
    if found is None:
        return NONE
    median, low, high = (significant(factor * found[name]) for name in ("median", "p20", "p80"))
    return f"{median} ({low}-{high})"
