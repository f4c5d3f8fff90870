"""Does each metric move the right way? Drawings of the demo, damaged in known ways, measured like samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from ..demo.scenes import Scenes, render, sample_scenes
from .metrics import Metric
from .values import Context, Value

SEEDS = 3
DISTINCT = 60
"""Pictures left when modes are dropped."""


@dataclass(frozen=True)
class Case:
    """A way to damage drawings, and what it should do to metrics.

    Args:
        than: the case that ``expected`` compares with.
        expected: ``{column: "up" | "down" | "same"}``; columns beyond that are shown, not judged.
        damage: float images (N, 3, 32, 32) in [0, 1] -> the same; None repeats ``DISTINCT`` pictures and their captions.
    """

    name: str
    damage: Callable[[torch.Tensor], torch.Tensor] | None
    than: str | None = None
    expected: tuple[tuple[str, str], ...] = ()


def noise(sigma: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def damage(images):
        return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    return damage


def blur(images: torch.Tensor) -> torch.Tensor:
    """Mean of 3x3 pixels."""
    return avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


WORSE = (("frechet", "up"), ("kernel", "up"), ("psnr", "down"), ("ssim", "down"))
REAL = "other drawings of the same captions"
CASES = (
    Case(REAL, lambda images: images),
    # Too little for the distances: with few images they do not tell it from other drawings.
    Case("noise, sd .05", noise(0.05), REAL, WORSE[2:]),
    Case("noise, sd .1", noise(0.1), "noise, sd .05", WORSE),
    Case("noise, sd .2", noise(0.2), "noise, sd .1", (*WORSE, ("labels", "down"))),
    Case("blur, 3x3", blur, REAL, WORSE),
    Case("brightness .8", lambda images: 0.8 * images, REAL, WORSE),
    Case(f"mode drop: {DISTINCT} pictures repeated", None, REAL, (*WORSE[:2], ("labels", "same"))),
    Case(
        "captions rolled by one",
        lambda images: images.roll(1, 0),
        REAL,
        (("frechet", "same"), ("labels", "down"), ("shape", "down"), ("colour", "down")),
    ),
)


def check(metrics: Sequence[Metric], captions: int = 667) -> list[dict]:
    """A row per case: ``name``, ``metrics`` (a ``Value`` per column), ``than``, ``expected``, and ``held``, whether
    each expectation held.

    Real and damaged drawings share ``captions`` held-out captions, three drawings of each.
    """
    scenes = Scenes.cat([sample_scenes(captions, seed=0, held_out=True)] * SEEDS)
    seeds = torch.arange(SEEDS).repeat_interleave(captions)
    real, drawn = (_drawings(scenes[:captions], first) for first in (0, SEEDS))
    rows, values = [], {}
    for case in CASES:
        chosen = torch.arange(len(seeds)) if case.damage else torch.arange(len(seeds)) % DISTINCT
        images = _bytes((case.damage or (lambda same: same))(drawn[chosen]))
        context = Context(scenes[chosen].captions(), seeds, _bytes(real), _bytes(drawn[chosen]), scenes[chosen])
        values[case.name] = {k: v for metric in metrics for k, v in metric.measure(images, context).items()}
        rows.append(_row(case, values))
    return rows


def _row(case: Case, values: dict[str, dict[str, Value]]) -> dict:
    found = values[case.name]
    expected = {column: way for column, way in case.expected if column in found}
    held = {column: _moved(values[case.than][column], found[column]) == way for column, way in expected.items()}
    return {"name": case.name, "than": case.than, "expected": expected, "held": held, "metrics": found}


def _moved(before: Value, after: Value) -> str:
    """Up or down, or the same within a hundredth."""
    a, b = (math.inf if v["value"] is None else v["value"] for v in (before, after))
    return "same" if math.isclose(a, b, rel_tol=0.01) else "up" if b > a else "down"


def _drawings(scenes: Scenes, first: int) -> torch.Tensor:
    return torch.cat([render(scenes, seed=first + i) for i in range(SEEDS)])


def _bytes(images: torch.Tensor) -> torch.Tensor:
    return (images.clamp(0, 1) * 255).round().byte()
