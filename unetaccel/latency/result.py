"""Everything that was measured as plain data, and as files: JSON, and CSV with a line per row."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from .ceilings import Rates
from .measure import Measured

FORMAT = 1
SPREADS = ("full", "cached", "loop", "steps_per_second", "speedup", "speedup_in_mode", "of_ceiling")
PLAIN = (
    "variant",
    "interval",
    "cut",
    "pattern",
    "ceiling",
    "of_matmul_rate",
    "peak_bytes",
    "cached_bytes",
)


def as_dict(measured: Measured, rates: Rates) -> dict:
    """One case, ready for JSON."""
    job = measured.job
    return {
        "case": job.name,
        "unet": type(job.unet).__name__,
        "parameters": sum(p.numel() for p in job.unet.parameters()),
        "controlnet_parameters": job.controlnet and sum(p.numel() for p in job.controlnet.parameters()),
        "batch": job.batch,
        "guided": job.guided,
        "sample": list(job.sample_shape),
        "work": {
            "full": measured.works.full.as_dict(rates),
            "cached": {str(cut): work.as_dict(rates) for cut, work in measured.works.cached.items()},
        },
        "clocks": {"before": measured.clocks[0], "after": measured.clocks[1]},
        "rows": [row.as_dict() for row in measured.rows],
        "skipped": measured.skipped,
    }


def write_json(path: Path, result: dict) -> None:
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, result: dict) -> None:
    """A line per row of every case; each spread is three columns."""
    names = [f"{name}_{part}" for name in SPREADS for part in ("median", "p20", "p80")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case", *PLAIN, *names, "floor_macs", "floor_bytes", "check_error"])
        writer.writeheader()
        for case in result["cases"]:
            for row in case["rows"]:
                spreads = {f"{name}_{part}": v for name in SPREADS for part, v in (row[name] or {}).items()}
                floors = {f"floor_{name}": value for name, value in row["floor"].items()}
                plain = {name: row[name] for name in PLAIN}
                error = row["check"]["error"]
                writer.writerow({"case": case["case"], **plain, **spreads, **floors, "check_error": error})
