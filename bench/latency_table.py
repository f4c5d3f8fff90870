"""The README's table of a result of ``unetaccel bench latency``.

python bench/latency_table.py bench/results/latency-cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = ("", "interval", "full, ms", "cached, ms", "over plain", "in its mode", "MACs allow")


def markdown(result: dict) -> str:
    """A line per row of every case: medians, of loops the speedup with its 20th and 80th percentile."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for case in result["cases"]:
        lines += [f"| {' | '.join((_title(case, result, row), *_cells(row)))} |" for row in case["rows"]]
        lines += [
            f"| {_name(case, result)}{name} | not run: {why} | | | | | |" for name, why in case["skipped"].items()
        ]
    return "\n".join(lines) + "\n"


def _name(case: dict, result: dict) -> str:
    """Before each row, where there are several cases."""
    return "" if len(result["cases"]) == 1 else f"{case['case']}: "


def _title(case: dict, result: dict, row: dict) -> str:
    return f"{_name(case, result)}{row['title']}"


def _cells(row: dict) -> tuple[str, ...]:
    return (
        str(row["interval"] or ""),
        f"{1000 * row['full']['median']:.1f}",
        f"{1000 * row['cached']['median']:.1f}" if row["cached"] else "",
        _times(row["speedup"]),
        _times(row["speedup_in_mode"]) if row["speedup_in_mode"] else "",
        f"{row['ceiling']:.2f}x" if row["interval"] else "",
    )


def _times(spread: dict) -> str:
    return f"{spread['median']:.2f} ({spread['p20']:.2f} to {spread['p80']:.2f})x"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
