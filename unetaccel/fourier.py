"""Scaling the lowest frequencies of a feature map without a Fourier transform.

FreeU multiplies a 2 x 2 window of the shifted spectrum around its zero frequency: the four bins ky, kx in {0, -1}. The real
part of what these four contribute is a projection on seven images, so the whole filter is two thin matrix products:

    y = x + (s - 1) / (H W) * (x B^T) B        with x (C, H W) and B (7, H W)

It needs no complex numbers, which bfloat16, float16 on many sizes and compiled graphs do not have.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: str) -> AbstractContextManager:
    """Full precision on a kind of device, of which "meta" has no other."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def low_basis(height: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """The images B, (rows, height * width): 1, and cosine and sine of a, b and a + b, with a = 2 pi y / H, b = 2 pi x / W.

    A side of one pixel has the zero frequency only: what would repeat it is left out (3 rows, or 1).
    """
    a = torch.arange(height, dtype=dtype, device=device)[:, None] * (2 * math.pi / height)
    b = torch.arange(width, dtype=dtype, device=device)[None, :] * (2 * math.pi / width)
    angles = ([a] if height > 1 else []) + ([b] if width > 1 else []) + ([a + b] if height > 1 and width > 1 else [])
    images = [torch.ones_like(a + b), *(wave for angle in angles for wave in (angle.cos(), angle.sin()))]
    return torch.stack([image.expand(height, width) for image in images]).flatten(1)


def scale_low_frequencies(x: torch.Tensor, factor: float, basis: torch.Tensor) -> torch.Tensor:
    """``x`` (N, C, H, W) with its lowest frequencies times ``factor``: computed in the type of ``basis``, returned in that of x.

    Args:
        basis: ``low_basis`` of this size.
    """
    wide = x.to(basis.dtype)
    with without_autocast(x.device.type):  # which would round both products to half precision
        low = (wide.flatten(2) @ basis.T) @ basis
    return wide.add(low.unflatten(2, x.shape[2:]), alpha=(factor - 1) / basis.shape[1]).to(x.dtype)
