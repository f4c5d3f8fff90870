"""What a metric is given and what it answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from ..demo.scenes import Scenes
from ..errors import SettingError
from .moments import Moments


class Value(TypedDict):
    """One figure of one row; None where it is infinite, which JSON has no word for."""

    value: float | None  # over all samples
    per_seed: list[float | None]  # one per distinct seed, in the order in which seeds first appear
    sd: float | None  # sample standard deviation of per_seed; None for a single seed


@dataclass(frozen=True)
class Context:
    """What a row's N images are measured against; any object with these attributes does.

    Args:
        prompts: N prompts, one per image.
        seeds: int tensor (N,).
        real: uint8 (M, 3, H, W), real images, or the statistics of their features.
        plain: uint8 (N, 3, H, W), the plain run of the same prompts, seeds, steps and solver.
        scenes: the N demo scenes behind the prompts.
    """

    prompts: Sequence[str]
    seeds: torch.Tensor
    real: torch.Tensor | Moments | None = None
    plain: torch.Tensor | None = None
    scenes: Scenes | None = None


def over_seeds(seeds: torch.Tensor, measure: Callable[[torch.Tensor], dict[str, float]]) -> dict[str, Value]:
    """``measure`` called with the indices of all samples, then with those of each seed."""
    seeds = seeds.cpu()
    whole = measure(torch.arange(len(seeds)))
    distinct = list(dict.fromkeys(seeds.tolist()))
    parts = [measure((seeds == s).nonzero().flatten()) for s in distinct] if len(distinct) > 1 else [whole]
    return {name: _value(whole[name], [part[name] for part in parts]) for name in whole}


def _value(whole: float, per_seed: list[float]) -> Value:
    spread = len(per_seed) > 1 and all(map(math.isfinite, per_seed))
    return Value(
        value=_finite(whole),
        per_seed=[_finite(v) for v in per_seed],
        sd=statistics.stdev(per_seed) if spread else None,
    )


def _finite(value: float) -> float | None:
    if math.isnan(value):
        raise SettingError("a metric gave NaN: pictures or weights hold values that are no numbers")
    return float(value) if math.isfinite(value) else None
