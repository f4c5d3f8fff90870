"""The ways to run a U-Net that are timed side by side, and why one of them cannot be had here."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ..errors import SettingError
from .jobs import Job
from .runners import BlocksCompiled, Official, Ours, Plain, PlainOurs, Runner


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
        baseline: the plain variant in the same mode of execution, which its speedup is measured against.
        build: from a job and a cut (None for plain variants); may raise ``UnetAccelError`` where it turns out not to fit.
        why_not: a reason why it cannot run, or None.
        caches: whether it has an interval and a cut.
        shortens: whether a ControlNet does less beside its cached evaluations.
    """

    name: str
    title: str
    baseline: str
    build: Callable[[Job, int | None], Runner]
    why_not: Callable[[Job], str | None] = lambda job: None
    caches: bool = True
    shortens: bool = True


def _no_inductor(job: Job) -> str | None:
    """Inductor's kernels are C++ on a CPU and Triton on CUDA, whose launcher is C."""
    compiler = os.environ.get("CXX" if job.device.type == "cpu" else "CC")
    known = ("g++", "clang++") if job.device.type == "cpu" else ("gcc", "clang")
    if not any(shutil.which(name) for name in ((compiler,) if compiler else known)):
        return f"torch.compile needs a compiler here, and none of {compiler or ', '.join(known)} is found"
    if job.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs the package triton on CUDA: pip install triton"
    return None


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "the package triton is not installed: pip install triton"


def _no_graphs(job: Job) -> str | None:
    return None if job.device.type == "cuda" else "CUDA graphs need a CUDA device"


def _no_helper(job: Job) -> str | None:
    if importlib.util.find_spec("DeepCache") is None:
        return "the package DeepCache is not installed: pip install DeepCache==0.1.1"
    return None


def _no_blocks(job: Job) -> str | None:
    if not getattr(job.unet, "_repeated_blocks", None):
        return f"diffusers names no repeated blocks of {type(job.unet).__name__}, so compile_repeated_blocks refuses it"
    return _no_helper(job) or _no_inductor(job)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("plain", "plain, eager", "plain", Plain, caches=False),
        Variant(
            "plain-inductor",
            "plain, inductor",
            "plain-inductor",
            partial(PlainOurs, compile="inductor"),
            _no_inductor,
            False,
        ),
        Variant(
            "plain-graphs", "plain, CUDA graph", "plain-graphs", partial(PlainOurs, compile="graphs"), _no_graphs, False
        ),
        Variant("deepcache", "DeepCache 0.1.1, eager", "plain", Official, _no_helper, shortens=False),
        Variant(
            "deepcache-blocks", "DeepCache 0.1.1, compiled blocks", "plain", BlocksCompiled, _no_blocks, shortens=False
        ),
        Variant("ours", "ours, eager", "plain", Ours),
        Variant("ours-precompute", "ours, eager, precomputed", "plain", partial(Ours, precompute=True)),
        Variant("ours-inductor", "ours, inductor", "plain-inductor", partial(Ours, compile="inductor"), _no_inductor),
        Variant("ours-graphs", "ours, CUDA graphs", "plain-graphs", partial(Ours, compile="graphs"), _no_graphs),
        Variant(
            "ours-all",
            "ours, graphs + kernels + precomputed",
            "plain-graphs",
            partial(Ours, compile="graphs", kernels="triton", precompute=True),
            lambda job: _no_graphs(job) or _no_triton(),
        ),
    )
}
"""By name, in the order in which tables show them."""


def chosen(names: list[str] | None) -> list[Variant]:
    """The variants of these names (default: all), with the baselines that they are measured against.

    Raises:
        SettingError: no such variant.
    """
    unknown = [name for name in names or () if name not in VARIANTS]
    if unknown:
        raise SettingError(f"unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    wanted = set(names or VARIANTS)
    wanted |= {VARIANTS[name].baseline for name in wanted} | {"plain"}
    return [variant for variant in VARIANTS.values() if variant.name in wanted]


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Forget what was compiled before and inside, and let as many graphs of one function live side by side as variants and cuts need."""
    import torch._dynamo as dynamo

    name = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"  # torch before 2.6
    dynamo.reset()
    try:
        with dynamo.config.patch(**{name: 64}):
            yield
    finally:
        dynamo.reset()  # compiled code holds what it was compiled for
