"""Weight files of the right layout with made-up numbers, the same on every machine and torch release."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from unetaccel.quality.inception import Inception


def patterned(shape, seed: int) -> torch.Tensor:
    """Numbers in [0, 1) from an integer hash, so that they can be golden."""
    code = torch.arange(math.prod(shape)) * 2654435761 + seed * 40503
    for factor in (2246822519, 3266489917):
        code = (code ^ code >> 15) % 2**32 * factor % 2**32
    return ((code >> 8) / 2**24).float().reshape(shape)


def inception_shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in Inception().state_dict().items()}


def inception_layout(**other: object) -> dict:
    """The right names and shapes at no cost on disk: each tensor a view of one number."""
    return {name: torch.zeros(()).expand(shape) for name, shape in inception_shapes().items()} | other


def inception_tensors() -> dict[str, torch.Tensor]:
    """A state dict of torch-fidelity's layout: 566 tensors, spread so that features stay in the range of units."""
    return {name: _tensor(name, shape, seed) for seed, (name, shape) in enumerate(inception_shapes().items())}


def _tensor(name: str, shape, seed: int) -> torch.Tensor:
    values = patterned(shape, seed)
    if name.endswith("conv.weight"):
        return (values - 0.5) * math.sqrt(24 / math.prod(shape[1:]))
    if name.endswith(("running_mean", "bias")):
        return (values - 0.5) * 0.2
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    return 0.6 + 0.8 * values if name.startswith(("Conv", "Mixed")) else values - 0.5


def inception_file(path: Path) -> Path:
    torch.save(inception_tensors(), path)
    return path
