"""Recording F at several cuts in plain runs, as far as Gram matrices need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .methods.skip_method import Place, SkipEdit, SkipMethod

COORDINATES = 65_536
"""So many fixed, random coordinates of each sample's F are looked at: differences use the same, so errors keep their size."""


@dataclass(frozen=True, repr=False)
class Record(SkipMethod):
    """Writes down what enters the decoder layers of these cuts, and changes nothing.

    Args:
        cuts: skip indices.
    """

    cuts: tuple[int, ...] = ()
    seen: dict[int, list[torch.Tensor]] = field(default_factory=dict, compare=False)
    """By cut, F at each evaluation, float32 (N, coordinates) on the CPU."""

    headline: ClassVar[tuple[str, ...]] = ("cuts",)

    def edits(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        return {b: Watch(self.seen.setdefault(b, [])) for b in self.cuts}

    def account(self, places: Sequence[Place]) -> str:
        return f"watched at {', '.join(map(str, self.cuts))}"

    def taken(self, evaluations: int) -> dict[int, np.ndarray]:
        """Gram matrices of what was seen in one call, by cut: (samples, T, T); then forgets it.

        Samples are the pictures, and the halves of guidance, be they in one batch or in calls of their own.
        """
        found = {}
        for b, features in self.seen.items():
            streams = len(features) // evaluations
            X = torch.stack(features).double().reshape(evaluations, streams * len(features[0]), -1).numpy()
            found[b] = np.einsum("isd,ksd->sik", X, X, optimize=True)
            features.clear()
        return found


class Watch(SkipEdit):
    """Keeps coordinates of the backbone's part, which is F at this cut."""

    def __init__(self, seen: list[torch.Tensor]):
        super().__init__()
        self._seen, self._chosen = seen, {}

    def forward(self, hidden, skip, strength):
        flat = hidden.flatten(1)
        size = flat.shape[1]
        if size > COORDINATES:
            if size not in self._chosen:
                generator = torch.Generator().manual_seed(0)
                self._chosen[size] = torch.randperm(size, generator=generator)[:COORDINATES].to(flat.device)
            flat = flat.index_select(1, self._chosen[size])
        self._seen.append(flat.detach().float().cpu().clone())
