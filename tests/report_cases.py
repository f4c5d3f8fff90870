"""Made-up result files that fit the format of a quality sweep: numbers by formula, pictures drawn on the fly."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

HOSTILE = 'a <script>alert("1")</script> & "ring"'
SHARES = {0: 0.14, 1: 0.31}  # of a cached step, per cut
STEP_MACS, STEP_SECONDS = 24.6e6, 0.0021
METRICS = {
    "frechet": {"label": "Fréchet distance (demo label network)", "better": "lower", "unit": "", "to": "real"},
    "psnr": {"label": "PSNR to the plain run", "better": "higher", "unit": "dB", "to": "plain"},
    "ssim": {"label": "SSIM to the plain run", "better": "higher", "unit": "", "to": "plain"},
    "accuracy": {"label": "Label accuracy", "better": "higher", "unit": "%", "to": "real"},
}


def write_result(
    folder: Path, intervals=(2, 5), cuts=(0,), schedules=("uniform",), steps=(20,), pictures: int = 2
) -> Path:
    """A result file with its images; by default a handful of rows."""
    chance = random.Random(0)
    methods = [
        _method_row(kind, n, cut, schedule, count, chance)
        for count in steps
        for cut in cuts
        for schedule in schedules
        for n in intervals
        for kind in ("method", "peer")
        if kind == "method" or schedule == "uniform"
    ]
    lengths = {*steps, *(int(row["rivals"][cost].split("-")[1]) for row in methods for cost in row["rivals"])}
    rows = [_plain_row(count, max(steps), chance) for count in sorted(lengths, reverse=True)] + methods
    for row in rows:
        row["images"] = [_draw(folder, row, i) for i in range(pictures)]
    rows[-1] |= {"label": HOSTILE, "unknown": 1, "published": {"frechet": 31.5, "source": "arXiv 2312.00858, table 2"}}
    path = folder / "result.json"
    path.write_text(json.dumps(_head() | {"rows": rows}))
    return path


def _head() -> dict:
    packages = {"unetaccel": "0.1.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "DeepCache": "0.1.1"}
    return {
        "format": "unetaccel-quality/1",
        "title": "DeepCache on the demo <b>",
        "model": "demo",
        "environment": {"python": "3.11.7", "packages": packages, "cpu": "A processor", "cores": 2, "device": "cpu"},
        "sweep": {"methods": [{"deepcache": {"interval": [2, 5]}}], "note": "</script><script>alert(2)</script>"},
        "samples": {"prompts": 667, "seeds": [0, 1, 2], "images": 2001, "source": "held-out captions", "size": [32, 32]},
        "metrics": METRICS,
        "timing": {"batch": 8, "repeats": 7, "threads": 1, "how": "interleaved whole calls, median and 20/80 percentiles"},
        "from_the_future": {"anything": None},
    }  # fmt: skip


def _plain_row(steps: int, most: int, chance) -> dict:
    row = _row(f"ddim-{steps}-plain", "plain", f"plain, {steps} steps", steps, "F" * steps, 1.0, chance)
    row["metrics"] = _metrics(steps, 0, chance, identical=steps == most)
    return row | {"methods": {}, "group": {"method": "plain"}, "speedup": None, "rivals": {}}


def _method_row(kind: str, n: int, cut: int, schedule: str, steps: int, chance) -> dict:
    pattern = "".join("F" if i % n == 0 else "." for i in range(steps))
    if schedule == "quad":
        full = {round(steps * (i / math.ceil(steps / n)) ** 1.4) for i in range(math.ceil(steps / n))}
        pattern = "".join("F" if i in full else "." for i in range(steps))
    share = (pattern.count("F") + SHARES[cut] * pattern.count(".")) / steps
    name = {"method": "deepcache", "peer": "DeepCache 0.1.1"}[kind]
    id = f"ddim-{steps}-{kind}-interval{n}-cut{cut}-{schedule}"
    row = _row(id, kind, f"{name}(interval={n}, cut={cut})", steps, pattern, share, chance)
    settings = {"interval": n, "cut": cut, "schedule": schedule}
    penalty = 9 * (n - 1) ** 1.25 / steps * (1.25 if cut == 0 else 0.8) * (0.86 if schedule == "quad" else 1)
    row["metrics"] = _metrics(steps, penalty, random.Random(id.replace(kind, "")))
    return row | {
        "methods": {name: settings},
        "group": {"method": name, "cut": cut, "schedule": schedule},
        "speedup": _spread(0.98 / share, chance),
        "rivals": {"equal_macs": f"ddim-{round(steps * share)}-plain", "equal_time": f"ddim-{round(steps * share * 1.03)}-plain"},
    }  # fmt: skip


def _row(id: str, kind: str, label: str, steps: int, pattern: str, share: float, chance) -> dict:
    full = pattern.count("F")
    return {
        "id": id, "kind": kind, "label": label, "solver": "ddim", "steps": steps, "guidance": 3.0, "pattern": pattern,
        "full": full, "cached": steps - full, "macs": steps * share * STEP_MACS, "macs_share": share,
        "speedup_ceiling": 1 / share, "seconds": _spread(steps * share * STEP_SECONDS * 1.02, chance),
        "cached_bytes": 0 if kind == "plain" else 32768, "peak_memory_bytes": None,
    }  # fmt: skip


def _metrics(steps: int, penalty: float, chance, identical: bool = False) -> dict:
    error = 110 / steps**1.6 + penalty
    values = {
        "frechet": (21 + 14 * error, 0.7),
        "psnr": (None if identical else 50 - 9 * math.log2(1 + 3 * error), 0.4),
        "ssim": (None if identical else 1 - 0.03 * error**0.7, 0.004),
        "accuracy": (97.5 - 3 * error, 0.3),
    }
    found = {}
    for name, (value, sd) in values.items():
        seeds = [value and round(chance.gauss(value, sd), 4) for _ in range(3)]
        found[name] = {"value": value and round(sum(seeds) / 3, 4), "sd": value and sd, "per_seed": seeds}
    return found


def _spread(median: float, chance) -> dict:
    return {"median": median, "p20": median * chance.uniform(0.955, 0.99), "p80": median * chance.uniform(1.01, 1.05)}


def _draw(folder: Path, row: dict, index: int, side: int = 32) -> str:
    """A shape that a longer interval draws a little off."""
    off = row["pattern"].count(".") * 3 // max(1, row["steps"])
    colours = ("red", "orange", "limegreen", "deepskyblue", "gold", "magenta")
    picture = Image.new("RGB", (side, side), ("black", "dimgray", "white")[index % 3])
    box = (6 + off, 7, 24 + off, 25 + off)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse, draw.rectangle)[index % 2](box, fill=colours[index % 6], outline="gray")
    path = folder / "images" / row["id"] / f"{index}-0.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path.name


def write_map(folder: Path, values=(0.6, 0.8, 0.9), steps=(5, 20), solvers=("ddim", "heun")) -> Path:
    """A result file of a sweep over one setting, with and without a cache: the best value rises with the steps."""
    rows = []
    for solver in solvers:
        for count in steps:
            best, scores = (0.8 if count == 5 else 0.9), lambda value: {"frechet": {"value": value, "sd": 0.1}}
            common = {"solver": solver, "steps": count}
            rows.append(
                {**common, "id": f"{solver}-{count}-plain", "kind": "plain", "methods": {}, "metrics": scores(10.0)}
            )
            for extra in ({}, {"deepcache": {"interval": 2, "cut": 0}}):
                for value in (*values, *([1.0] if extra else [])):
                    methods = {"skip_tuning": {"rho_bottom": value}, **extra}
                    name = f"{solver}-{count}-rho{value}{'-cached' if extra else ''}"
                    entry = {
                        "id": name,
                        "kind": "method",
                        "methods": methods,
                        "metrics": scores(8 + 20 * abs(value - best)),
                    }
                    rows.append({**common, **entry})
    path = folder / "map.json"
    path.write_text(json.dumps(_head() | {"rows": rows}))
    return path
