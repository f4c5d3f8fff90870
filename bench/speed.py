"""Whole sampling calls side by side: plain, unetaccel, and the PyPI package DeepCache, on one model in one process.

    python bench/speed.py --case demo --out bench/results/speed-demo-cpu.json
    python bench/speed.py --case sd15 --case sdxl --scale 0.25      # random weights, shrunk to fit a CPU
    python bench/speed.py --case sd15 --case sdxl --device cuda --dtype float16

Every repeat times each way once, in an order that rotates; ratios are taken within a repeat and
reported as median with the 20th and 80th percentile. Beside each speedup stand two ceilings:

* MACs: what the count of multiply-accumulates allows for the U-Net alone;
* time: what the bare forward times of the plain U-Net and of the cached view, measured in the same
  repeats, allow for the whole call; ``of_ceiling`` is how much of it was reached.

Whole calls of pipelines, the trained demo's too. For the U-Net in a loop of its own, compiled variants and what a GPU could do,
see ``unetaccel bench latency``.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer

import cases
import unetaccel
from unetaccel.environment import environment
from unetaccel.latency.timers import interleaved, spread
from unetaccel.sweep.ways import official_deepcache
from unetaccel.views import build_views


def main(
    case: Annotated[list[str], typer.Option(help="demo, sd15, sd21 or sdxl; may be given more than once.")],
    interval: Annotated[list[int], typer.Option(help="Intervals.")] = [2, 3, 5],  # noqa: B006 - typer copies it
    cut: Annotated[list[int], typer.Option(help="Cuts.")] = [0, 1],  # noqa: B006
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 50,
    batch: Annotated[int, typer.Option(help="Images per call; guidance doubles it.")] = 1,
    scale: Annotated[float, typer.Option(help="Factor on widths and size of random-weight shapes.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats after one warm-up.")] = 15,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time all ways, print a table, and write JSON."""
    torch.set_num_threads(threads)
    results = {
        "environment": environment(device),
        "steps": steps,
        "batch": batch,
        "dtype": dtype,
        "repeats": repeats,
        "cases": [],
    }
    for name in case:
        job = cases.build(name, scale, device, getattr(torch, dtype), batch)
        for b in cut:
            for n in interval:
                row = {"case": name, "scale": 1.0 if name == "demo" else scale, **measure(job, n, b, steps, repeats)}
                results["cases"].append(row)
                print(_line(row), flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {out}")


def measure(job: cases.Job, interval: int, cut: int, steps: int, repeats: int) -> dict:
    """Time plain, ours, the official helper and the plain run of equal MACs for one setting."""
    method = unetaccel.DeepCache(interval=interval, cut=cut)
    with unetaccel.apply(job.pipe, method) as handle:
        ours, summary = job.call(steps), handle.summary()
    with official_deepcache(job.pipe, interval, cut):
        if not torch.equal(ours, job.call(steps)):
            raise SystemExit("unetaccel and DeepCache 0.1.1 disagree: no speed is reported")
    rival_steps = max(1, round(steps * summary.macs_share))
    ways = {
        "plain": lambda: job.timed(steps),
        "ours": lambda: _applied(job, method, steps),
        "official": lambda: _official(job, interval, cut, steps),
        "equal_macs": lambda: job.timed(rival_steps),
        "forwards": lambda: _forwards(job, cut, interval),
    }
    times = interleaved(ways, repeats)
    return {"interval": interval, "cut": cut, "pattern": summary.pattern, **_report(times, summary, rival_steps)}


def _applied(job, method, steps) -> float:
    with unetaccel.apply(job.pipe, method):
        return job.timed(steps)


def _official(job, interval, cut, steps) -> float:
    with official_deepcache(job.pipe, interval, cut):
        return job.timed(steps)


def _forwards(job, cut: int, interval: int, cycles: int = 3) -> tuple[float, float]:
    """Median seconds of the bare plain U-Net and of the cached view, on the inputs of a real step.

    In the order of a real run: one full pass, then the cached ones, so that caches are as warm as there.
    """
    inputs, views = job.step_inputs(), build_views(job.pipe.unet, cut)
    forward = type(job.pipe.unet).forward
    plain, cached = [], []
    with torch.no_grad():
        for _ in range(cycles * interval):
            plain.append(job.seconds(lambda: forward(job.pipe.unet, **inputs)))
        for _ in range(cycles):
            _, feature = views.run_full(inputs)
            cached += [job.seconds(lambda f=feature: views.run_cached(inputs, f)) for _ in range(interval - 1)]
    return statistics.median(plain), statistics.median(cached)


def _report(times: dict[str, list], summary, rival_steps: int) -> dict:
    plain, ours, official, rival = (times[k] for k in ("plain", "ours", "official", "equal_macs"))
    ceilings = [
        p / (p - summary.cached * (full - cached)) for p, (full, cached) in zip(plain, times["forwards"], strict=True)
    ]
    full, cached = (statistics.median(t[i] for t in times["forwards"]) for i in (0, 1))
    return {
        "seconds_plain": _spread(plain),
        "speedup": _spread([p / o for p, o in zip(plain, ours, strict=True)]),
        "speedup_official": _spread([p / o for p, o in zip(plain, official, strict=True)]),
        "ours_over_official_time": _spread([a / b for a, b in zip(ours, official, strict=True)]),
        "ceiling_macs": round(1 / summary.macs_share, 4),
        "ceiling_time": _spread(ceilings),
        "of_ceiling": _spread([p / o / c for p, o, c in zip(plain, ours, ceilings, strict=True)]),
        "forward_ms": {"plain": round(1000 * full, 4), "cached": round(1000 * cached, 4)},
        "cached_bytes": summary.cached_bytes,
        "equal_macs_plain_run": {
            "steps": rival_steps,
            "speedup": _spread([p / r for p, r in zip(plain, rival, strict=True)]),
        },
    }


def _spread(values: list[float]) -> dict:
    return spread(values, digits=5)


def _line(row: dict) -> str:
    m = {k: v["median"] for k, v in row.items() if isinstance(v, dict) and "median" in v}
    rival = row["equal_macs_plain_run"]
    return (
        f"{row['case']:>5} N={row['interval']} cut={row['cut']}: {m['speedup']:.2f}x (official {m['speedup_official']:.2f}x, "
        f"our time {m['ours_over_official_time']:.3f} of its), ceiling {m['ceiling_time']:.2f}x by time "
        f"({m['of_ceiling']:.1%} reached), {row['ceiling_macs']:.2f}x by MACs; plain {rival['steps']} steps {rival['speedup']['median']:.2f}x"
    )


if __name__ == "__main__":
    typer.run(main)
