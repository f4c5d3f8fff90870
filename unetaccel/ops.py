"""The operations that may have kernels: the only place that imports ``unetaccel_kernels``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unetaccel_kernels import reference


def forecast_blend(features: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """``sum_i weights[i] * features[i]`` of tensors of one shape and dtype, rounded once; see ``reference.forecast_blend``."""
    return reference.forecast_blend(features, weights)
