"""FreeU: strengthen half of the backbone in the inner decoder blocks, and weaken the low frequencies of their skips.

Si, Huang, Jiang, Liu: "FreeU: Free Lunch in Diffusion U-Net", CVPR 2024, arXiv 2309.11497.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..errors import SettingError
from ..fourier import low_basis, scale_low_frequencies
from .skip_method import Place, SkipEdit, SkipMethod


@dataclass(frozen=True, repr=False, kw_only=True)
class FreeU(SkipMethod):
    """Settings of FreeU as diffusers has it (``pipe.enable_freeu``), by name only: the four are easily mixed up.

    In the decoder layers of the first up block (stage 1) and of the second (stage 2), the first half of the backbone's channels
    is multiplied by b and the four lowest frequencies of the skip by s. On diffusers' U-Nets with an ``enable_freeu`` the
    outputs are the same up to rounding. Here it also works on those without one, or whose blocks ignore it
    (``UNet2DModel``, Stable Video Diffusion, DeepFloyd IF, Kandinsky 2), on every layer of their first two up blocks.

    There are no defaults, because the paper's values are chosen for each model. From its repository's README
    (ChenyangSi/FreeU), whose b follows the feature's mean and whose stages are chosen by width:

        SD 1.4  b1=1.3, b2=1.4, s1=0.9, s2=0.2        SD 1.5  b1=1.5, b2=1.6, s1=0.9, s2=0.2
        SD 2.1  b1=1.4, b2=1.6, s1=0.9, s2=0.2        SDXL    b1=1.3, b2=1.4, s1=0.9, s2=0.2

    diffusers' documentation repeats them for its variant with constant b.

    Args:
        b1, b2: factors of the backbone in stages 1 and 2, above 0; 1 is neutral, 1.1 to 1.6 usual.
        s1, s2: factors of the skips' low frequencies, 0 and up; 1 is neutral, 0.2 to 0.9 usual.

    Raises:
        SettingError: a value out of range; when applied, a model without feature maps, or with diffusers' FreeU on.
    """

    b1: float
    b2: float
    s1: float
    s2: float

    headline: ClassVar[tuple[str, ...]] = ("b1", "b2", "s1", "s2")
    example: ClassVar[str] = "{b1: 1.3, b2: 1.4, s1: 0.9, s2: 0.2}"

    def edits(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        if not all(p.spatial for p in places):
            raise SettingError(
                "FreeU filters skips in space, and this model's are token sequences: SkipTuning works here"
            )
        stages, bases = ((self.b1, self.s1), (self.b2, self.s2)), Bases()
        factors = {p.skip.b: stages[p.skip.up_block] for p in places if p.skip.up_block < len(stages)}
        return {b: Boost(*factor, bases) for b, factor in factors.items() if factor != (1, 1)}

    def account(self, places: Sequence[Place]) -> str:
        edits = self.edits(places)
        stages = {1: (self.b1, self.s1), 2: (self.b2, self.s2)}
        found = [
            f"stage {stage} (skips {', '.join(str(b) for b in ours)}): half the backbone times {b:g}, low frequencies of the skip times {s:g}"
            for stage, (b, s) in stages.items()
            if (ours := [p.skip.b for p in places if p.skip.up_block == stage - 1 and p.skip.b in edits])
        ]
        return "; ".join(found) or "nothing (neutral)"

    def check_model(self, unet: nn.Module) -> None:
        blocks = getattr(unet, "up_blocks", ())
        if any(all(getattr(block, name, None) for name in self.headline) for block in blocks):
            raise SettingError(
                "this U-Net has diffusers' own FreeU switched on, and unetaccel.FreeU would act a second time. Switch one off: "
                "pipe.disable_freeu(), or handle.remove()"
            )

    def _check_b1(self, value):
        """a finite number above 0 (1 is neutral, 1.1 to 1.6 usual)"""
        return is_number(value) and value > 0

    _check_b2 = _check_b1

    def _check_s1(self, value):
        """a finite number of at least 0 (1 is neutral, 0.2 to 0.9 usual)"""
        return is_number(value) and value >= 0

    _check_s2 = _check_s1


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Bases:
    """``low_basis`` of the sizes seen lately. What is kept is never written to, so threads may share it."""

    LIMIT = 16

    def __init__(self):
        self._kept: dict[tuple, torch.Tensor] = {}

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """For feature maps like ``x`` (N, C, H, W), in float32 or better."""
        key = (*x.shape[2:], torch.promote_types(x.dtype, torch.float32), x.device)
        if torch.compiler.is_compiling():  # a graph makes its own: it must not depend on what is kept
            return low_basis(*key)
        basis = self._kept.get(key)
        if basis is None:
            if len(self._kept) >= self.LIMIT:
                self._kept.clear()
            with torch.inference_mode(False):  # or it could serve no gradient later
                basis = self._kept[key] = low_basis(*key)
        return basis


class Boost(SkipEdit):
    """Half of the backbone times b, the skip's low frequencies times s."""

    def __init__(self, b: float, s: float, bases: Bases):
        super().__init__()
        self.b, self.s, self.bases = b, s, bases

    def forward(self, hidden, skip, strength):
        if self.b != 1:
            hidden[:, : hidden.shape[1] // 2].mul_(self.b)
        if self.s != 1:
            skip.copy_(scale_low_frequencies(skip, self.s, self.bases.of(skip)))
