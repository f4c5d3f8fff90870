"""The specification of every operation, in plain PyTorch.

All of them compute in float32 (in float64 for float64 tensors) and round once, to the dtype of their first tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from .rules import (
    check_features,
    check_moments,
    check_norm,
    check_out,
    check_parts,
    check_scale,
    check_table,
    hidden_part,
)
from .tiles import chunk_length


def forecast_blend(
    features: Sequence[torch.Tensor],
    weights: Sequence[float] | torch.Tensor,
    row: int | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """F at a cached evaluation, as a weighted sum of full ones: ``sum_i weights[i] * features[i]``.

    Args:
        features: one or more tensors of one shape (N, C, H, W), dtype and device.
        weights: one number per feature; or a table (rows, at least one per feature), float32, on the features' device. A
            feature whose weight in a table is 0 is not read: it may hold anything.
        row: of the table; an int, or one integer on the device, which is clamped to the table, since a check would
            have to wait for it.
        out: where to write the result, of the features' shape.

    Returns:
        (N, C, H, W) in the features' dtype; ``out``, if that was given.

    Raises:
        ValueError: no feature, or not one weight for each; shapes or dtypes that differ.
    """
    if isinstance(weights, torch.Tensor):
        check_features(features, min(len(features), weights.shape[-1]))
        total = _sum_of_row(features, weights, row)
    else:
        check_features(features, len(weights))
        total = sum(_wide(f) * w for f, w in zip(features, weights, strict=True))
    if out is None:
        return total.to(features[0].dtype)
    check_out(out, features[0])
    return out.copy_(total)


def _sum_of_row(features: Sequence[torch.Tensor], table: torch.Tensor, row: int | torch.Tensor) -> torch.Tensor:
    check_table(table, row if isinstance(row, torch.Tensor) else None, features)
    if isinstance(row, torch.Tensor):
        weights = table.index_select(0, row.reshape(1).clamp(0, len(table) - 1))[0]
    else:
        weights = table[row]
    terms = (torch.where(w != 0, _wide(f) * w, 0) for f, w in zip(features, weights, strict=False))
    return sum(terms)


def scale_concat(
    hidden: torch.Tensor, skip: torch.Tensor, scale: float | torch.Tensor = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters a decoder layer, ``cat([hidden, scale * skip], 1)``, and the moments of it that a GroupNorm needs.

    Args:
        hidden: (N, C_hidden, H, W), the backbone's part.
        skip: (N, C_skip, H, W).
        scale: a number, or a tensor of shape (), (N, C_skip, 1, 1) or (N, 1, H, W); the product is rounded once.

    Returns:
        The concatenation (N, C, H, W), and its moments (N, C, chunks, 2): of each channel's pixels, in chunks of one
        length but for the last, the sum and the sum of squares about the chunk's own mean. Squares about zero would lose the
        variance where the mean is far larger. Of each channel, so that any groups can be formed of them, also one that
        straddles the seam between the parts.

    Raises:
        ValueError: parts or a scale that do not fit.
    """
    check_parts(hidden, skip)
    check_scale(scale, skip)
    scaled = (_wide(skip) * scale).to(skip.dtype)
    joined = torch.cat([hidden, scaled], dim=1)
    return joined, moments_of(joined)


def scale_concat_into(joined: torch.Tensor, skip: torch.Tensor, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """``scale_concat`` of a hidden part that is the first channels of ``joined`` already: writes the others.

    Args:
        joined: (N, C, H, W), with C larger than the skip's.
        skip, scale: as ``scale_concat``.

    Returns:
        The moments, as ``scale_concat``.

    Raises:
        ValueError: a skip or a scale that does not fit.
    """
    hidden = hidden_part(joined, skip)
    check_parts(hidden, skip)
    check_scale(scale, skip)
    joined[:, hidden.shape[1] :] = _wide(skip) * scale
    return moments_of(joined)


def moments_of(x: torch.Tensor) -> torch.Tensor:
    """Moments (N, C, 1, 2) of ``x`` (N, C, H, W): each channel in one chunk."""
    wide = _wide(x).flatten(2)
    centred = wide - wide.mean(2, keepdim=True)
    return torch.stack([wide.sum(2), centred.square().sum(2)], dim=-1).unsqueeze(2)


def groupnorm_silu(
    hidden: torch.Tensor,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    moments: torch.Tensor | None = None,
) -> torch.Tensor:
    """``silu(group_norm(x))`` of ``x = cat([hidden, skip], 1)``, or of ``hidden`` alone.

    Args:
        hidden: (N, C_hidden, H, W).
        skip: (N, C_skip, H, W), or None.
        weight, bias: (C,).
        groups: that divide C evenly, wherever the seam between the parts lies.
        eps: added to the variance.
        moments: of ``x`` (see ``scale_concat``), where they are known.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: parts, groups, weight or moments that do not fit.
    """
    check_parts(hidden, skip)
    x = hidden if skip is None else torch.cat([hidden, skip], dim=1)
    check_norm(x.shape[1], weight, bias, groups)
    if moments is None:
        moments = moments_of(x)
    check_moments(moments, hidden, x.shape[1])
    mean, variance = group_statistics(moments, groups, x.shape[2] * x.shape[3])
    width = x.shape[1] // groups
    mean, deviation = (v.repeat_interleave(width, 1)[..., None, None] for v in (mean, (variance + eps).sqrt()))
    normed = (_wide(x) - mean) / deviation * _wide(weight)[:, None, None] + _wide(bias)[:, None, None]
    return functional.silu(normed).to(x.dtype)


def group_statistics(moments: torch.Tensor, groups: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance (N, groups) from moments (N, C, chunks, 2) of channels of so many pixels.

    Chan, Golub, LeVeque: sums of squares about the parts' means, and what the means are apart.
    """
    N, C, chunks, _ = moments.shape
    length = chunk_length(pixels, chunks)
    counts = [min(length, pixels - i * length) for i in range(chunks)]
    counts = torch.tensor(counts, dtype=moments.dtype, device=moments.device)
    sums, centred = (m.reshape(N, groups, C // groups, chunks) for m in moments.unbind(-1))
    size = C // groups * pixels
    mean = sums.sum((2, 3)) / size
    apart = sums / counts - mean[..., None, None]
    return mean, (centred + counts * apart.square()).sum((2, 3)) / size


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
