"""ScaleLong: skips that are scaled by constants or by small learned gates, for steadier training.

Huang, Zhou, Yan, Lin: "ScaleLong: Towards More Stable Training of Diffusion Model via Scaling Network Long Skip
Connection", NeurIPS 2023, arXiv 2310.13545.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import ClassVar

import torch
from torch import nn

from ..errors import SettingError
from ..fourier import without_autocast
from .base import is_int
from .skip_method import Place, SkipEdit, SkipMethod, listed, scaled
from .skip_tuning import Scale

MODES = ("cs", "ls", "sqrt2")
GATES = ("channel", "token")
STARTS = ("identity", "paper")
INNERMOST = 0.7**5
"""The innermost factor of kappa = 0.7 at six skips, a setting of the paper that lies amid its range of 0.5 to 0.95."""


@dataclass(frozen=True, repr=False)
class ScaleLong(SkipMethod):
    """Settings of ScaleLong: the i-th skip enters the decoder as ``kappa_i`` times itself, i = 1 the outermost.

    It is made for training, and a network must be sampled from with the scaling it was trained with. Constants on a
    pretrained network are a stronger form of Skip-Tuning; gates begin as the identity there and are then trained.

    In a convolutional U-Net a GroupNorm stands between a skip and most of what reads it, and undoes any scale that its whole
    group shares: ``cs``, ``sqrt2`` and token gates (but for their spatial pattern) act only through the layer's shortcut and
    the one group that may straddle both parts (``inspect`` and ``fold_errors`` tell which layers have one). A gate per
    channel differs within a group and so acts on both paths. The paper's evidence is mostly on U-ViT, which has no norm there.

    Args:
        mode: ``"cs"``, constants ``kappa_i = kappa ** (i - 1)``; ``"sqrt2"``, all ``2 ** -0.5``; ``"ls"``, gates
            ``kappa_i = sigmoid(W2 relu(W1 pool(skip) + b1) + b2)``, computed anew at each evaluation.
        kappa: of ``"cs"``, above 0 and at most 1 (1 is neutral). The paper's range of 0.5 to 0.95 is for six to eight
            skips; with more of them the same kappa all but closes the inner ones.
        innermost: instead of ``kappa``, the factor of the innermost of K skips: ``kappa = innermost ** (1 / (K - 1))``. Without
            either it is 0.168, what kappa = 0.7 makes of six skips.
        gate: ``"channel"``: the pool is over H and W, one factor per channel. ``"token"``, the paper's: the pool is over
            channels, one factor per pixel (per token in a transformer), and their number is part of the network, so that it works at the
            size in the U-Net's config only.
        shared: one network for all skips of one width (or one size); if false, one per skip.
        reduction: r; the hidden layer has 1 / r of the gate's inputs, and at least one unit.
        start: ``"identity"``: the last layer is zero and the gate twice the sigmoid, which is exactly 1, for pretrained networks.
            ``"paper"``: PyTorch's random start, the gate near 0.5, for training from nothing.
        weights: a file written by ``save_learned`` to start from.

    Constants fold exactly into UniDiffuser's weights: ``SkipTuning(profile=ScaleLong(kappa=0.7).factors(15), backend="fold")`` does that.

    The gates' parameters are float32, whatever the U-Net's type, and lie in ``handle.learned["scalelong"]``, not in the U-Net. They
    go to the device of the first evaluation; ``handle.learned.to(device)`` does it before. To train in several processes, wrap a
    module that holds both (its ``forward`` calls ``handle.unet``): a ``DistributedDataParallel`` of the U-Net alone leaves the gates'
    gradients as each process has them.

    Raises:
        SettingError: a value out of range, or settings that exclude each other.
    """

    mode: str = "cs"
    kappa: float | None = None
    innermost: float | None = None
    gate: str = "channel"
    shared: bool = True
    reduction: int = 16
    start: str = "identity"
    weights: str | PathLike | None = None

    headline: ClassVar[tuple[str, ...]] = ("mode",)

    def factors(self, count: int) -> list[float]:
        """The constant of each of ``count`` skips, by skip index b (0 is the outermost, i = b + 1)."""
        if self.mode == "sqrt2":
            return [2**-0.5] * count
        if self.kappa is not None:
            return [float(self.kappa) ** b for b in range(count)]
        innermost = INNERMOST if self.innermost is None else self.innermost
        return [float(innermost) ** (b / max(count - 1, 1)) for b in range(count)]

    def edits(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        if self.mode != "ls":
            return {b: Scale(factor) for b, factor in enumerate(self.factors(len(places))) if factor != 1}
        with torch.random.fork_rng(devices=[]):  # what the user draws next is the same with and without gates
            return self._gates(places)

    def account(self, places: Sequence[Place]) -> str:
        if self.mode != "ls":
            return f"times {listed(self.factors(len(places)))} from the outermost in"
        begin = (
            ""
            if self.weights is not None or self.start != "identity"
            else "; they begin as the identity, and are to be trained"
        )
        return f"gates per {self.gate} on all {len(places)}{begin}"

    def _gates(self, places: Sequence[Place]) -> dict[int, SkipEdit]:
        networks: dict[object, nn.Module] = {}
        gates = {}
        for place in places:
            size = self._size(place) if self.gate == "token" else None
            width = place.skip.channels if size is None else math.prod(size)
            key = width if self.shared else place.skip.b
            if key not in networks:
                networks[key] = gate_network(width, self.reduction, self.start == "identity")
            top = 2.0 if self.start == "identity" else 1.0
            gates[place.skip.b] = Gate(networks[key], top, size, place.skip.stride if place.spatial else None)
        return gates

    def _size(self, place: Place) -> tuple[int, int]:
        if place.size is None:
            raise SettingError(
                "ScaleLong(gate='token') has one factor per pixel, but this U-Net's config has no sample_size to take their number "
                "from. Use gate='channel', which works at any size"
            )
        return place.size

    def __post_init__(self):
        super().__post_init__()
        if self.kappa is not None and self.innermost is not None:
            raise SettingError("ScaleLong takes kappa or innermost, one of which follows from the other: leave one out")
        of_mode = {"cs": ("kappa", "innermost"), "ls": ("gate", "shared", "reduction", "start", "weights"), "sqrt2": ()}
        changed = [f.name for f in fields(self) if f.name != "mode" and getattr(self, f.name) != f.default]
        strange = [name for name in changed if name not in of_mode[self.mode]]
        if strange:
            [owner] = [mode for mode, names in of_mode.items() if strange[0] in names]
            raise SettingError(
                f"ScaleLong(mode={self.mode!r}) has no {strange[0]}, which is for mode={owner!r}: leave it out, or choose that mode"
            )

    def _check_mode(self, value):
        """'cs' (constants), 'ls' (learned gates) or 'sqrt2' (2 ** -0.5 throughout)"""
        return value in MODES

    def _check_kappa(self, value):
        """above 0 and at most 1 (1 is neutral, 0.5 to 0.95 the paper's range), or None"""
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1)

    _check_innermost = _check_kappa

    def _check_gate(self, value):
        """'channel' or 'token'"""
        return value in GATES

    def _check_shared(self, value):
        """True or False"""
        return isinstance(value, bool)

    def _check_reduction(self, value):
        """an int of at least 1 (16 in the paper)"""
        return is_int(value, 1)

    def _check_start(self, value):
        """'identity' (for pretrained networks) or 'paper' (for training from nothing)"""
        return value in STARTS

    def _check_weights(self, value):
        """the path of a file written by unetaccel.save_learned, or None"""
        return value is None or (isinstance(value, str | PathLike) and bool(str(value)))


