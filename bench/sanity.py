"""Does each metric move the right way? Damaged drawings of the demo, measured as a sweep measures samples.

python bench/sanity.py --out bench/results/quality-sanity.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from unetaccel.environment import environment
from unetaccel.quality.metrics import build_metrics
from unetaccel.quality.sanity import SEEDS, check


def main(
    metric: Annotated[list[str], typer.Option(help="Metrics.")] = ["frechet", "kernel", "labels", "psnr", "ssim"],  # noqa: B006
    captions: Annotated[int, typer.Option(help=f"Held-out captions, {SEEDS} drawings of each.")] = 667,
    inception: Annotated[Path | None, typer.Option(help="Inception weights, for fid and kid.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure, print a table, write JSON; exit code 1 where a metric moved the wrong way."""
    torch.set_num_threads(1)
    metrics = build_metrics(metric, model="demo", **({"inception": inception} if inception else {}))
    rows = check(metrics, captions)
    columns = {name: info for each in metrics for name, info in each.columns.items()}
    for row in rows:
        print(f"{row['name']:>36} ", "  ".join(_cell(row, name) for name in columns), flush=True)
    if out:
        results = {"environment": environment(), "images": captions * SEEDS, "metrics": columns, "rows": rows}
        out.write_text(json.dumps(results, indent=1) + "\n")
    if not all(held for row in rows for held in row["held"].values()):
        raise typer.Exit(1)


def _cell(row: dict, column: str) -> str:
    value, held = row["metrics"][column]["value"], row["held"].get(column)
    mark = {None: " ", True: "+", False: "!"}[held]
    return f"{column} {'inf' if value is None else f'{value:.4g}':>8}{mark}"


if __name__ == "__main__":
    typer.run(main)
