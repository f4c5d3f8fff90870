"""GroupNorm and SiLU in one pass over the concatenation of two parts, which need not be concatenated.

Moments (from ``scale_concat``, or from a pass of their own over the parts) are combined to a mean and a deviation per
group by a small kernel; then one pass reads, normalises, activates and writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rules import check_kernel_dtype, check_moments, check_norm, check_parts
from .scale_concat import empty_joined, tiles_of
from .scale_concat import launch as join
from .tiles import as_planes, chunk_length, planes

BLOCK = 512
"""Moments that a program of ``combine_kernel`` reads at once."""


@triton.jit
def combine_kernel(
    moments,  # (N, C, chunks, 2) float32
    statistics,  # (N, groups, 2) float32: mean, 1 / sqrt(variance + eps)
    width,  # channels of a group
    P,
    chunks,
    length,  # pixels of a chunk but the last
    eps,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    parts = width * chunks
    size = width * P * 1.0
    here = moments + group.to(tl.int64) * parts * 2
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(here + 2 * i, mask=i < parts, other=0)
    mean = tl.sum(total, axis=0) / size
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK)
        count = tl.minimum(P - i % chunks * length, length).to(tl.float32)
        apart = tl.load(here + 2 * i, mask=i < parts, other=0) / count - mean
        centred = tl.load(here + 2 * i + 1, mask=i < parts, other=0)
        squares += tl.where(i < parts, centred + count * apart * apart, 0.0)
    variance = tl.sum(squares, axis=0) / size
    tl.store(statistics + 2 * group, mean)
    tl.store(statistics + 2 * group + 1, 1 / tl.sqrt(variance + eps))


@triton.jit
def apply_kernel(
    hidden,  # (N, CH, P)
    skip,  # (N, C - CH, P); not read where CH is C
    statistics,  # (N, groups, 2) float32
    weight,  # (C,)
    bias,  # (C,)
    out,  # (N, C, P)
    C,
    CH,
    P,
    chunks,
    groups,
    width,
    hn,  # strides by sample, channel, pixel: of hidden, skip, out
    hc,
    hp,
    sn,
    sc,
    sp,
    on,
    oc,
    op,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    down = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0)
    n = (block // (chunks * down)).to(tl.int64)
    c = (block // chunks % down).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (block % chunks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < C)[:, None] & (p < P)[None, :]
    first = (c < CH)[:, None]
    x = tl.load(hidden + n * hn + c[:, None] * hc + p[None, :] * hp, mask=inside & first, other=0)
    y = tl.load(skip + n * sn + (c - CH)[:, None] * sc + p[None, :] * sp, mask=inside & (c >= CH)[:, None], other=0)
    of_group = statistics + (n * groups + c // width) * 2
    mean = tl.load(of_group, mask=c < C, other=0)[:, None]
    scale = tl.load(of_group + 1, mask=c < C, other=0)[:, None]
    scale *= tl.load(weight + c, mask=c < C, other=0).to(tl.float32)[:, None]
    shift = tl.load(bias + c, mask=c < C, other=0).to(tl.float32)[:, None]
    z = (tl.where(first, x, y).to(tl.float32) - mean) * scale + shift
    z = z / (1 + tl.exp(-z))
    tl.store(out + n * on + c[:, None] * oc + p[None, :] * op, z.to(out.dtype.element_ty), mask=inside)


def launch(
    hidden: torch.Tensor,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    moments: torch.Tensor | None,
) -> torch.Tensor:
    """``silu(group_norm(cat([hidden, skip], 1)))``, in memory as ``hidden`` lies there.

    Raises:
        ValueError: what ``rules`` does not allow.
    """
    check_parts(hidden, skip)
    channels = hidden.shape[1] + (0 if skip is None else skip.shape[1])
    check_norm(channels, weight, bias, groups)
    check_kernel_dtype(hidden, weight, bias)
    if moments is None:
        moments = join(hidden, skip, out=None)
    check_moments(moments, hidden, channels)
    out = empty_joined(hidden, channels)
    tiles = tiles_of(hidden, channels)
    if not tiles.programs:
        return out
    hidden, hidden_strides = as_planes(hidden)
    skip, skip_strides = (hidden, (0, 0, 0)) if skip is None else as_planes(skip)
    pixels = hidden.shape[2] * hidden.shape[3]
    with torch.cuda.device_of(hidden):
        statistics = _combine(moments.contiguous(), groups, pixels, eps)
        apply_kernel[(tiles.programs,)](
            *(hidden, skip, statistics, weight.contiguous(), bias.contiguous(), out),
            *(channels, hidden.shape[1], pixels, tiles.chunks, groups, channels // groups),
            *(*hidden_strides, *skip_strides, *planes(out)),
            BLOCK_C=tiles.channels,
            BLOCK_P=tiles.pixels,
            num_warps=tiles.warps,
        )
    return out


def _combine(moments: torch.Tensor, groups: int, pixels: int, eps: float) -> torch.Tensor:
    """Mean and 1 / sqrt(variance + eps) per group, (N, groups, 2), from moments (N, C, chunks, 2)."""
    N, C, chunks, _ = moments.shape
    statistics = moments.new_empty((N, groups, 2))
    length = chunk_length(pixels, chunks)
    combine_kernel[(N * groups,)](moments, statistics, C // groups, pixels, chunks, length, eps, BLOCK=BLOCK)
    return statistics


@torch.library.custom_op(
    "unetaccel::groupnorm_silu",
    mutates_args=(),
    schema="(Tensor hidden, Tensor? skip, Tensor weight, Tensor bias, int groups, float eps, Tensor? moments=None) -> Tensor",
)
def groupnorm_silu(
    hidden: torch.Tensor,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    moments: torch.Tensor | None = None,
) -> torch.Tensor:
    """``reference.groupnorm_silu`` by two small kernels, and a third for the moments where they are not given."""
    return launch(hidden, skip, weight, bias, groups, eps, moments)


@groupnorm_silu.register_fake
def _(hidden, skip, weight, bias, groups, eps, moments=None):
    return empty_joined(hidden, hidden.shape[1] + (0 if skip is None else skip.shape[1]))
