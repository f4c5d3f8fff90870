"""What the operations accept, said in one place for their kernels, their fakes and their reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MOST_FEATURES = 4
"""That one forecast is blended from."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Of what a kernel reads and writes; each accumulates in float32."""


def check_features(features: Sequence[torch.Tensor], count: int) -> None:
    """Features to blend: one or more of one shape, dtype and device, with ``count`` weights.

    Raises:
        ValueError: they are not.
    """
    if not features or len(features) != count:
        raise ValueError(f"expected features with one weight each, got {len(features)} and {count}")
    first = features[0]
    if any((f.shape, f.dtype, f.device) != (first.shape, first.dtype, first.device) for f in features):
        kinds = [(tuple(f.shape), f.dtype, str(f.device)) for f in features]
        raise ValueError(f"features must share shape, dtype and device, got {kinds}")


def check_table(table: torch.Tensor, row: torch.Tensor | None, features: Sequence[torch.Tensor]) -> None:
    """A table of weights (rows, at least one per feature), float32, beside the features; ``row`` one integer beside it.

    Raises:
        ValueError: it is not.
    """
    device = features[0].device
    if table.ndim != 2 or table.dtype != torch.float32 or table.device != device or not len(table):
        kind = (tuple(table.shape), table.dtype, str(table.device))
        raise ValueError(f"weights must be a float32 table (rows, features) on {device}, got {kind}")
    if row is not None and (row.numel() != 1 or row.dtype not in (torch.int32, torch.int64) or row.device != device):
        kind = (tuple(row.shape), row.dtype, str(row.device))
        raise ValueError(f"row must be one int32 or int64 on {device}, got {kind}")


def check_out(out: torch.Tensor, like: torch.Tensor) -> None:
    """A tensor to write a result like ``like`` to.

    Raises:
        ValueError: of another shape, dtype or device.
    """
    if (out.shape, out.dtype, out.device) != (like.shape, like.dtype, like.device):
        wanted, got = ((tuple(x.shape), x.dtype, str(x.device)) for x in (like, out))
        raise ValueError(f"out must be {wanted}, got {got}")


def check_parts(hidden: torch.Tensor, skip: torch.Tensor | None) -> None:
    """The parts of a concatenation: (N, C, H, W) each, alike but for C; the second may be absent.

    Raises:
        ValueError: they do not fit together.
    """
    parts = [hidden] if skip is None else [hidden, skip]
    kinds = {(p.ndim, p.shape[0], *p.shape[2:], p.dtype, p.device) for p in parts}
    if hidden.ndim != 4 or len(kinds) > 1:
        got = [(tuple(p.shape), p.dtype, str(p.device)) for p in parts]
        raise ValueError(f"expected parts (N, C, H, W) that differ in C alone, got {got}")


def hidden_part(joined: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """The channels of ``joined`` that a ``skip`` at its end leaves.

    Raises:
        ValueError: it leaves none, or they do not fit together.
    """
    if joined.ndim != 4 or skip.ndim != 4 or joined.shape[1] <= skip.shape[1]:
        got = f"{tuple(joined.shape)} and {tuple(skip.shape)}"
        raise ValueError(f"expected a concatenation (N, C, H, W) with more channels than the skip, got {got}")
    return joined[:, : joined.shape[1] - skip.shape[1]]


def check_scale(scale: float | torch.Tensor, skip: torch.Tensor) -> None:
    """A number, or a tensor of no dimensions, one per channel (N, C, 1, 1), or one per pixel (N, 1, H, W).

    Raises:
        ValueError: a tensor of another shape, of integers, or elsewhere.
    """
    if not isinstance(scale, torch.Tensor):
        return
    N, C, H, W = skip.shape
    allowed = ((), (N, C, 1, 1), (N, 1, H, W))
    if tuple(scale.shape) not in allowed or not scale.is_floating_point() or scale.device != skip.device:
        got = (tuple(scale.shape), scale.dtype, str(scale.device))
        raise ValueError(
            f"scale must be a number or a floating-point tensor of shape {allowed} on {skip.device}, got {got}"
        )


def check_norm(channels: int, weight: torch.Tensor, bias: torch.Tensor, groups: int) -> None:
    """A GroupNorm of ``channels``: weight and bias (C,), and groups of equal width.

    Raises:
        ValueError: it is not one.
    """
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(f"weight and bias must be ({channels},), got {tuple(weight.shape)} and {tuple(bias.shape)}")


def check_moments(moments: torch.Tensor, hidden: torch.Tensor, channels: int) -> None:
    """Partial moments (N, C, chunks, 2) of the pixels of ``hidden``.

    Raises:
        ValueError: of another batch or width.
    """
    if moments.ndim != 4 or moments.shape[:2] != (len(hidden), channels) or moments.shape[3] != 2:
        raise ValueError(f"moments must be ({len(hidden)}, {channels}, chunks, 2), got {tuple(moments.shape)}")


def check_kernel_dtype(*tensors: torch.Tensor) -> None:
    """Raise ValueError for a tensor that no kernel reads."""
    strange = {x.dtype for x in tensors} - set(DTYPES)
    if strange:
        raise ValueError(f"kernels take {', '.join(map(str, DTYPES))}, got {', '.join(map(str, strange))}")
