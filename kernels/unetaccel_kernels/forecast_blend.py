"""Forecast blend: F at a cached step as a weighted sum of one to four full features, by weights that lie on the device.

One pass: each feature whose weight is not 0 is read once, the sum is kept in float32 and rounded once. The weights are
a row of a table, and the row may be an integer on the device: a captured graph then serves every cached step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rules import MOST_FEATURES, check_features, check_kernel_dtype, check_out, check_table
from .tiles import TILE, row_tile, rows_of


@triton.jit
def blend_kernel(
    f0,  # features, without gaps, in the order of `out`; those from COUNT on are not read
    f1,
    f2,
    f3,
    table,  # (table_rows, at least COUNT) float32
    row,  # one integer, or None for row 0
    out,  # rows of `cols` elements, `stride` apart
    table_rows,
    table_stride,
    rows,
    cols,
    stride,
    COUNT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    across = tl.cdiv(cols, BLOCK_C)
    block = tl.program_id(0)
    r = (block // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (block % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < cols)[None, :]
    at = r[:, None] * cols + c[None, :]
    weights = table
    if row is not None:
        weights += tl.minimum(tl.maximum(tl.load(row), 0), table_rows - 1) * table_stride
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for i in tl.static_range(COUNT):
        feature = f0 if i == 0 else f1 if i == 1 else f2 if i == 2 else f3
        weight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32) + tl.load(weights + i)  # the interpreter can't spread a truth
        total += weight * tl.load(feature + at, mask=inside & (weight != 0), other=0).to(tl.float32)
    tl.store(out + r[:, None] * stride + c[None, :], total.to(out.dtype.element_ty), mask=inside)


def launch(
    features: list[torch.Tensor], table: torch.Tensor, row: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Write the blend to ``out``: without gaps, or a slice of such a tensor. Features in another order are copied first.

    Without ``out``, to a new tensor in the order of the first feature.

    Raises:
        ValueError: more than four features; what ``rules`` does not allow; or an ``out`` that lies otherwise.
    """
    if len(features) > MOST_FEATURES:
        raise ValueError(f"the kernel blends up to {MOST_FEATURES} features, got {len(features)}")
    check_features(features, min(len(features), table.shape[-1]))
    check_table(table, row, features)
    out = torch.empty_like(features[0]) if out is None else out
    check_out(out, features[0])
    check_kernel_dtype(out)
    view = rows_of(out)
    if view is None:
        raise ValueError(f"out must be dense, or a slice of a dense tensor, got strides {out.stride()} of {out.shape}")
    if not out.numel():
        return out
    read = [_in_order(f, view.dense) for f in features]
    read += read[-1:] * (MOST_FEATURES - len(read))
    block_r, block_c = row_tile(view)
    programs = -(-view.rows // block_r) * -(-view.cols // block_c)
    with torch.cuda.device_of(out):
        blend_kernel[(programs,)](
            *read,
            *(table.contiguous(), row, out, len(table), table.shape[1]),
            *(view.rows, view.cols, view.stride),
            COUNT=len(features),
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            num_warps=4 if block_r * block_c >= TILE else 2,
        )
    return out


def _in_order(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """``x``, or a copy of it, that lies in memory by ``strides``; those of dimensions of size 1 do not count."""
    if all(size == 1 or have == want for size, have, want in zip(x.shape, x.stride(), strides, strict=True)):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


@torch.library.custom_op(
    "unetaccel::forecast_blend",
    mutates_args=(),
    schema="(Tensor[] features, Tensor table, Tensor? row=None) -> Tensor",
)
def forecast_blend(features: list[torch.Tensor], table: torch.Tensor, row: torch.Tensor | None = None) -> torch.Tensor:
    """``reference.forecast_blend`` of a table, by one kernel; without ``row``, of row 0."""
    return launch(features, table, row)


@forecast_blend.register_fake
def _(features, table, row=None):
    return torch.empty_like(features[0])


@torch.library.custom_op(
    "unetaccel::forecast_blend_out",
    mutates_args=("out",),
    schema="(Tensor[] features, Tensor table, Tensor? row, Tensor(a!) out) -> ()",
)
def forecast_blend_out(
    features: list[torch.Tensor], table: torch.Tensor, row: torch.Tensor | None, out: torch.Tensor
) -> None:
    """The same, written to ``out``, which may be a slice of channels of a larger buffer."""
    launch(features, table, row, out)


@forecast_blend_out.register_fake
def _(features, table, row, out):
    check_out(out, features[0])
