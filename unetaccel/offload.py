"""Group offloading of whole blocks: what diffusers' hooks on a block do, for the parts that views make of it.

diffusers lays the blocks of a U-Net into groups. The first block of a group, its onload leader, brings the weights
of all of them to the device; the last one, its offload leader, sends them away. The hooks are called here as they
are; added is only the work of leaders that a view leaves out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import nn

from .errors import UnsupportedModelError

GROUP_OFFLOADING = "group_offloading"  # diffusers' name for these hooks


def is_group_offloaded(module: nn.Module) -> bool:
    """Whether the ``forward`` that sits on ``module`` is that of its group offloading hook, around its own."""
    registry, forward = module.__dict__.get("_diffusers_hook"), module.__dict__.get("forward")
    if registry is None or list(registry.hooks) != [GROUP_OFFLOADING] or not isinstance(forward, functools.partial):
        return False
    inner = getattr(registry._fn_refs[0].forward, "__self__", None)
    return forward.args[:1] == (registry._module_ref,) and getattr(inner, "__dict__", None) is module.__dict__


def call_hooked(module: nn.Module, call: Callable, args: tuple, kwargs: dict, before: bool = True, after: bool = True):
    """``call(*args, **kwargs)`` between the two halves of ``module``'s group offloading hook."""
    registry = module._diffusers_hook
    hook, hooked = registry.hooks[GROUP_OFFLOADING], registry._module_ref  # hooks compare with what they were put on
    if before:
        args, kwargs = hook.pre_forward(hooked, *args, **kwargs)
    output = call(*args, **kwargs)
    return hook.post_forward(hooked, output) if after else output


def carry_hook(
    part: nn.Module, block: nn.Module, running: Sequence[nn.Module], before: bool = True, after: bool = True
) -> None:
    """Make ``part``, a copy of ``block`` or of some of its layers, move the weights that ``block``'s hook moves.

    Harmless where ``block`` is not group offloaded.

    Args:
        running: the blocks of this kind that the view runs; a leader that is none of them is stood in for.
        before, after: whether this part is the first, and the last, of the block that the view runs.
    """
    if not is_group_offloaded(block):
        return

    def forward(*args, **kwargs):
        group = block._diffusers_hook.hooks[GROUP_OFFLOADING].group
        if not _is_in(group.onload_leader, running):
            group.onload_()
        output = call_hooked(block, functools.partial(type(part).forward, part), args, kwargs, before, after)
        if not _is_in(group.offload_leader, running):
            group.offload_()
        return output

    part.__dict__["forward"] = forward


def group_is_cut(block: nn.Module, running: Sequence[nn.Module]) -> bool:
    """Whether a leader of the group that ``block`` belongs to is left out of ``running``."""
    if not is_group_offloaded(block):
        return False
    group = block._diffusers_hook.hooks[GROUP_OFFLOADING].group
    return not (_is_in(group.onload_leader, running) and _is_in(group.offload_leader, running))


def _is_in(module: nn.Module, modules: Sequence[nn.Module]) -> bool:
    return any(m is module for m in modules)


def streamed(model: nn.Module) -> str | None:
    """Path of the first module whose weights are prefetched while others run, or None."""
    for name, module in model.named_modules():
        registry = module.__dict__.get("_diffusers_hook")
        hook = registry.hooks.get(GROUP_OFFLOADING) if registry is not None else None
        if hook is not None and hook.group.stream is not None:
            return name
    return None


def refuse_streams(unet: nn.Module) -> None:
    """Raise if weights are prefetched: in the order of a full pass, which cached evaluations do not keep."""
    name = streamed(unet)
    if name is not None:
        raise UnsupportedModelError(
            f"{name} is group offloaded with use_stream=True, which prefetches weights in the order of a whole pass, "
            "but cached evaluations leave layers out. Offload with use_stream=False, or use enable_model_cpu_offload"
        )
