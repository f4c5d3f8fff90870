"""How far cached runs end from the plain run of the demo: relative error of the final latents, study by study.

    python bench/forecasts.py --out bench/results/forecasts-demo.json
    python bench/forecasts.py --study bars --prompts 8    # one of them, quickly

Held-out captions with every seed, paired noise. Errors are root mean squares over the pictures of a seed, relative to the plain
run's latents; a row has their mean and standard deviation over the seeds, and the median picture's error: a few pictures that turn
into others can dominate the mean square. Where a case changes the model or the call, its plain run
is changed in the same way: what is measured is what caching does. Takes about 25 minutes on a free core.
"""

from __future__ import annotations

import json
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from forecast_cases import STUDIES, Case, Way
from unetaccel import apply
from unetaccel.demo.scenes import sample_scenes
from unetaccel.environment import environment
from unetaccel.sampling import Settings, sample

BATCH = 32


def main(
    study: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(STUDIES)}; all by default.")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 16,
    seeds: Annotated[int, typer.Option(help="Noises of each caption.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure, print, write."""
    captions = sample_scenes(prompts, seed=20, held_out=True).captions()
    jobs = captions * seeds, [10_000_000 * s + i for s in range(seeds) for i in range(prompts)]
    result = {"environment": environment(), "captions": prompts, "seeds": seeds, "studies": {}}
    for name in study or STUDIES:
        rows = result["studies"][name] = []
        for case in STUDIES[name]():
            rows += measured(case, jobs, seeds)
        for row in rows:
            print(name, json.dumps(row), flush=True)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


def measured(case: Case, jobs: tuple[list[str], list[int]], seeds: int) -> list[dict]:
    """A row for each way of the case."""
    pipe = case.pipeline()
    plain = latents(case, pipe, jobs, case.steps, ())[0]
    rows = []
    for way in case.ways:
        found, summary = latents(case, pipe, jobs, way.steps or case.steps, way.methods)
        errors = relative_errors(found, plain).reshape(seeds, -1)
        by_seed = [float(np.sqrt(np.square(part).mean())) for part in errors]
        told = {**spread(by_seed), "median": float(np.median(errors))}
        rows.append({"case": case.name, "way": way.name, **account(way, case, summary), **told})
    return rows


def latents(case: Case, pipe, jobs, steps: int, methods: tuple):
    """Final latents (N, C, h, w), and the summary of the last call."""
    methods = (*case.methods, *methods)
    how = Settings(steps, case.guidance, case.size, BATCH)
    with torch.no_grad(), apply(pipe, *methods) if methods else nullcontext() as handle:
        found = case.sample(pipe, *jobs, how) if case.sample else sample(pipe, *jobs, how, output="latent")
        return found, handle.summary() if handle else None


def relative_errors(found: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """|x - plain| / |plain| of each picture."""
    flat, reference = (x.astype(np.float64).reshape(len(x), -1) for x in (found, plain))
    return np.linalg.norm(flat - reference, axis=1) / np.linalg.norm(reference, axis=1)


def account(way: Way, case: Case, summary) -> dict:
    """What it cost: evaluations, and MACs as a share of the plain run's."""
    if summary is None or not way.methods:
        steps = way.steps or case.steps
        return {"plan": None, "full": steps, "macs": steps / case.steps}
    told = ("predicted_error", "observed_error", "refreshed")
    extra = {name: getattr(summary, name) for name in told if getattr(summary, name)}
    return {"plan": summary.pattern, "full": summary.full, "macs": summary.macs_share, **extra}


def spread(values: list[float]) -> dict:
    return {
        "error": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": values,
    }


if __name__ == "__main__":
    typer.run(main)
