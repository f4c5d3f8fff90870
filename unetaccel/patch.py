"""apply and remove: putting the accelerated U-Net into a pipeline, and the original back."""

from __future__ import annotations

from torch import nn

from .accelerated import AcceleratedUNet, face
from .calls import AcceleratedPipeline, unwatch_calls, watch_calls
from .engine import Engine
from .errors import AlreadyAppliedError, UnsupportedModelError
from .handle import Handle
from .methods import Method


def apply(pipe_or_unet, *methods: Method, replace: bool = False) -> Handle:
    """Accelerate a diffusers pipeline, or a bare U-Net, with one or more methods.

    The pipeline then works as before, only faster: ``pipe(...)``. The U-Net's modules, weights and
    attributes are not changed. A bare U-Net is not changed either: use ``handle.unet`` instead of it.

    >>> handle = unetaccel.apply(pipe, unetaccel.DeepCache(interval=3, cut=0))
    >>> image = pipe("a red circle on a white background").images[0]
    >>> print(handle.summary())
    >>> handle.remove()

    Args:
        pipe_or_unet: a pipeline with a ``unet``, or a U-Net.
        methods: what to apply, in any order.
        replace: remove what was applied to it before; without it a second ``apply`` is an error.

    Returns:
        A ``Handle``; as a context manager it removes the methods at the end of the block.

    Raises:
        UnsupportedModelError: no U-Net, one of a kind that is not supported, or one patched by another tool.
        AlreadyAppliedError: accelerated already, and ``replace`` is false.
        SettingError: a method's settings do not fit this U-Net.
    """
    pipe, unet = _split(pipe_or_unet)
    previous = _previous(pipe, unet)
    if previous is not None and not replace:
        raise AlreadyAppliedError(
            f"unetaccel is already applied here: {', '.join(map(repr, previous.methods))}. "
            "Call handle.remove() first, or apply(..., replace=True)"
        )
    plain = unet._unetaccel.unet if isinstance(unet, AcceleratedUNet) else unet
    engine = Engine(plain, methods)  # fails before anything is changed or given up
    if previous is None:
        engine.replaced = unet
    else:
        engine.replaced, previous.removed = previous.replaced, True
    accelerated = face(engine)
    if pipe is not None:
        _put(pipe, accelerated)
        watch_calls(pipe)
    return Handle(pipe, accelerated, engine, _remove)


def _previous(pipe, unet: nn.Module) -> Engine | None:
    """What is applied here already.

    A pipeline made by ``from_pipe`` of an accelerated one holds its U-Net but is not accelerated itself.
    """
    if not isinstance(unet, AcceleratedUNet) or unet._unetaccel.removed:
        return None
    return unet._unetaccel if pipe is None or isinstance(pipe, AcceleratedPipeline) else None


def _split(pipe_or_unet) -> tuple[object | None, nn.Module]:
    if isinstance(pipe_or_unet, nn.Module):
        return None, pipe_or_unet
    unet = getattr(pipe_or_unet, "unet", None)
    if isinstance(unet, nn.Module):
        return pipe_or_unet, unet
    name = type(pipe_or_unet).__name__
    transformer = getattr(pipe_or_unet, "transformer", None)
    if transformer is not None:
        raise UnsupportedModelError(
            f"{name} runs on a transformer ({type(transformer).__name__}), not on a U-Net. unetaccel serves U-Nets only; "
            "for transformers see diffusers' enable_cache or cache-dit"
        )
    raise UnsupportedModelError(f"expected a diffusers pipeline with a `unet`, or a U-Net module, got {name}")


def _put(pipe, unet: nn.Module) -> None:
    # Not by plain assignment: pipelines write their config when a component is set.
    object.__setattr__(pipe, "unet", unet)


def _remove(pipe, accelerated: nn.Module, engine: Engine) -> None:
    engine.removed = True
    if pipe is not None and pipe.unet is accelerated:
        _put(pipe, engine.replaced)
        unwatch_calls(pipe)
