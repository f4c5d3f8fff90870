"""The specification of every operation, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def forecast_blend(features: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """F at a cached evaluation, as a weighted sum of full ones: ``sum_i weights[i] * features[i]``.

    Args:
        features: one or more tensors of one shape (N, C, H, W), dtype and device.
        weights: one number per feature.

    Returns:
        (N, C, H, W) in the features' dtype; accumulated in float32 (float64 for float64 features) and rounded once.

    Raises:
        ValueError: no feature, or not one weight for each; shapes or dtypes that differ.
    """
    if not features or len(features) != len(weights):
        raise ValueError(f"expected features with one weight each, got {len(features)} and {len(weights)}")
    first = features[0]
    if any(f.shape != first.shape or f.dtype != first.dtype for f in features):
        kinds = [(tuple(f.shape), f.dtype) for f in features]
        raise ValueError(f"features must share shape and dtype, got {kinds}")
    wide = torch.promote_types(first.dtype, torch.float32)
    total = features[0].to(wide) * weights[0]
    for feature, weight in zip(features[1:], weights[1:], strict=True):
        total = total + feature.to(wide) * weight
    return total.to(first.dtype)
