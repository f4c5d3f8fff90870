"""All cases one after the other, as one result."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from ..environment import environment
from .bars import bars
from .ceilings import measured_rates
from .jobs import Case, build_job
from .measure import Say, Settings, measure
from .result import FORMAT, as_dict
from .variants import Variant


def run(
    cases: Sequence[Case],
    variants: list[Variant],
    settings: Settings,
    scale: float,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
    say: Say = lambda text: None,
    on_case: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure every case; ``on_case`` is given the result so far when one is done, for runs that may be cut off.

    Raises:
        CheckError: a variant is wrong: of this case and of those after it there is no result.
        SettingError: no such shape.
    """
    rates = measured_rates(device, dtype)
    how = {**asdict(settings), "scale": scale, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    result = {
        "format": FORMAT,
        "kind": "latency",
        "environment": environment(device),
        "settings": {**how, "channels_last": channels_last},
        "rates": {"macs_per_second": rates.macs, "bytes_per_second": rates.bytes},
        "cases": [],
        "bars": [],
    }
    for case in cases:
        job = build_job(case, scale, device, dtype, channels_last)
        result["cases"].append(as_dict(measure(job, variants, settings, rates, say), rates))
        result["bars"] = [bar.as_dict() for bar in bars(result)]
        on_case(result)
        del job
        gc.collect()  # handles refer to themselves, and graphs hold memory that the next case may need
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return result
