"""Skip-Tuning: make the skips of a pretrained U-Net weaker, most of all the inner ones.

Ma, Xue, Hu, Wang, Jin: "The Surprising Effectiveness of Skip-Tuning in Diffusion Sampling", ICML 2024, arXiv 2402.15170.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..errors import SettingError
from ..folds import can_fold, fold_inputs, fold_outputs
from ..timeline import Timeline
from .skip_method import Place, SkipEdit, SkipMethod, at_strength, listed, scaled, straddles

PROFILES = ("linear", "constant")
SCHEDULES = ("increasing", "decreasing")
WHERE = ("concat", "shortcut", "norm_out")
BACKENDS = ("runtime", "fold")


@dataclass(frozen=True, repr=False)
class SkipTuning(SkipMethod):
    """Settings of Skip-Tuning: skip b enters the decoder as ``rho_b`` times itself.

    Args:
        rho_bottom: factor of the innermost skip, above 0; 1 is neutral; needed unless ``profile`` lists all. The paper uses 0.65 to 0.85 on EDM ImageNet-64 (more
            steps, larger rho). Above 1 the paper reports strong degradation, and there is a warning.
        rho_top: factor of the outermost skip.
        profile: ``"linear"`` from bottom to top in the order of consumption (the paper's interpolation, both ends reached);
            ``"constant"``, all ``rho_bottom``; or one factor per skip, by skip index (0 is outermost).
        schedule: None, the same at all times; ``"increasing"``: rho at t = 0, rising linearly to 1 at t = T (the paper's choice
            for noise prediction); ``"decreasing"``: 1 at t = 0, falling to rho at t = T (its choice for data prediction, EDM);
            or ``(sigma_low, sigma_high)``, rho within this window of noise levels and 1 outside.
        where: ``"concat"``, the paper's operation. ``"shortcut"``: only the copy of the skip that goes through the layer's
            shortcut; this is all of ``concat`` that a GroupNorm lets through where no group holds both parts (the paper's
            appendix C). ``"norm_out"``: only the skip's part of what the first norm puts out, a different, stronger
            operation: tune rho anew.
        backend: ``"runtime"`` multiplies at each evaluation; ``"fold"`` puts the factors into a copy of the shortcut's or
            norm's weights. Exact for ``shortcut`` and ``norm_out``; for ``concat`` it folds the shortcut, and ``fold_errors``
            tells what that loses. It buys graphs without an extra operation, not time.
        compensate_control: divide a ControlNet's residuals by rho first, so that control is not weakened along with the
            skips (with ``where="concat"``). A T2I-Adapter's states enter the encoder before skips are made, and are not.

    Raises:
        SettingError: a value out of range, or settings that exclude each other.
    """

    rho_bottom: float | None = None
    rho_top: float = 1.0
    profile: str | Sequence[float] = "linear"
    schedule: str | tuple[float, float] | None = None
    where: str = "concat"
    backend: str = "runtime"
    compensate_control: bool = False

    headline: ClassVar[tuple[str, ...]] = ("rho_bottom",)
    example: ClassVar[str] = "{rho_bottom: 0.8}"

    def rhos(self, count: int) -> list[float]:
        """The factor of each of ``count`` skips, by skip index b.

        Raises:
            SettingError: a list of another length.
        """
        if self.profile == "constant":
            return [float(self.rho_bottom)] * count
        if self.profile == "linear":
            rise = (self.rho_top - self.rho_bottom) / max(count - 1, 1)
            return [float(self.rho_top), *(self.rho_bottom + (count - 1 - b) * rise for b in range(1, count))]
        if len(self.profile) != count:
            raise SettingError(
                f"SkipTuning(profile=...) has {len(self.profile)} factors, but this U-Net has {count} skips: give one for each, "
                "from the outermost (skip 0) to the innermost"
            )
        return [float(rho) for rho in self.profile]

    def edits(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        rhos = self.rhos(len(places))
        if self.where == "norm_out" and not all(map(_has_norm, places)):
            raise SettingError(
                "SkipTuning(where='norm_out') scales what a norm over the concatenation puts out, and this model has none, or one with "
                "its activation inside: use where='concat'"
            )
        if self.where != "concat":
            return {}
        if self.backend == "fold":
            self._warn_of_straddling(places, rhos)
            return {}
        return {b: Scale(rho) for b, rho in enumerate(rhos) if rho != 1}

    def _warn_of_straddling(self, places: Sequence[Place], rhos: list[float]) -> None:
        inexact = [p.skip.b for p in places if rhos[p.skip.b] != 1 and straddles(p)]
        if inexact:
            warnings.warn(
                f"unetaccel: folding {self} loses part of its effect at skips {', '.join(map(str, inexact))}, where a norm's group "
                "holds both parts of its input (see unetaccel.fold_errors). backend='runtime' is exact",
                stacklevel=2,
            )

    def parts(self, place: Place, strength: nn.Module | None) -> dict[str, nn.Module]:
        if self.where == "concat" and self.backend == "runtime":
            return {}
        rho = self.rhos(place.count)[place.skip.b]
        if rho == 1:
            return {}
        name = place.norm if self.where == "norm_out" else place.shortcut
        part, start = getattr(place.layer, name, None), place.skip.hidden
        fold = self.backend == "fold" and place.stays and can_fold(part)
        if self.where == "norm_out":
            return {name: fold_outputs(part, start, rho) if fold else ScaledOutput(part, start, rho, strength)}
        if fold:
            return {name: fold_inputs(part, start, rho)}
        return {name: ScaledInput(part or nn.Identity(), start, rho, strength, dim=1 if place.spatial else -1)}

    def strengths(self, timeline: Timeline) -> list[float] | None:
        if self.schedule is None:
            return None
        if isinstance(self.schedule, str):
            shares = timeline.shares()
            if shares is not None:
                return [1 - u if self.schedule == "increasing" else u for u in shares]
        else:
            sigmas = timeline.sigmas()
            if sigmas is not None:
                low, high = self.schedule
                return [float(low <= sigma <= high) for sigma in sigmas]
        raise SettingError(
            f"SkipTuning(schedule={self.schedule!r}) needs the times of a sampling call, which are not known here. Sample with "
            "the pipeline, or give them: handle.run(50, timesteps=..., sigmas=...)"
        )

    def account(self, places: Sequence[Place]) -> str:
        when = "" if self.schedule is None else f", schedule {self.schedule}"
        return f"times {listed(self.rhos(len(places)))} from the outermost in ({self.where}, {self.backend}{when})"

    def residual_factors(self, places: Sequence[Place]) -> list[float] | None:
        return self.rhos(len(places)) if self.compensate_control else None

    def __post_init__(self):
        for name in ("profile", "schedule"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(getattr(value, "tolist", lambda value=value: value)()))
        super().__post_init__()
        if self.schedule is not None and self.backend == "fold":
            raise SettingError("SkipTuning(backend='fold') is constant: leave schedule out, or use backend='runtime'")
        if self.compensate_control and (self.where != "concat" or self.backend != "runtime"):
            raise SettingError(
                "SkipTuning(compensate_control=True) works with where='concat' and backend='runtime' only"
            )
        if self.rho_bottom is None and isinstance(self.profile, str):
            raise SettingError(
                "SkipTuning needs rho_bottom, for example SkipTuning(0.8), or a profile that lists every factor"
            )
        largest = max(self.profile if isinstance(self.profile, tuple) else self.rhos(2))
        if largest > 1:
            warnings.warn(
                f"unetaccel: SkipTuning with rho={largest}: above 1 the paper reports strong degradation", stacklevel=3
            )

    def _check_rho_bottom(self, value):
        """a finite number above 0 (1 is neutral, 0.65 to 0.95 usual)"""
        return value is None or is_factor(value)

    def _check_rho_top(self, value):
        """a finite number above 0"""
        return is_factor(value)

    def _check_profile(self, value):
        """'linear', 'constant', or a list of one factor above 0 per skip, outermost first"""
        return value in PROFILES if isinstance(value, str) else isinstance(value, tuple) and all(map(is_factor, value))

    def _check_schedule(self, value):
        """None, 'increasing', 'decreasing', or a window of noise levels (sigma_low, sigma_high), the lower one first"""
        if isinstance(value, tuple):
            return (
                len(value) == 2 and all(isinstance(v, int | float) and v >= 0 for v in value) and value[0] <= value[1]
            )
        return value is None or value in SCHEDULES

    def _check_where(self, value):
        """'concat', 'shortcut' or 'norm_out'"""
        return value in WHERE

    def _check_backend(self, value):
        """'runtime' or 'fold'"""
        return value in BACKENDS

    def _check_compensate_control(self, value):
        """True or False"""
        return isinstance(value, bool)


def is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _has_norm(place: Place) -> bool:
    norm = getattr(place.layer, place.norm or "", None)
    return norm is not None and not getattr(norm, "fused_act", False)  # as PhysicsNeMo's copy of EDM's networks has it


class Scale(SkipEdit):
    """The skip times rho."""

    def __init__(self, rho: float):
        super().__init__()
        self.rho = rho

    def forward(self, hidden, skip, strength):
        if strength is None:
            skip.mul_(self.rho)
        else:
            skip.copy_(scaled(skip, at_strength(self.rho, strength)))

    def multiplier(self, skip, strength):
        return at_strength(self.rho, strength)


class ScaledInput(nn.Module):
    """A layer whose input channels from ``start`` on, along ``dim``, are multiplied first."""

    def __init__(self, layer: nn.Module, start: int, rho: float, strength: nn.Module | None, dim: int = 1):
        super().__init__()
        self.layer, self.start, self.rho, self.strength, self.dim = layer, start, rho, strength, dim

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.layer(_scaled_from(self.start, x, self), *args, **kwargs)


class ScaledOutput(ScaledInput):
    """A layer whose output channels from ``start`` on are multiplied afterwards."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return _scaled_from(self.start, self.layer(x, *args, **kwargs), self)


def _scaled_from(start: int, x: torch.Tensor, part: ScaledInput) -> torch.Tensor:
    factor = at_strength(part.rho, None if part.strength is None else part.strength.value)
    kept, skip = x.tensor_split([start], dim=part.dim)
    return torch.cat([kept, scaled(skip, factor)], dim=part.dim)
