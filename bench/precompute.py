"""What ``apply(..., precompute=True)`` gains on a CPU: the demo's U-Net, and SD 1.5's and SDXL's at a quarter of their size.

    python bench/precompute.py --out bench/results/precompute-cpu.json

Sampling loops with and without, interleaved in one process, at an interval where F is held for two evaluations and at one where it
is held for nine, each checked first as in ``unetaccel bench latency``. Text is not scaled down with the U-Nets, so its keys
and values weigh more here than in the real models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from unetaccel.costs import example_inputs
from unetaccel.demo.pipeline import load_pipeline
from unetaccel.environment import environment
from unetaccel.latency.ceilings import measured_rates
from unetaccel.latency.jobs import Case, Job, build_job
from unetaccel.latency.measure import Settings, measure
from unetaccel.latency.result import FORMAT, as_dict, write_json
from unetaccel.latency.variants import chosen

SCALE = 0.25
INTERVALS = (3, 10)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("bench/results/precompute-cpu.json"),
    steps: Annotated[int, typer.Option(help="Of a loop.")] = 20,
    repeats: Annotated[int, typer.Option(help="Loops of each row.")] = 7,
) -> None:
    """Measure, and write JSON."""
    torch.set_num_threads(1)
    device, variants, settings = (
        torch.device("cpu"),
        chosen(["ours", "ours-precompute"]),
        Settings(INTERVALS, (0,), steps, repeats),
    )
    rates = measured_rates(device, torch.float32)
    cases = [as_dict(measure(job, variants, settings, rates, print), rates) for job in _jobs(device)]
    how = {
        "intervals": INTERVALS,
        "steps": steps,
        "repeats": repeats,
        "scale": SCALE,
        "device": "cpu",
        "dtype": "float32",
    }
    found = {"format": FORMAT, "kind": "latency", "environment": environment(device), "settings": how, "cases": cases}
    write_json(out, found)
    print(f"wrote {out}")


def _jobs(device: torch.device) -> list[Job]:
    pipe = load_pipeline()
    unet = pipe.unet.requires_grad_(False)
    demo = Job("demo", unet, example_inputs(unet, 2, tokens=pipe.tokenizer.model_max_length))
    return [demo, *(build_job(Case(name), SCALE, device, torch.float32) for name in ("sd15", "sdxl"))]


if __name__ == "__main__":
    typer.run(main)
