"""What a truncated ControlNet saves on cached evaluations: MACs of the real shapes, and time on shrunk ones.

    python bench/controlnet.py --out bench/results/controlnet.json

For each cut: MACs of a full evaluation (U-Net and ControlNet), of a cached one with the ControlNet run in full (as
the official helper does) and with its truncated view, and the ceilings of both at interval 3. Times are forward
passes on this machine at ``--scale``, interleaved, as ratios to the full evaluation.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import ControlNetModel

from unetaccel.controlnet import truncated
from unetaccel.costs import count_macs, cut_costs, example_inputs
from unetaccel.environment import environment
from unetaccel.shapes import build_shape
from unetaccel.views import build_views

CUTS = (0, 1, 2, 3)


def main(
    shape: Annotated[list[str], typer.Option(help="sd15, sd21 or sdxl.")] = ["sd15", "sdxl"],  # noqa: B006
    scale: Annotated[float, typer.Option(help="Factor on widths and size for the timings.")] = 0.25,
    repeats: Annotated[int, typer.Option(help="Interleaved repeats.")] = 15,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Count, time, print, write."""
    torch.set_num_threads(1)
    results = {"environment": environment(), "scale_of_times": scale, "repeats": repeats, "rows": []}
    for name in shape:
        for row in zip(counted(name), timed(name, scale, repeats), strict=True):
            results["rows"].append({"shape": name, **row[0], **row[1]})
            print(results["rows"][-1], flush=True)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n")


def build(name: str, scale: float, device: str):
    """A U-Net and its ControlNet with random weights, and inputs for both."""
    unet = build_shape(name, scale, device)
    with torch.device(device):
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False).eval()
        inputs = {k: _tensor(v) for k, v in example_inputs(unet, batch=2)}
        side = 8 * unet.config.sample_size
        condition = torch.zeros(2, 3, side, side)
    inputs |= {"timestep": torch.tensor(500, device=device), "return_dict": False}
    return unet, net, inputs, {**inputs, "controlnet_cond": condition}


def _tensor(value):
    if isinstance(value[0], tuple) and isinstance(value[0][0], str):
        return {k: _tensor(v) for k, v in value}
    return torch.zeros(value[0], dtype=value[1], device=value[2])


def counted(name: str) -> list[dict]:
    """GMACs per evaluation at full size, guidance included, and the ceilings at interval 3."""
    unet, net, _, controls = build(name, 1.0, "meta")
    with torch.no_grad():
        whole = count_macs(lambda: net(**controls))
        views = [truncated(net, b) for b in CUTS]
        parts = [count_macs(lambda: view(**controls)) for view in views]  # noqa: B023 - called at once
    rows = []
    for cost, part in zip(cut_costs(unet, example_inputs(unet, batch=2), CUTS), parts, strict=True):
        full, helper, ours = cost.full_macs + whole, cost.cached_macs + whole, cost.cached_macs + part
        rows.append(
            {
                "cut": cost.b,
                "gmacs_full": round(full / 1e9, 1),
                "gmacs_cached_controlnet_in_full": round(helper / 1e9, 1),
                "gmacs_cached_truncated": round(ours / 1e9, 1),
                "truncated_over_whole_controlnet": round(part / whole, 4),
                "ceiling_x3_controlnet_in_full": round(3 * full / (full + 2 * helper), 3),
                "ceiling_x3_truncated": round(3 * full / (full + 2 * ours), 3),
            }
        )
    return rows


def timed(name: str, scale: float, repeats: int) -> list[dict]:
    """Seconds of a cached evaluation over those of a full one, with the ControlNet whole and truncated."""
    unet, net, inputs, controls = build(name, scale, "cpu")
    return [_time_cut(unet, net, inputs, controls, b, repeats) for b in CUTS]


@torch.no_grad()
def _time_cut(unet, net, inputs, controls, b, repeats) -> dict:
    views, short = build_views(unet, b), truncated(net, b)

    def given(control) -> dict:
        down, mid = control(**controls)
        return {**inputs, "down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    _, feature = views.run_full(given(net))
    ways = {
        "full": lambda: views.run_full(given(net)),
        "whole": lambda: views.run_cached(given(net), feature),
        "truncated": lambda: views.run_cached(given(short), feature),
    }
    times = [{way: _seconds(work) for way, work in ways.items()} for _ in range(repeats + 1)][1:]
    ratios = {way: [t[way] / t["full"] for t in times] for way in ("whole", "truncated")}
    return {f"time_cached_{way}": _spread(values) for way, values in ratios.items()}


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict:
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": round(statistics.median(values), 4), "p20": round(low, 4), "p80": round(high, 4)}


if __name__ == "__main__":
    typer.run(main)
