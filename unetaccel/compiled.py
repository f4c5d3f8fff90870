"""The two views as compiled graphs: two of them, however many steps.

The decision between full and cached is made outside, on the host, so each graph is static: a new step, seed or
prompt changes tensor values only. ``full_step`` and ``cached_step`` are the functions behind them, for those who
compile, capture or export themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .accelerated import Face
from .errors import SettingError, UnsupportedModelError
from .execution import Execution
from .graphs import Log, graphed
from .lora import LoraScales
from .overlay import Fingerprint
from .precompute import Precomputed
from .sites import Sites
from .skips import resolve_cut, skip_table
from .views import CachedStep, FullStep, Views, build_views, make_views, split_containers


def compiled_views(
    unet: nn.Module, b: int | None, sites_of: Callable[[nn.Module], Sites], how: Execution, log: Log | None = None
) -> Views:
    """Views of ``unet`` for cut ``b`` whose steps are compiled (``fullgraph=True``) or recorded, each at its first call.

    Args:
        sites_of: the sites of an overlay of ``unet``.
        how: with the options of ``torch.compile``, or with graphs.
        log: what recordings are told to.

    Raises:
        UnsupportedModelError: as ``build_views``.
    """
    scales = LoraScales(unet)
    known = Precomputed(scales.unet, inputs_only=True) if how.precompute and how.graphs else None
    base = scales.unet if known is None else known.unet
    views = make_views(base, b, sites_of(base), how)
    split = split_containers(unet, views.skip, views.sites)
    inner, inner_cached = scales.containers(), scales.containers(views.cached)
    if known is not None:
        inner, inner_cached = inner + known.containers(unet), inner_cached + known.containers(unet, views.cached)
    views.fingerprint, views.precomputed = Fingerprint(split, inner), known
    views.cached_fingerprint = Fingerprint(split, inner_cached)
    steps = views.full_step, views.cached_step, views.plain_step
    if how.precompute and not how.graphs:
        views.unforeseen = "keys and values, and the time embedding: compiled graphs compute them in every evaluation"
    if how.graphs:
        steps = graphed(steps, scales, log)
    else:
        check_compilable(unet)
        steps = [compile_step(step, how.inductor, scales) for step in steps]
    views.full_step, views.cached_step, views.plain_step = steps
    return views


def compile_step(step: Callable, options: dict, scales: LoraScales) -> Callable:
    """``torch.compile`` of one step, with timestep and LoRA scales as tensors: no value becomes a constant of the graph."""
    compiled: dict[str, Callable] = {}
    overwrites = _overwrites(options)

    def call(**inputs):
        inputs = scales.follow(inputs)
        timestep, device = inputs["timestep"], inputs["sample"].device
        if not isinstance(timestep, torch.Tensor):
            inputs["timestep"] = torch.tensor(timestep, device=device)
        if device.type not in compiled:
            compiled[device.type] = torch.compile(step, **_defaults(device.type, options), **options)
        output = compiled[device.type](**inputs)
        return tree_map_only(torch.Tensor, torch.clone, output) if overwrites else output

    return call


def _defaults(kind: str, options: dict) -> dict:
    """What ``options`` leave open, on a device of this kind."""
    found = {name: value for name, value in (("fullgraph", True), ("dynamic", False)) if name not in options}
    if kind == "cpu" and not options.keys() & {"backend", "mode", "options"}:
        found["options"] = {"layout_optimization": False}  # it would convert the weights in every evaluation
    return found


def _overwrites(options: dict) -> bool:
    """Whether the compiler replays CUDA graphs of its own, whose results last until the next call of anything compiled."""
    asked = (options.get("options") or {}).get("triton.cudagraphs", False)
    return bool(asked) or options.get("mode") in ("reduce-overhead", "max-autotune")


def check_compilable(unet: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` for a U-Net with offload hooks inside, which cannot be one graph."""
    hooked = [
        name for name, m in unet.named_modules() if name and (hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook"))
    ]
    if hooked:
        raise UnsupportedModelError(
            f"compile=True needs a U-Net without hooks on its layers, but {len(hooked)} have one (first: {hooked[0]}). "
            "Use enable_model_cpu_offload instead of sequential or group offload, or compile=False"
        )


def full_step(unet: nn.Module, cut: int | str) -> FullStep:
    """``unet`` as a module ``(**inputs) -> (output, F)``, sharing its weights; for torch.export and the like.

    Both steps are of the plain U-Net: no skip is edited in them.

    Raises:
        SettingError, UnsupportedModelError: as ``apply``; or ``unet`` is an accelerated one.
    """
    return _views(unet, cut).full_step


def cached_step(unet: nn.Module, cut: int | str) -> CachedStep:
    """The part of ``unet`` above ``cut`` as a module ``(feature, **inputs) -> output``, sharing its weights."""
    return _views(unet, cut).cached_step


def _views(unet: nn.Module, cut: int | str) -> Views:
    if isinstance(unet, Face):
        raise SettingError(
            "full_step and cached_step take the plain U-Net, without methods, but this one is accelerated: call handle.remove() "
            "first, or give the U-Net that was given to apply"
        )
    return build_views(unet, resolve_cut(cut, skip_table(unet)))
