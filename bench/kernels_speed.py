"""The kernels on a GPU: each checked against float64, then timed beside a copy, eager PyTorch and the compiled reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from unetaccel import ops
from unetaccel_kernels import reference

SHAPES = {
    "SD 1.5, 512, cut 0": (2, 320, 320, 64),
    "SDXL, 1024, cut 2": (2, 640, 320, 128),
    "SD 1.5, 512, batch 8, cut 0": (16, 320, 320, 64),
    "past L2": (16, 640, 640, 128),
}
"""N (with guidance), channels of F and of the skip, side."""
GROUPS, LIVE_GROUPS, EPS = 32, 12, 1e-5
WEIGHTS = [1.75, -4 / 3, 7 / 12]
FLUSH = 256 << 20
"""Bytes written between calls, more than any L2 holds, so that inputs are read from memory."""


@dataclass(frozen=True)
class Work:
    """One operation on one shape: ways to compute it, the exact result, and the bytes that it must move."""

    name: str
    kernel: Callable[[], torch.Tensor]
    eager: Callable[[], torch.Tensor]
    exact: Callable[[], torch.Tensor]
    moved: int


def measure_all(dtype: torch.dtype, repeats: int) -> dict:
    """Rows of all operations on all shapes, in both memory formats.

    Raises:
        SystemExit: a kernel is wrong; nothing is timed.
    """
    orders = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    works = [
        (shape, order, work)
        for shape, sizes in SHAPES.items()
        for order, layout in orders.items()
        for work in works_of(sizes, dtype, layout)
    ]
    with torch.no_grad():
        for shape, order, work in works:
            gate(work, f"{work.name}, {shape}, {order}")
        empty = _microseconds(_launch_nothing(), repeats, flush=False)
        rate = _copy_rate(repeats)
        print(f"copy: {rate / 1e9:.0f} GB/s; a launch of next to nothing: {empty['median']:.1f} us")
        rows = [_row(shape, order, work, rate, repeats) for shape, order, work in works]
    return {"copy_bytes_per_second": rate, "empty_launch_us": empty, "rows": rows}


def works_of(
    sizes: tuple, dtype: torch.dtype, layout: torch.memory_format, device: str | torch.device = "cuda"
) -> list[Work]:
    """All operations on one shape of ``SHAPES``."""
    N, hidden_channels, skip_channels, side = sizes

    def normal(channels: int) -> torch.Tensor:
        return torch.randn(N, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=layout)

    features = [normal(hidden_channels) for _ in range(3)]
    hidden, skip = features[0], normal(skip_channels)
    joins = [_join(hidden, skip), _forecast(features, skip)]
    return [_blend(features), *joins, _norm(hidden, skip), _two_parts(hidden, skip), _entry(hidden, skip)]


def _blend(features: list[torch.Tensor]) -> Work:
    weights, table = WEIGHTS, ops.weight_table([[1.0, 0.0, 0.0], WEIGHTS], features[0].device)
    row = torch.ones(1, dtype=torch.int32, device=features[0].device)
    return Work(
        "blend of 3",
        lambda: ops.forecast_blend(features, table, row, backend="triton"),
        lambda: reference.forecast_blend(features, weights),
        lambda: sum(f.double() * w for f, w in zip(features, weights, strict=True)),
        4 * features[0].nbytes,
    )


def _join(hidden: torch.Tensor, skip: torch.Tensor) -> Work:
    return Work(
        "scale, concat, moments",
        lambda: ops.scale_concat(hidden, skip, 0.8, "triton")[0],
        lambda: torch.cat([hidden, 0.8 * skip], 1),
        lambda: torch.cat([hidden.double(), 0.8 * skip.double()], 1),
        2 * (hidden.nbytes + skip.nbytes),
    )


def _forecast(features: list[torch.Tensor], skip: torch.Tensor) -> Work:
    blend = ops.Blend(tuple(features), ops.weight_table([WEIGHTS], skip.device))

    def exact() -> torch.Tensor:
        blended = sum(f.double() * w for f, w in zip(features, WEIGHTS, strict=True))
        return torch.cat([blended, 0.8 * skip.double()], 1)

    return Work(
        "blend of 3 into the concat",
        lambda: ops.scale_concat(blend, skip, 0.8, "triton")[0],
        lambda: torch.cat([reference.forecast_blend(features, WEIGHTS), 0.8 * skip], 1),
        exact,
        4 * features[0].nbytes + 2 * skip.nbytes,
    )


def _norm(hidden: torch.Tensor, skip: torch.Tensor) -> Work:
    joined, moments = ops.scale_concat(hidden, skip, 0.8, "triton")
    norm = _random_norm(joined)
    return Work(
        "norm and SiLU, moments given",
        lambda: ops.groupnorm_silu(joined, None, norm, moments, "triton"),
        lambda: functional.silu(norm(joined)),
        lambda: _exact_norm(joined.double(), norm),
        2 * joined.nbytes,
    )


def _two_parts(hidden: torch.Tensor, skip: torch.Tensor) -> Work:
    """As a hoisted entry has it where a group straddles: of F only the last channels, and no concatenation."""
    rest = hidden[:, -(skip.shape[1] // 8) :]
    norm = _random_norm(torch.cat([rest[:1], skip[:1]], 1), LIVE_GROUPS)
    return Work(
        "norm and SiLU of two parts",
        lambda: ops.groupnorm_silu(rest, skip, norm, None, "triton"),
        lambda: functional.silu(norm(torch.cat([rest, skip], 1))),
        lambda: _exact_norm(torch.cat([rest, skip], 1).double(), norm),
        3 * (rest.numel() + skip.numel()) * skip.element_size(),
    )


def _entry(hidden: torch.Tensor, skip: torch.Tensor) -> Work:
    norm = _random_norm(torch.cat([hidden[:1], skip[:1]], 1))

    def fused() -> torch.Tensor:
        joined, moments = ops.scale_concat(hidden, skip, 0.8, "triton")
        return ops.groupnorm_silu(joined, None, norm, moments, "triton")

    return Work(
        "the entry: concat, norm, SiLU",
        fused,
        lambda: functional.silu(norm(torch.cat([hidden, 0.8 * skip], 1))),
        lambda: _exact_norm(torch.cat([hidden, (0.8 * skip).to(skip.dtype)], 1).double(), norm),
        4 * (hidden.nbytes + skip.nbytes),
    )


def _random_norm(x: torch.Tensor, groups: int = GROUPS) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(groups, x.shape[1], EPS).to(x.device, x.dtype)
    torch.nn.init.normal_(norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(norm.bias)
    return norm


def _exact_norm(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
    return functional.silu(functional.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double(), EPS))


def gate(work: Work, name: str) -> None:
    """Stop unless the kernel is within two roundings of the float64 result, and no worse than eager PyTorch."""
    exact = work.exact()
    error, eager = ((way().double() - exact).abs().max().item() for way in (work.kernel, work.eager))
    allowed = max(eager, 2 * torch.finfo(work.kernel().dtype).eps * exact.abs().max().item())
    if not error <= allowed:
        raise SystemExit(f"{name} is off by {error:.3g}, and {allowed:.3g} is allowed: no speed is reported")


def _row(shape: str, order: str, work: Work, rate: float, repeats: int) -> dict:
    compiled = torch.compile(work.eager, fullgraph=True, dynamic=False)
    ways = {"kernel": work.kernel, "eager": work.eager, "compiled": compiled}
    times = {name: _microseconds(way, repeats) for name, way in ways.items()}
    torch._dynamo.reset()
    bandwidth = work.moved / times["kernel"]["median"] * 1e6
    row = {
        "operation": work.name,
        "shape": shape,
        "order": order,
        "bytes": work.moved,
        **times,
        "of_copy": bandwidth / rate,
    }
    t = {name: time["median"] for name, time in times.items()}
    print(
        f"{work.name}, {shape}, {order}: {t['kernel']:.1f} us, {row['of_copy']:.0%} of the copy rate; "
        f"eager {t['eager']:.1f}, compiled {t['compiled']:.1f}",
        flush=True,
    )
    return row


def _microseconds(work: Callable[[], object], repeats: int, flush: bool = True) -> dict:
    """Median, 20th and 80th percentile of the device's time for one call, captured as a graph so that no launch is waited for."""
    work(), work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    scratch = torch.empty(FLUSH, dtype=torch.int8, device="cuda") if flush else None
    times = []
    for _ in range(repeats):
        if flush:
            scratch.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return {"median": statistics.median(times), "p20": cuts[0], "p80": cuts[-1]}


def _launch_nothing() -> Callable[[], object]:
    one = torch.zeros(1, device="cuda")
    return lambda: one.add_(1)


def _copy_rate(repeats: int) -> float:
    """Bytes per second, read and written, of a copy far larger than L2."""
    source = torch.empty(FLUSH, dtype=torch.int8, device="cuda").zero_()
    target = torch.empty_like(source)
    return 2 * FLUSH / _microseconds(lambda: target.copy_(source), repeats)["median"] * 1e6