def gate_network(width: int, reduction: int, identity: bool) -> nn.Sequential:
    """W1, relu, W2: (N, width) to (N, width), with ``width // reduction`` hidden units; all zero at first if ``identity``."""
    hidden = max(1, width // reduction)
    network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
    if identity:
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
    return network


class Gate(SkipEdit):
    """The skip times ``top * sigmoid(network(pool(skip)))``.

    Args:
        network: (N, width) to (N, width); other gates may have the same.
        top: what the gate cannot exceed.
        size: (H, W) of the skip for one factor per pixel; None for one per channel.
        stride: of the skip; None for tokens, whose number is always that of ``size``.
    """

    def __init__(self, network: nn.Sequential, top: float, size: tuple[int, int] | None, stride: int | None):
        super().__init__()
        self.network, self.top, self.size, self.stride = network, top, size, stride

    def check(self, sample):
        if self.size is None or self.stride is None:
            return
        height, width = (-(-side // self.stride) for side in sample.shape[-2:])
        if (height, width) != self.size:
            raise SettingError(
                f"ScaleLong(gate='token') was made for skips of {self.size[0]}x{self.size[1]} pixels at stride {self.stride}, the "
                f"size in the U-Net's config, but here they have {height}x{width}. Sample at that size, or use "
                "gate='channel', which works at any"
            )

    def forward(self, hidden, skip, strength):
        factor = self.factor(skip)
        unscaled = skip.clone() if torch.is_grad_enabled() else skip  # the gate's gradient is made of it
        skip.copy_(scaled(unscaled, factor))

    def multiplier(self, skip, strength):
        return self.factor(skip)

    def factor(self, skip: torch.Tensor) -> torch.Tensor:
        """The gate for a skip (N, C, H, W): (N, C, 1, 1), or (N, 1, H, W), in the type of its parameters."""
        dtype = self.network[0].weight.dtype
        with without_autocast(skip.device.type):
            pooled = skip.mean((2, 3) if self.size is None else 1, dtype=dtype).flatten(1)
            gate = self.top * torch.sigmoid(self.network(pooled))
        return gate[:, :, None, None] if self.size is None else gate.unflatten(1, (1, *self.size))
